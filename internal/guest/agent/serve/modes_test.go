package serve

import (
	"testing"

	"golang.org/x/sys/unix"
)

func TestModes(t *testing.T) {
	term := unix.Termios{Lflag: unix.ECHO | unix.ICANON, Cflag: unix.CS7}
	term.Cc[unix.VERASE], term.Cc[unix.VEOL] = 8, 1
	applyModes(&term, []byte{
		3, 0, 0, 0, 127, // VERASE
		6, 0, 0, 0, 255, // VEOL, none
		53, 0, 0, 0, 0, // ECHO
		36, 0, 0, 0, 1, // ICRNL
		72, 0, 0, 0, 1, // ONLCR
		91, 0, 0, 0, 1, // CS8
		129, 0, 0, 0x96, 0, // a speed
		0,
		51, 0, 0, 0, 0, // after the end
	})
	if term.Cc[unix.VERASE] != 127 || term.Cc[unix.VEOL] != 0 || term.Lflag != unix.ICANON || term.Iflag != unix.ICRNL ||
		term.Oflag != unix.ONLCR || term.Cflag != unix.CS8 {
		t.Errorf("got %+v", term)
	}
}

// Whatever a client says, nothing but the terminal's modes changes.
func FuzzModes(f *testing.F) {
	f.Add([]byte{3, 0, 0, 0, 127, 0})
	f.Add([]byte{3, 0, 0, 0})
	f.Add([]byte{200, 1, 2, 3, 4, 5})
	f.Fuzz(func(t *testing.T, modes []byte) {
		term := unix.Termios{Ispeed: 7, Line: 3}
		applyModes(&term, modes)
		if term.Ispeed != 7 || term.Line != 3 {
			t.Errorf("got %+v", term)
		}
	})
}
