package vmdns

import (
	"context"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/miekg/dns"

	"banger/internal/nettest"
)

// A guest that asks for what nobody ever answers has its share of the waiting, from all
// of its addresses together, and the others wait for nothing.
func TestForwardShares(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	host, guests := nettest.NewNS(t), nettest.NewNS(t)
	host.Wire("v0", []string{"10.42.0.1/24", "fd42::1/64"}, guests, "v1", []string{"10.42.0.2/24", "10.42.0.3/24", "fd42::2/64"})
	s := New(Deps{Log: quiet()})
	t.Cleanup(func() { _ = s.Close() })
	if err := s.Replace(map[string]Host{
		"web": {Addrs: addrs("10.42.0.2", "fd42::2")}, "other": {Addrs: addrs("10.42.0.3")},
	}); err != nil {
		t.Fatal(err)
	}
	waiting := make(chan string, 4*maxAskedEach)
	release := make(chan struct{})
	forward := func(ctx context.Context, _ string, query []byte) ([]byte, error) {
		var q dns.Msg
		if err := q.Unpack(query); err != nil {
			return nil, err
		}
		if name := q.Question[0].Name; name != "quick.example." {
			waiting <- name
			select {
			case <-release:
			case <-ctx.Done():
			}
		}
		return new(dns.Msg).SetReply(&q).Pack()
	}
	var gateways []netip.AddrPort
	host.Must(func() error {
		for gw, in := range map[string]string{"10.42.0.1": "10.42.0.0/24", "fd42::1": "fd42::/64"} {
			at, err := s.Open(Listener{Addr: netip.AddrPortFrom(netip.MustParseAddr(gw), 53), Forward: forward, Guests: netip.MustParsePrefix(in)})
			if err != nil {
				return err
			}
			gateways = append(gateways, at)
		}
		return nil
	})
	dial := func(network, from string, to netip.AddrPort) *dns.Conn {
		t.Helper()
		d := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(from)}}
		if network == "tcp" {
			d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
		}
		var c net.Conn
		guests.Must(func() (err error) { c, err = d.Dial(network, to.String()); return err })
		t.Cleanup(func() { _ = c.Close() })
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		return &dns.Conn{Conn: c}
	}
	answered := func(c *dns.Conn, name string) {
		t.Helper()
		q := new(dns.Msg).SetQuestion(name, dns.TypeA)
		if err := c.WriteMsg(q); err != nil {
			t.Fatal(err)
		}
		if m, err := c.ReadMsg(); err != nil || m.Id != q.Id {
			t.Fatalf("%s: %v, %v", name, m, err)
		}
	}
	for _, gw := range gateways {
		from := "10.42.0.2"
		if gw.Addr().Is6() {
			from = "fd42::2"
		}
		c := dial("udp", from, gw)
		for range 2 * maxAskedEach {
			if err := c.WriteMsg(new(dns.Msg).SetQuestion("never.example.", dns.TypeA)); err != nil {
				t.Fatal(err)
			}
		}
		answered(c, "web.vm.") // what is known is answered all the same, and after those
	}
	for range maxAskedEach {
		select {
		case <-waiting:
		case <-time.After(10 * time.Second):
			t.Fatal("its share is not asked for")
		}
	}
	for _, gw := range gateways {
		if gw.Addr().Is4() {
			answered(dial("udp", "10.42.0.3", gw), "quick.example.")
			answered(dial("tcp", "10.42.0.3", gw), "quick.example.")
		}
	}
	if len(waiting) > 0 {
		t.Errorf("%d questions wait beyond its share", len(waiting))
	}
	// What is answered makes room.
	close(release)
	c := dial("udp", "10.42.0.2", netip.MustParseAddrPort("10.42.0.1:53"))
	for end := time.Now().Add(10 * time.Second); ; {
		if err := c.WriteMsg(new(dns.Msg).SetQuestion("quick.example.", dns.TypeA)); err != nil {
			t.Fatal(err)
		}
		_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		if _, err := c.ReadMsg(); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("no question is passed on any more")
		}
	}
}
