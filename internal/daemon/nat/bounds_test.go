package nat

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"banger/internal/nettest"
)

// A guest at a bound begins no more connections, and another still does.
func TestBounds(t *testing.T) {
	nettest.Require(t)
	defer func(held uint32, begun uint64, burst uint32) { maxHeld, maxBegun, maxBurst = held, begun, burst }(maxHeld, maxBegun, maxBurst)
	t.Cleanup(func() { must(t, table.Remove()) })
	one, two := guest(2), guest(3)
	peer := nettest.NewNS(t)
	nettest.Own(t).Wire(table.Bridge, []string{"10.1.0.1/16", "fd00::1/64"}, peer, "eth0",
		[]string{one.IPv4.String() + "/16", two.IPv4.String() + "/16", one.IPv6.String() + "/64", two.IPv6.String() + "/64"})

	for _, host := range []netip.Addr{netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("fd00::1")} {
		own, other := one.IPv4, two.IPv4
		if host.Is6() {
			own, other = one.IPv6, two.IPv6
		}
		name := netip.AddrPortFrom(host, 53)
		server, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(name))
		must(t, err)
		defer func() { _ = server.Close() }()
		st := State{Gateways: []netip.Addr{host}, Services: []Service{{Addr: name, UDP: true}}, Guests: []Guest{one, two}}
		ask := func(from netip.Addr, text string) net.Conn {
			conn, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), net.UDPAddrFromAddrPort(name))
			must(t, err)
			_, err = conn.Write([]byte(text))
			must(t, err)
			return conn
		}
		for _, tc := range []struct {
			name        string
			held        uint32
			begun       uint64
			burst       uint32
			least, most int
		}{
			{"as many at once", 16, 1 << 20, 1 << 10, 16, 16},
			{"as many a second", 1 << 10, 1, 16, 16, 20}, // and one for each second that this takes
			{"neither", 1 << 10, 1 << 20, 1 << 10, 100, 100},
		} {
			maxHeld, maxBegun, maxBurst = tc.held, tc.begun, tc.burst
			must(t, errors.Join(Forget(own, other), table.Sync(st)))
			peer.Must(func() error {
				for range 100 {
					defer func(c net.Conn) { _ = c.Close() }(ask(own, "one"))
				}
				_ = ask(other, "two").Close()
				return nil
			})
			heard := map[string]int{}
			buf := make([]byte, 10)
			for wait := 10 * time.Second; ; {
				must(t, server.SetReadDeadline(time.Now().Add(wait)))
				n, err := server.Read(buf)
				if errors.Is(err, os.ErrDeadlineExceeded) {
					break
				}
				must(t, err)
				heard[string(buf[:n])]++
				if heard["two"] > 0 {
					wait = 100 * time.Millisecond // for what was overtaken
				}
			}
			if heard["one"] < tc.least || heard["one"] > tc.most || heard["two"] != 1 {
				t.Errorf("%s, to %s: heard %v, want %d to %d of the first guest", tc.name, host, heard, tc.least, tc.most)
			}
		}
	}
}
