package hostnet

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"banger/internal/nettest"
)

// Where clouds keep what a machine may do, and an address beside one of those.
var (
	metadata = []string{"169.254.169.254", "168.63.129.16", "100.100.100.200", "fd00:ec2::254", "fd20:ce::254"}
	beside   = netip.MustParseAddr("168.63.129.17")
)

// Who reaches whom, by real connections; and the same after everything that may
// happen to the rules.
func TestTraffic(t *testing.T) {
	w := newWorld(t)
	w.serve(w.uplink, 80)
	w.serve(here{}, 53)
	w.serve(here{}, 8080)
	for _, a := range append([]string{beside.String()}, metadata...) {
		to := netip.MustParseAddr(a)
		link := netip.PrefixFrom(to.Next().Next(), to.BitLen()-8)
		w.must(address("up0", link.String()))
		w.must(w.uplink.Do(func() error { return address("eth0", netip.PrefixFrom(to, link.Bits()).String()) }))
	}
	a, b := w.boot(VM{ID: "a", Expose: []uint16{8080}}), w.boot(VM{ID: "b"})
	c, d := w.boot(VM{ID: "c", Network: "lab"}), w.boot(VM{ID: "d", Network: "lab"})
	e := w.boot(VM{ID: "e", Network: "other", Isolated: true})
	for _, g := range []*guest{a, b, c, d, e} {
		w.serve(g, 22)
	}
	gw4, gw6 := a.Gateways[0], a.Gateways[1]

	check := func(t *testing.T) {
		t.Helper()
		defer w.waiting.Wait()
		for _, g := range []*guest{a, c} {
			if as := g.reaches("the world", at(far4, 80)); as != hostUp4.String() {
				t.Errorf("the world sees %s as %s", g.vm.ID, as)
			}
			if as := g.reaches("the world by IPv6", at(far6, 80)); as != hostUp6.String() {
				t.Errorf("the world sees %s as %s", g.vm.ID, as)
			}
			g.reaches("the name server", at(gw4, 53))
			g.reaches("the name server by IPv6", at(gw6, 53))
		}
		a.reaches("what lies beside a cloud's secrets", at(beside, 80))
		for _, secrets := range metadata {
			a.cannotReach("a cloud's secrets", at(netip.MustParseAddr(secrets), 80))
		}
		e.cannotReach("the world although isolated", at(far4, 80))
		e.cannotReach("the world by IPv6 although isolated", at(far6, 80))
		e.reaches("the name server", at(gw4, 53))

		a.reaches("an exposed port", at(gw4, 8080))
		a.reaches("an exposed port by IPv6", at(gw6, 8080))
		a.cannotReach("an exposed port elsewhere", at(hostUp4, 8080))
		b.cannotReach("another's exposed port", at(gw4, 8080))
		b.cannotReach("another's exposed port by IPv6", at(gw6, 8080))
		b.cannotReach("the host's address outside", at(hostUp4, 8080))
		b.cannotReach("the host's IPv6 address outside", at(hostUp6, 8080))
		b.cannotReach("names at the host's address outside", at(hostUp4, 53))

		a.cannotReach("a stranger", at(b.ip4(), 22))
		a.cannotReach("a stranger by IPv6", at(b.ip6(), 22))
		c.cannotReach("a stranger from a network", at(a.ip4(), 22))
		a.cannotReach("a network from outside", at(c.ip4(), 22))
		c.cannotReach("another network", at(e.ip4(), 22))
		c.cannotReach("another network by IPv6", at(e.ip6(), 22))
		if as := c.reaches("its network", at(d.ip4(), 22)); as != c.ip4().String() {
			t.Errorf("its network sees c as %s", as)
		}
		d.reaches("its network by IPv6", at(c.ip6(), 22))

		for _, to := range []netip.AddrPort{at(a.ip4(), 22), at(e.ip6(), 22)} {
			conn, err := net.DialTimeout("tcp", to.String(), 5*time.Second)
			if err != nil {
				t.Errorf("the host does not reach %s: %v", to, err)
				continue
			}
			_ = conn.Close()
		}
	}
	check(t)

	t.Run("bridged frames past the other families", func(t *testing.T) {
		bridgeOnly(t)
		check(t)
	})
	t.Run("synced twice", func(t *testing.T) {
		for range 2 {
			if err := w.s.syncRules(t.Context(), w.s.current()); err != nil {
				t.Fatal(err)
			}
		}
		check(t)
	})
	t.Run("restarted", func(t *testing.T) {
		w.restart(a.vm, b.vm, c.vm, d.vm, e.vm)
		check(t)
	})
	t.Run("attached again", func(t *testing.T) {
		for _, g := range []*guest{a, c, e} {
			if again := w.attach(g.vm); again.Tap != g.Tap || again.MAC.String() != g.MAC.String() {
				t.Errorf("%s is at %+v, was at %+v", g.vm.ID, again, g.Attachment)
			}
		}
		check(t)
	})
	t.Run("rules flushed by somebody", func(t *testing.T) {
		if err := tableFor(w.deps.Bridge).Remove(); err != nil {
			t.Fatal(err)
		}
		// The bridge's own isolation holds meanwhile.
		a.cannotReach("a stranger without rules, in the link", at(b.ip4(), 22))
		w.waiting.Wait()
		x := w.boot(VM{ID: "x"})
		check(t)
		x.Close()
		w.must(w.s.Detach(t.Context(), "x"))
	})
	t.Run("names not answered", func(t *testing.T) {
		// Somebody else has the port: what listens on all addresses here.
		w.must(w.s.AnswerNames(t.Context(), []netip.Addr{gw4}, false))
		a.cannotReach("whoever has the name server's port", at(gw4, 53))
		a.reaches("the name server by IPv6", at(gw6, 53))
		w.waiting.Wait()
		w.must(w.s.Close())
		w.s = New(w.deps)
		_, err := w.s.Restore(t.Context(), []VM{a.vm, b.vm, c.vm, d.vm, e.vm})
		w.must(err)
		a.cannotReach("a name server that has not said so", at(gw4, 53))
		e.cannotReach("it by IPv6", at(gw6, 53))
		w.waiting.Wait()
		w.answerNames()
		check(t)
	})
	removed := func() {
		link, err := netlink.LinkByName(w.deps.Bridge)
		w.must(err)
		w.must(netlink.LinkDel(link))
	}
	t.Run("bridge removed by somebody", func(t *testing.T) {
		removed()
		x := w.boot(VM{ID: "x"})
		check(t)
		x.reaches("the world", at(far4, 80))
		x.cannotReach("a stranger", at(a.ip4(), 22))
		w.waiting.Wait()
		x.Close()
		w.must(w.s.Detach(t.Context(), "x"))
	})
	t.Run("bridge removed while no daemon ran", func(t *testing.T) {
		removed()
		w.restart(a.vm, b.vm, c.vm, d.vm, e.vm)
		check(t)
	})
	for _, g := range []*guest{a, b, c, d, e} {
		g.Close()
		w.must(w.s.Release(t.Context(), g.vm.ID))
	}
}

// bridgeOnly keeps bridged frames, for the test, from the rules of the other families,
// which otherwise see them where the host has br_netfilter.
func bridgeOnly(t *testing.T) {
	t.Helper()
	files, _ := filepath.Glob("/proc/sys/net/bridge/bridge-nf-call-*")
	for _, file := range files {
		was, err := os.ReadFile(file)
		if err == nil {
			err = os.WriteFile(file, []byte("0"), 0)
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.WriteFile(file, was, 0) })
	}
}

// What a VM may reach is changed while it runs, and ends what is under way.
func TestPermissionsChangeUnderWay(t *testing.T) {
	w := newWorld(t)
	g := w.boot(VM{ID: "a", Expose: []uint16{7}})
	world, host := w.talk(g, w.uplink, at(far4, 7)), w.talk(g, here{}, at(g.Gateways[0], 7))
	for _, c := range []*talk{world, host} {
		c.hears("at first")
	}
	// A connection survives a whole new ruleset, and a daemon's restart.
	w.restart(g.vm)
	for _, c := range []*talk{world, host} {
		c.hears("after a restart")
	}
	w.attach(VM{ID: "a", Isolated: true})
	for _, c := range []*talk{world, host} {
		c.hearsNot("although isolated, and with no port exposed")
	}
	g.Close()
	w.must(w.s.Release(t.Context(), "a"))
}

// talk is a connection that a guest has made.
type talk struct {
	t           *testing.T
	guest, peer net.Conn
}

func (w *world) talk(g *guest, on doer, to netip.AddrPort) *talk {
	w.t.Helper()
	var l net.Listener
	w.must(on.Do(func() (err error) {
		l, err = net.Listen("tcp", to.String())
		return err
	}))
	c := &talk{t: w.t}
	w.must(g.Do(func() (err error) {
		c.guest, err = net.DialTimeout("tcp", to.String(), 5*time.Second)
		return err
	}))
	var err error
	c.peer, err = l.Accept()
	w.must(err)
	w.t.Cleanup(func() { _ = errors.Join(c.guest.Close(), c.peer.Close(), l.Close()) })
	return c
}

func (c *talk) say(text string, wait time.Duration) (heard string, err error) {
	c.t.Helper()
	if _, err := io.WriteString(c.guest, text); err != nil {
		return "", err
	}
	_ = c.peer.SetReadDeadline(time.Now().Add(wait))
	b := make([]byte, 100)
	n, err := c.peer.Read(b)
	return string(b[:n]), err
}

func (c *talk) hears(text string) {
	c.t.Helper()
	if heard, err := c.say(text, 10*time.Second); heard != text {
		c.t.Errorf("%s heard %q, %v, want %q", c.peer.LocalAddr(), heard, err, text)
	}
}

func (c *talk) hearsNot(text string) {
	c.t.Helper()
	if heard, err := c.say(text, patience); err == nil {
		c.t.Errorf("%s heard %q", c.peer.LocalAddr(), heard)
	}
}

// The next VM with an address is not sent what the one before it asked for.
func TestAddressIsGivenAwayWithoutItsConnections(t *testing.T) {
	w := newWorld(t)
	for i, end := range []struct {
		name string
		of   func(old *guest)
	}{
		{"released", func(old *guest) { w.must(w.s.Release(t.Context(), "old")) }},
		{"lost while no daemon ran", func(old *guest) {
			w.restart()
			w.must(w.s.Release(t.Context(), "old"))
		}},
	} {
		t.Run(end.name, func(t *testing.T) {
			old := w.boot(VM{ID: "old"})
			var late []func(string)
			for _, to := range []netip.Addr{far4, far6} {
				late = append(late, w.ask(old, at(to, uint16(9000+i))))
			}
			kept := len(connections(t, old.all()))
			old.Close()
			end.of(old)
			if left := connections(t, old.all()); kept < 2 || len(left) > 0 {
				t.Errorf("the kernel keeps %v, kept %d at first", left, kept)
			}
			next := w.boot(VM{ID: "new"})
			if next.ip4() != old.ip4() {
				t.Fatalf("the next VM is at %s, the one before was at %s", next.ip4(), old.ip4())
			}
			nettest.AwaitUp(t, next.Tap)
			for n, own := range next.Addresses {
				conn := w.listen(next, at(own.Addr(), uint16(9000+i)))
				late[n]("for the one before")
				if text := w.tell(conn, "the end"); text != "the end" {
					t.Errorf("the next VM hears %q", text)
				}
			}
			next.Close()
			w.must(w.s.Release(t.Context(), "new"))
		})
	}
}

// connections lists those that the kernel knows with one of the addresses.
func connections(t *testing.T, addrs []netip.Addr) (found []string) {
	t.Helper()
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		all, err := netlink.ConntrackTableList(netlink.ConntrackTable, family)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range all {
			for _, ip := range []net.IP{f.Forward.SrcIP, f.Forward.DstIP, f.Reverse.SrcIP, f.Reverse.DstIP} {
				if a, ok := netip.AddrFromSlice(ip); ok && slices.Contains(addrs, a.Unmap()) {
					found = append(found, f.String())
					break
				}
			}
		}
	}
	return found
}

// listen opens a port of a guest's.
func (w *world) listen(g *guest, on netip.AddrPort) (conn net.PacketConn) {
	w.t.Helper()
	w.must(g.Do(func() (err error) {
		conn, err = net.ListenPacket("udp", on.String())
		return err
	}))
	w.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// tell sends a datagram from the host to a guest's port, again while it is lost, and
// returns what the guest hears there first.
func (w *world) tell(to net.PacketConn, text string) (heard string) {
	w.t.Helper()
	conn, err := net.Dial("udp", to.LocalAddr().String())
	w.must(err)
	defer func() { _ = conn.Close() }()
	for range 20 {
		_, err = io.WriteString(conn, text)
		w.must(err)
		if heard, err = hear(to, patience); !errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
	}
	w.must(err)
	return heard
}

func hear(conn net.PacketConn, wait time.Duration) (string, error) {
	_ = conn.SetReadDeadline(time.Now().Add(wait))
	b := make([]byte, 100)
	n, _, err := conn.ReadFrom(b)
	return string(b[:n]), err
}

// ask sends a datagram from a guest to the other machine, which answers; answer sends
// another one by the same way.
func (w *world) ask(g *guest, to netip.AddrPort) (answer func(text string)) {
	w.t.Helper()
	var far, near net.PacketConn
	w.must(w.uplink.Do(func() (err error) {
		far, err = net.ListenPacket("udp", to.String())
		return err
	}))
	w.t.Cleanup(func() { _ = far.Close() })
	w.must(g.Do(func() (err error) {
		if near, err = net.ListenPacket("udp", fmt.Sprintf(":%d", to.Port())); err != nil {
			return err
		}
		_, err = near.WriteTo([]byte("a question"), net.UDPAddrFromAddrPort(to))
		return err
	}))
	defer func() { _ = near.Close() }()
	_ = far.SetReadDeadline(time.Now().Add(10 * time.Second))
	_, from, err := far.ReadFrom(make([]byte, 100))
	w.must(err)
	answer = func(text string) {
		_, err := far.WriteTo([]byte(text), from)
		w.must(err)
	}
	answer("an answer")
	if heard, err := hear(near, 10*time.Second); heard != "an answer" {
		w.t.Errorf("%s heard %q, %v", g.vm.ID, heard, err)
	}
	return answer
}
