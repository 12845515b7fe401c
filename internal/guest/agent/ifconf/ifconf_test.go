package ifconf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
	"banger/internal/guest"
)

func TestParse(t *testing.T) {
	p, err := Parse(&guest.NetConf{Address: "192.168.127.2/24", Gateway: "192.168.127.1", DNS: []string{"192.168.127.1"}, Search: "vm", MTU: 1500, MAC: "52:54:00:12:34:56"})
	if err != nil || p.Place.Address.Bits() != 24 || !bytes.Equal(p.MAC, []byte{0x52, 0x54, 0, 0x12, 0x34, 0x56}) || len(p.DNS) != 1 || p.Search != "vm" {
		t.Errorf("%+v %v", p, err)
	}
	p, err = Parse(&guest.NetConf{Address: "10.42.0.2/16", Gateway: "10.42.0.1", Address6: "fd00:1::a2a:2/64", Gateway6: "fd00:1::a2a:1"})
	want := Place{netip.MustParsePrefix("fd00:1::a2a:2/64"), netip.MustParseAddr("fd00:1::a2a:1")}
	if err != nil || p.Place6 != want {
		t.Errorf("%+v %v", p, err)
	}
	for _, bad := range []guest.NetConf{
		{Address: "1.2.3.4/24", Address6: "1.2.3.5/24"}, {Address: "fd00::1/64", Address6: "fd00::2/64"}, {Address: "1.2.3.4/24", Address6: "x"},
		{Address: "1.2.3.4/24", Address6: "fd00::2/64", Gateway6: "1.2.3.1"},
		{}, {Address: "1.2.3.4"}, {Address: "1.2.3.4/33"}, {Address: "1.2.3.4/24", Gateway: "x"},
		{Address: "1.2.3.4/24", Gateway: "fe80::1"}, {Address: "1.2.3.4/24", DNS: []string{"dns"}},
		{Address: "1.2.3.4/24", Search: "vm\nnameserver 9.9.9.9"}, {Address: "1.2.3.4/24", Search: "v m"},
		{Address: "1.2.3.4/24", MTU: 5}, {Address: "1.2.3.4/24", MAC: "52:54"}, {Address: "1.2.3.4/24", MAC: "01:00:00:00:00:01"},
	} {
		if _, err := Parse(&bad); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

func TestBroadcast(t *testing.T) {
	for in, want := range map[string]string{"10.1.2.3/24": "10.1.2.255", "10.1.2.3/30": "10.1.2.3", "172.16.5.1/12": "172.31.255.255"} {
		if got, _ := netip.AddrFromSlice(broadcast(netip.MustParsePrefix(in))); got.String() != want {
			t.Errorf("%s: %s", in, got)
		}
	}
}

func TestAnswer(t *testing.T) {
	msg := func(seq uint32, errno int32) []byte {
		b := binary.NativeEndian.AppendUint32(nil, 36)
		b = binary.NativeEndian.AppendUint16(b, unix.NLMSG_ERROR)
		b = append(b, 0, 0)
		b = binary.NativeEndian.AppendUint32(b, seq)
		b = append(b, 0, 0, 0, 0)
		b = binary.NativeEndian.AppendUint32(b, uint32(-errno))
		return append(b, make([]byte, 16)...)
	}
	both := append(msg(1, 0), msg(2, int32(unix.EPERM))...)
	if ok, err := answer(both, 1); !ok || err != nil {
		t.Error(ok, err)
	}
	if ok, err := answer(both, 2); !ok || err != unix.EPERM {
		t.Error(ok, err)
	}
	if ok, _ := answer(both, 3); ok {
		t.Error("found what is not there")
	}
	for n := range both {
		_, _ = answer(both[:n], 2) // must not read beyond
	}
}

// TestLoopback talks to the real kernel, which is asked for what is so already.
func TestLoopback(t *testing.T) {
	if err := Loopback(); err != nil && !errors.Is(err, unix.EPERM) {
		t.Error(err)
	}
}
