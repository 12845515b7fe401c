package serve

import (
	"encoding/binary"
	"os"

	"golang.org/x/sys/unix"
)

// firstSpecial is where the modes end that have a number as their argument.
const firstSpecial = 160

// The modes of RFC 4254, by their numbers.
var (
	modeChars = map[byte]int{
		1: unix.VINTR, 2: unix.VQUIT, 3: unix.VERASE, 4: unix.VKILL, 5: unix.VEOF, 6: unix.VEOL, 7: unix.VEOL2,
		8: unix.VSTART, 9: unix.VSTOP, 10: unix.VSUSP, 12: unix.VREPRINT, 13: unix.VWERASE, 14: unix.VLNEXT, 18: unix.VDISCARD,
	}
	modeInput = map[byte]uint32{
		30: unix.IGNPAR, 31: unix.PARMRK, 32: unix.INPCK, 33: unix.ISTRIP, 34: unix.INLCR, 35: unix.IGNCR, 36: unix.ICRNL,
		37: unix.IUCLC, 38: unix.IXON, 39: unix.IXANY, 40: unix.IXOFF, 41: unix.IMAXBEL, 42: unix.IUTF8,
	}
	modeLocal = map[byte]uint32{
		50: unix.ISIG, 51: unix.ICANON, 52: unix.XCASE, 53: unix.ECHO, 54: unix.ECHOE, 55: unix.ECHOK, 56: unix.ECHONL,
		57: unix.NOFLSH, 58: unix.TOSTOP, 59: unix.IEXTEN, 60: unix.ECHOCTL, 61: unix.ECHOKE, 62: unix.PENDIN,
	}
	modeOutput = map[byte]uint32{
		70: unix.OPOST, 71: unix.OLCUC, 72: unix.ONLCR, 73: unix.OCRNL, 74: unix.ONOCR, 75: unix.ONLRET,
	}
	modeControl = map[byte]uint32{92: unix.PARENB, 93: unix.PARODD}
)

// noChar is how the protocol writes that a special character is not there.
const noChar = 255

// setModes gives a terminal the modes of the client's own, as far as they are known here. One
// that cannot have them keeps those it has.
func setModes(tty *os.File, modes []byte) {
	raw, err := tty.SyscallConn()
	if err != nil || len(modes) == 0 {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		if t, err := unix.IoctlGetTermios(int(fd), unix.TCGETS); err == nil {
			applyModes(t, modes)
			_ = unix.IoctlSetTermios(int(fd), unix.TCSETS, t)
		}
	})
}

func applyModes(t *unix.Termios, modes []byte) {
	for len(modes) >= 5 && modes[0] != 0 && modes[0] < firstSpecial {
		op, value := modes[0], binary.BigEndian.Uint32(modes[1:])
		modes = modes[5:]
		if at, ok := modeChars[op]; ok {
			t.Cc[at] = byte(value)
			if value == noChar {
				t.Cc[at] = 0
			}
			continue
		}
		for _, f := range []struct {
			flags *uint32
			bits  map[byte]uint32
		}{{&t.Iflag, modeInput}, {&t.Lflag, modeLocal}, {&t.Oflag, modeOutput}, {&t.Cflag, modeControl}} {
			if bit, ok := f.bits[op]; ok && value != 0 {
				*f.flags |= bit
			} else if ok {
				*f.flags &^= bit
			}
		}
		switch {
		case op == 90 && value != 0:
			t.Cflag = t.Cflag&^unix.CSIZE | unix.CS7
		case op == 91 && value != 0:
			t.Cflag = t.Cflag&^unix.CSIZE | unix.CS8
		}
	}
}
