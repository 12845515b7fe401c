package usernet

import (
	"errors"
	"log/slog"
	"testing"
)

// FuzzFrames gives a network whatever a hostile guest may send.
func FuzzFrames(f *testing.F) {
	f.Add(spoofed(guestIP, gatewayIP), uint8(0))
	f.Add(synFrame(seenFromGuest(fakeAddr{})), uint8(1))
	f.Add(ipFrame([]byte{0x46, 0, 0, 40, 0, 1, 0x20, 0, 64, 17}), uint8(1))
	f.Add([]byte("\xff\xff\xff\xff\xff\xff\x02\x62\x67\x72\x00\x02\x08\x06\x00\x01\x08\x00\x06\x04\x00\x01"+
		"\x02\x62\x67\x72\x00\x02\xc0\xa8\x7f\x02\x00\x00\x00\x00\x00\x00\xc0\xa8\x7f\x01"), uint8(0))
	n, err := newNetwork("fuzz", host{
		policy: func(Flow) error { return errors.New("no") },
		names:  fixedResolver(), files: &slots{max: 100},
		limits: Limits{}.withDefaults(), log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(n.Close)
	f.Fuzz(func(t *testing.T, frame []byte, fix uint8) {
		if fix&1 != 0 && len(frame) >= 34 {
			// Past the first checks: from the guest, with a sound header.
			copy(frame[12:], "\x08\x00")
			ip := frame[14:34]
			copy(ip[12:], guestIP.AsSlice())
			ip[10], ip[11] = 0, 0
			size := min(int(ip[0]&0xf)*4, len(frame)-14) &^ 1
			sum := 0
			for i := 0; i < size; i += 2 {
				sum += int(frame[14+i])<<8 | int(frame[15+i])
			}
			sum = sum>>16 + sum&0xffff
			sum += sum >> 16
			ip[10], ip[11] = byte(^sum>>8), byte(^sum)
		}
		n.link.receive(frame)
	})
}

type fakeAddr struct{}

func (fakeAddr) Network() string { return "tcp" }
func (fakeAddr) String() string  { return "198.51.100.1:80" }
