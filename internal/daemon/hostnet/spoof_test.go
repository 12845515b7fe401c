package hostnet

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"banger/internal/daemon/nat"
	"banger/internal/daemon/tapdev"
	"banger/internal/nettest"
)

// wire is a tap that is open without a guest: the test writes the frames itself.
type wire struct {
	*testing.T
	Attachment
	f  *os.File
	gw net.HardwareAddr
}

func (w *world) wire(vm VM) *wire {
	w.t.Helper()
	a := w.attach(vm)
	f, err := tapdev.OpenTap(a.Tap, false)
	w.must(err)
	w.t.Cleanup(func() { _ = f.Close() })
	nettest.AwaitUp(w.t, a.Tap)
	return &wire{T: w.t, Attachment: a, f: f, gw: w.s.current().mac}
}

// all is every address that its VM may use.
func (x *wire) all() []netip.Addr {
	return []netip.Addr{x.Addresses[0].Addr(), x.Addresses[1].Addr(), nat.LinkLocal(x.MAC)}
}

func (x *wire) send(frames ...[]byte) {
	x.Helper()
	for _, f := range frames {
		if _, err := x.f.Write(f); err != nil {
			x.Fatal(err)
		}
	}
}

// until reads frames from the tap up to one with that text, and fails on one with
// another of the texts.
func (x *wire) until(last string, never ...string) {
	x.Helper()
	buf := make([]byte, 2048)
	_ = x.f.SetReadDeadline(time.Now().Add(10 * time.Second))
	for {
		n, err := x.f.Read(buf)
		if err != nil {
			x.Fatalf("read until %q on %s: %v", last, x.Tap, err)
		}
		for _, text := range never {
			if bytes.Contains(buf[:n], []byte(text)) {
				x.Errorf("tap %s was sent %q", x.Tap, text)
			}
		}
		if bytes.Contains(buf[:n], []byte(last)) {
			return
		}
	}
}

// What a VM sends under another's name is dropped, and what follows it on the same
// tap under its own name arrives: the drop needs no waiting for.
func TestSpoofedFramesAreDropped(t *testing.T) {
	w := newWorld(t)
	a, b := w.wire(VM{ID: "a"}), w.wire(VM{ID: "b"})
	ours4, ours6 := a.Addresses[0].Addr(), a.Addresses[1].Addr()
	theirs4, theirs6 := b.Addresses[0].Addr(), b.Addresses[1].Addr()
	gw4, gw6 := a.Gateways[0], a.Gateways[1]
	free4, free6 := netip.MustParseAddr("203.0.113.9"), netip.MustParseAddr("2001:db8:5::9")
	names := func(gw netip.Addr) netip.AddrPort { return at(gw, 53) }
	host, err := net.ListenUDP("udp", &net.UDPAddr{Port: 53})
	w.must(err)
	defer func() { _ = host.Close() }()
	hears := func(text string) {
		t.Helper()
		buf := make([]byte, 100)
		_ = host.SetReadDeadline(time.Now().Add(10 * time.Second))
		n, from, err := host.ReadFromUDPAddrPort(buf)
		if err != nil || string(buf[:n]) != text {
			t.Errorf("the host heard %q from %s (%v), want %q", buf[:n], from, err, text)
		}
	}
	gw := a.gw
	a.send(
		nettest.UDP(gw, b.MAC, names(gw4), at(ours4, 9), "with another's MAC"),
		nettest.UDP(gw, b.MAC, names(gw4), at(theirs4, 9), "with another's MAC and address"),
		nettest.UDP(gw, a.MAC, names(gw4), at(theirs4, 9), "with another's address"),
		nettest.UDP(gw, a.MAC, names(gw4), at(gw4, 9), "with the host's address"),
		nettest.UDP(gw, a.MAC, names(gw4), at(free4, 9), "with an address of nobody"),
		nettest.UDP(gw, a.MAC, names(gw4), at(netip.IPv4Unspecified(), 9), "without an address"),
		nettest.UDP(gw, a.MAC, names(gw6), at(theirs6, 9), "with another's IPv6 address"),
		nettest.UDP(gw, a.MAC, names(gw6), at(free6, 9), "with an IPv6 address of nobody"),
		nettest.UDP(gw, a.MAC, names(gw6), at(netip.MustParseAddr("fe80::1"), 9), "with a link-local address of nobody"),
		nettest.Ethernet(gw, a.MAC, 0x88a8, []byte("with a tag")),
		nettest.UDP(gw, a.MAC, names(gw4), at(ours4, 9), "honest"),
	)
	hears("honest")
	a.send(nettest.UDP(gw, a.MAC, names(gw6), at(ours6, 9), "honest by IPv6"))
	hears("honest by IPv6")

	// Who is where: ARP and its IPv6 sibling, towards the host.
	a.send(
		nettest.ARP(gw, a.MAC, 2, a.MAC, theirs4, gw4),
		nettest.ARP(gw, a.MAC, 2, b.MAC, ours4, gw4),
		nettest.ARP(gw, a.MAC, 1, a.MAC, free4, gw4),
		nettest.ICMP6(gw, a.MAC, gw6, ours6, advert(theirs6, a.MAC)),
		nettest.ICMP6(gw, a.MAC, gw6, ours6, advert(gw6, a.MAC)),
		nettest.UDP(gw, a.MAC, names(gw4), at(ours4, 9), "after"),
	)
	hears("after")
	neighbors, err := netlink.NeighList(0, 0)
	w.must(err)
	for _, n := range neighbors {
		ip, _ := netip.AddrFromSlice(n.IP)
		if ip = ip.Unmap(); (ip == theirs4 || ip == theirs6 || ip == free4) && n.HardwareAddr.String() == a.MAC.String() {
			t.Errorf("the host believes that %s is at %s", ip, a.MAC)
		}
	}

	// A frame that bridges take for themselves is seen by no firewall. It must teach
	// the bridge nothing: what is for b goes to b.
	a.send(nettest.Ethernet(net.HardwareAddr{1, 0x80, 0xc2, 0, 0, 0xe}, b.MAC, 0x88cc, make([]byte, 60)))
	link, err := netlink.LinkByName(w.deps.Bridge)
	w.must(err)
	for g, text := range map[*wire]string{a: "for a", b: "for b"} {
		w.must(netlink.NeighSet(&netlink.Neigh{LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: g.Addresses[0].Addr().AsSlice(), HardwareAddr: g.MAC}))
		conn, err := net.Dial("udp", at(g.Addresses[0].Addr(), 9).String())
		w.must(err)
		defer func() { _ = conn.Close() }()
		_, err = conn.Write([]byte(text))
		w.must(err)
	}
	b.until("for b")
	a.until("for a", "for b")

	// A tap that was given back lets nothing in, whoever opens it.
	_ = a.f.Close()
	w.must(w.s.Detach(t.Context(), "a"))
	a.f, err = tapdev.OpenTap(a.Tap, false)
	w.must(err)
	nettest.AwaitUp(t, a.Tap)
	a.send(nettest.UDP(gw, a.MAC, names(gw4), at(ours4, 9), "after the end"))
	b.send(nettest.UDP(gw, b.MAC, names(gw4), at(theirs4, 9), "still here"))
	hears("still here")
	for _, g := range []*wire{a, b} {
		_ = g.f.Close()
	}
	for _, id := range []string{"a", "b"} {
		w.must(w.s.Release(t.Context(), id))
	}
}

// Frames from tap to tap: none between strangers, and within a network only
// what bears the sender's name, whichever of its addresses it goes to and whether the
// bridge carries it or the host sends it back to where it came from.
func TestFramesBetweenTaps(t *testing.T) {
	w := newWorld(t)
	a, n := w.wire(VM{ID: "a"}), w.wire(VM{ID: "n", Isolated: true})
	c, d := w.wire(VM{ID: "c", Network: "lab"}), w.wire(VM{ID: "d", Network: "lab"})
	x := w.wire(VM{ID: "x", Network: "other"})
	everybody := net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	to := at(netip.MustParseAddr("255.255.255.255"), 9)
	all := []*wire{a, n, c, d, x}
	link, err := netlink.LinkByName(w.deps.Bridge)
	w.must(err)
	for _, g := range all {
		for _, own := range g.all() {
			w.must(netlink.NeighSet(&netlink.Neigh{LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: own.AsSlice(), HardwareAddr: g.MAC}))
		}
	}
	for _, g := range all {
		text := "from " + g.Tap
		g.send(nettest.UDP(everybody, g.MAC, to, at(g.Addresses[0].Addr(), 9), text+" to all"))
		for _, o := range all {
			for _, its := range o.all() {
				for _, own := range g.all() {
					if its.Is4() == own.Is4() {
						g.send(nettest.UDP(o.MAC, g.MAC, at(its, 9), at(own, 9), text+" to "+its.String()),
							nettest.UDP(g.gw, g.MAC, at(its, 9), at(own, 9), text+" by way of the host"))
					}
				}
			}
		}
	}
	// d claims the gateway's addresses within its network.
	claim6 := advert(c.Gateways[1], d.MAC)
	d.send(nettest.ARP(c.MAC, d.MAC, 2, d.MAC, c.Gateways[0], c.Addresses[0].Addr()),
		nettest.ICMP6(c.MAC, d.MAC, c.Addresses[1].Addr(), d.Addresses[1].Addr(), claim6))
	gateway, gateway6 := string(append(append([]byte{}, d.MAC...), c.Gateways[0].AsSlice()...)), string(claim6[8:])
	for _, g := range all {
		conn, err := net.Dial("udp", at(g.Addresses[0].Addr(), 9).String())
		w.must(err)
		defer func() { _ = conn.Close() }()
		_, err = conn.Write([]byte("the end"))
		w.must(err)
	}
	a.until("the end", "from "+n.Tap, "from "+c.Tap, "from "+d.Tap, "from "+x.Tap)
	n.until("the end", "from "+a.Tap, "from "+c.Tap, "from "+d.Tap, "from "+x.Tap)
	x.until("the end", "from "+a.Tap, "from "+n.Tap, "from "+c.Tap, "from "+d.Tap)
	c.until("from "+d.Tap+" to all", "from "+a.Tap, "from "+n.Tap, "from "+x.Tap)
	for _, own := range c.all() {
		c.until("from "+d.Tap+" to "+own.String(), "from "+a.Tap, "from "+n.Tap, "from "+x.Tap)
	}
	c.until("the end", "from "+a.Tap, "from "+n.Tap, "from "+x.Tap, gateway, gateway6)
	for _, g := range all {
		_ = g.f.Close()
	}
	for _, id := range []string{"a", "n", "c", "d", "x"} {
		w.must(w.s.Release(t.Context(), id))
	}
}

// A guest that asks as multicast routers do who wants which group does not make the
// bridge keep from the others what they did not ask for: how they find each other.
func TestMulticastQuerierChangesNothing(t *testing.T) {
	w := newWorld(t)
	c, d := w.wire(VM{ID: "c", Network: "lab"}), w.wire(VM{ID: "d", Network: "lab"})
	everybody, allNodes := net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, netip.MustParseAddr("ff02::1")
	query := append([]byte{130, 0, 0, 0, 0, 1, 0, 0}, make([]byte, 16)...) // to be answered within 1 ms
	query = nettest.ICMP6(everybody, d.MAC, allNodes, nat.LinkLocal(d.MAC), query)[14+40:]
	alert := []byte{unix.IPPROTO_ICMPV6, 0, 5, 2, 0, 0, 1, 0}
	d.send(nettest.Ethernet(everybody, d.MAC, unix.ETH_P_IPV6, nettest.IP(allNodes, nat.LinkLocal(d.MAC), 0, append(alert, query...))))

	own := c.Addresses[1].Addr().As16()
	node := netip.MustParseAddr("ff02::1:ff00:0").As16()
	copy(node[13:], own[13:])
	group := net.HardwareAddr{0x33, 0x33, 0xff, own[13], own[14], own[15]}
	// It would believe so after that millisecond only: this takes many.
	for i := range 1000 {
		text := fmt.Sprintf("who is there, %d?", i)
		d.send(nettest.ICMP6(group, d.MAC, netip.AddrFrom16(node), d.Addresses[1].Addr(), append(solicit(c.Addresses[1].Addr()), text...)))
		c.until(text)
	}
	for id, g := range map[string]*wire{"c": c, "d": d} {
		_ = g.f.Close()
		w.must(w.s.Release(t.Context(), id))
	}
}

// advert is an ICMPv6 message that says target is at mac.
func advert(target netip.Addr, mac net.HardwareAddr) []byte {
	m := append([]byte{136, 0, 0, 0, 0x60, 0, 0, 0}, target.AsSlice()...)
	return append(append(m, 2, 1), mac...)
}

// solicit is an ICMPv6 message that asks where target is.
func solicit(target netip.Addr) []byte {
	return append([]byte{135, 0, 0, 0, 0, 0, 0, 0}, target.AsSlice()...)
}
