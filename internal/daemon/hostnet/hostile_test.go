package hostnet

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"banger/internal/nettest"
)

// tapped hears every frame that a device of the host is handed.
func tapped(t *testing.T, device string) *os.File {
	t.Helper()
	link, err := netlink.LinkByName(device)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), device)
	t.Cleanup(func() { _ = f.Close() })
	all := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL))
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Attrs().Index}); err != nil {
		t.Fatal(err)
	}
	return f
}

// hears reads frames up to one with that mark, and returns all marks that were in those
// before it. A mark is "<…>", at the end of a frame; frames that cannot hold one are known
// by what they are, and marked by their name in bare.
func hears(t *testing.T, f *os.File, last string, bare map[string][]byte) (marks []string) {
	t.Helper()
	buf := make([]byte, 2048)
	_ = f.SetReadDeadline(time.Now().Add(10 * time.Second))
	for {
		n, err := f.Read(buf)
		if err != nil {
			t.Fatalf("wait for %s on %s: %v", last, f.Name(), err)
		}
		for name, frame := range bare {
			if bytes.Equal(buf[:n], frame) {
				marks = append(marks, "<"+name+">")
			}
		}
		at := bytes.LastIndexByte(buf[:n], '<')
		if at < 0 || buf[n-1] != '>' {
			continue // the kernel's own
		}
		mark := string(buf[at:n])
		if mark == last {
			return marks
		}
		marks = append(marks, mark)
	}
}

// Parts of IPv6 packets, each with the number of what follows.
func options(next byte) []byte { return []byte{next, 0, 1, 4, 0, 0, 0, 0} }

func fragment(next byte, offset uint16, more bool) []byte {
	h := []byte{next, 0, 0, 0, 0, 0, 0, 7}
	binary.BigEndian.PutUint16(h[2:], offset)
	if more {
		h[3] |= 1
	}
	return h
}

// What one guest may send to another and to the host is told from what it may not by
// all that it can make up: hardware addresses, IP addresses, who has which, what routers
// and DHCP servers say, tags, headers in front of headers, and fragments.
func TestHostileGuest(t *testing.T) {
	w := newWorld(t)
	bridgeOnly(t) // it takes fragments and trailers out of frames
	c, d := w.wire(VM{ID: "c", Network: "lab"}), w.wire(VM{ID: "d", Network: "lab"})
	host := tapped(t, w.deps.Bridge)
	own4, own6 := c.Addresses[0].Addr(), c.Addresses[1].Addr()
	free4, free6 := netip.MustParseAddr("203.0.113.9"), netip.MustParseAddr("2001:db8:5::9")
	everybody, allNodes := net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, netip.MustParseAddr("ff02::1")
	linkLocal := netip.MustParseAddr("fe80::" + fmt.Sprintf("%x:%xff:fe%02x:%x", uint16(c.MAC[0]^2)<<8|uint16(c.MAC[1]), c.MAC[2], c.MAC[3], uint16(c.MAC[4])<<8|uint16(c.MAC[5])))

	type target struct {
		name   string
		mac    net.HardwareAddr
		ip4    netip.Addr
		ip6    netip.Addr
		reader *os.File
	}
	targets := []target{
		{"the host", c.gw, c.Gateways[0], c.Gateways[1], host},
		{"a sibling", d.MAC, d.Addresses[0].Addr(), d.Addresses[1].Addr(), d.f},
	}
	for _, to := range targets {
		udp := func(dst, src net.HardwareAddr, to, from netip.AddrPort) []byte {
			return nettest.UDP(dst, src, to, from, "")
		}
		v6 := func(from netip.Addr, proto byte, parts ...[]byte) []byte {
			return nettest.Ethernet(to.mac, c.MAC, unix.ETH_P_IPV6, nettest.IP(to.ip6, from, proto, slices.Concat(parts...)))
		}
		tag := func(ethertype, id uint16, frame []byte) []byte {
			head := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(slices.Clone(frame[:12]), ethertype), id)
			return append(head, frame[12:]...)
		}
		honest4 := udp(to.mac, c.MAC, at(to.ip4, 9), at(own4, 9))
		honest6 := udp(to.mac, c.MAC, at(to.ip6, 9), at(own6, 9))
		datagram := honest6[14+40:]
		ra := []byte{134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0}
		redirect := append([]byte{137, 0, 0, 0, 0, 0, 0, 0}, make([]byte, 32)...)
		const hop, frag, dest, icmp6 = 0, 44, 60, 58

		evil := map[string][]byte{
			"another's MAC":          udp(to.mac, d.MAC, at(to.ip4, 9), at(own4, 9)),
			"the host's MAC":         udp(to.mac, c.gw, at(to.ip4, 9), at(own4, 9)),
			"another's IPv4":         udp(to.mac, c.MAC, at(to.ip4, 9), at(d.Addresses[0].Addr(), 9)),
			"the host's IPv4":        udp(to.mac, c.MAC, at(to.ip4, 9), at(c.Gateways[0], 9)),
			"nobody's IPv4":          udp(to.mac, c.MAC, at(to.ip4, 9), at(free4, 9)),
			"no IPv4":                udp(to.mac, c.MAC, at(to.ip4, 9), at(netip.IPv4Unspecified(), 9)),
			"another's IPv6":         udp(to.mac, c.MAC, at(to.ip6, 9), at(d.Addresses[1].Addr(), 9)),
			"the host's IPv6":        udp(to.mac, c.MAC, at(to.ip6, 9), at(c.Gateways[1], 9)),
			"nobody's IPv6":          udp(to.mac, c.MAC, at(to.ip6, 9), at(free6, 9)),
			"no IPv6":                udp(to.mac, c.MAC, at(to.ip6, 9), at(netip.IPv6Unspecified(), 9)),
			"another's IPv6, hidden": v6(d.Addresses[1].Addr(), dest, options(17), datagram),

			"ARP for another":        nettest.ARP(to.mac, c.MAC, 2, c.MAC, d.Addresses[0].Addr(), to.ip4),
			"ARP for the host":       nettest.ARP(everybody, c.MAC, 2, c.MAC, c.Gateways[0], c.Gateways[0]),
			"ARP asking as another":  nettest.ARP(everybody, c.MAC, 1, c.MAC, d.Addresses[0].Addr(), to.ip4),
			"ARP with another's MAC": nettest.ARP(to.mac, c.MAC, 2, d.MAC, own4, to.ip4),
			"ND for another":         nettest.ICMP6(to.mac, c.MAC, to.ip6, own6, advert(d.Addresses[1].Addr(), c.MAC)),
			"ND for the host":        nettest.ICMP6(to.mac, c.MAC, allNodes, own6, advert(c.Gateways[1], c.MAC)),
			"ND for another, hidden": v6(own6, hop, options(icmp6), advert(d.Addresses[1].Addr(), c.MAC)),
			"ND for another, deep":   v6(own6, hop, options(dest), options(icmp6), advert(d.Addresses[1].Addr(), c.MAC)),
			"ND for another, alone":  v6(own6, frag, fragment(icmp6, 0, false), advert(d.Addresses[1].Addr(), c.MAC)),
			"ND in fragments, more":  v6(own6, frag, fragment(icmp6, 0, true), advert(d.Addresses[1].Addr(), c.MAC)),
			"ND in fragments, 2nd":   v6(own6, frag, fragment(icmp6, 8, false), advert(d.Addresses[1].Addr(), c.MAC)[8:]),
			"asking as nobody":       nettest.ICMP6(to.mac, c.MAC, to.ip6, netip.IPv6Unspecified(), solicit(d.Addresses[1].Addr())),
			"ND behind a fragment":   v6(own6, frag, fragment(dest, 8, false), advert(d.Addresses[1].Addr(), c.MAC)),

			"a router":          nettest.ICMP6(to.mac, c.MAC, allNodes, linkLocal, ra),
			"a router, by ULA":  nettest.ICMP6(to.mac, c.MAC, to.ip6, own6, ra),
			"a router, hidden":  v6(linkLocal, hop, options(icmp6), ra),
			"a router, deep":    v6(linkLocal, dest, options(dest), options(icmp6), ra),
			"a router, alone":   v6(linkLocal, frag, fragment(icmp6, 0, false), ra),
			"a router in parts": v6(linkLocal, frag, fragment(icmp6, 0, true), ra),
			"a redirect":        nettest.ICMP6(to.mac, c.MAC, to.ip6, linkLocal, redirect),

			"DHCP server":         udp(to.mac, c.MAC, at(to.ip4, 68), at(own4, 67)),
			"DHCP server, to all": udp(everybody, c.MAC, at(netip.MustParseAddr("255.255.255.255"), 68), at(own4, 67)),
			"DHCPv6 server":       udp(to.mac, c.MAC, at(to.ip6, 546), at(own6, 547)),
			"DHCPv6 server, deep": v6(own6, hop, options(17), udp(to.mac, c.MAC, at(to.ip6, 546), at(own6, 547))[54:]),

			"VLAN":               tag(0x8100, 5, honest4),
			"VLAN, IPv6":         tag(0x8100, 5, honest6),
			"VLAN, ARP":          tag(0x8100, 5, nettest.ARP(to.mac, c.MAC, 2, c.MAC, own4, to.ip4)),
			"a priority":         tag(0x8100, 0, honest4),
			"VLAN of a provider": tag(0x88a8, 5, honest4),
			"VLAN in a VLAN":     tag(0x88a8, 5, tag(0x8100, 6, honest4)),
			"VLAN of another":    tag(0x8100, 5, udp(to.mac, d.MAC, at(to.ip4, 9), at(d.Addresses[0].Addr(), 9))),
			"a length":           nettest.Ethernet(to.mac, c.MAC, 60, append([]byte{0xaa, 0xaa, 3, 0, 0, 0, 8, 0}, honest4[14:]...)),
			"PPPoE":              nettest.Ethernet(to.mac, c.MAC, 0x8863, make([]byte, 40)),
		}
		// A mark behind these would be more of what they leave out.
		bare := map[string][]byte{
			"ND, short":               nettest.ICMP6(to.mac, c.MAC, to.ip6, own6, advert(d.Addresses[1].Addr(), c.MAC)[:8]),
			"ND in fragments":         v6(own6, frag, fragment(icmp6, 0, true), advert(d.Addresses[1].Addr(), c.MAC)[:8]),
			"a router in parts, 1st":  v6(linkLocal, frag, fragment(icmp6, 0, true), ra[:8]),
			"a router without a type": v6(linkLocal, frag, fragment(icmp6, 0, true)),
		}
		good := map[string][]byte{
			"IPv4":                                 honest4,
			"IPv6":                                 honest6,
			"IPv6, link-local":                     udp(to.mac, c.MAC, at(to.ip6, 9), at(linkLocal, 9)),
			"IPv6 with options":                    v6(own6, dest, options(17), datagram),
			"IPv6, first part":                     v6(own6, frag, fragment(17, 0, true), datagram),
			"IPv6, second part":                    v6(own6, frag, fragment(17, 8, false), make([]byte, 8)),
			"ARP":                                  nettest.ARP(to.mac, c.MAC, 2, c.MAC, own4, to.ip4),
			"ND":                                   nettest.ICMP6(to.mac, c.MAC, to.ip6, own6, advert(own6, c.MAC)),
			"ND, link-local":                       nettest.ICMP6(to.mac, c.MAC, to.ip6, linkLocal, advert(linkLocal, c.MAC)),
			"asking for its own place":             nettest.ICMP6(to.mac, c.MAC, to.ip6, netip.IPv6Unspecified(), solicit(own6)),
			"asking for its own place, link-local": nettest.ICMP6(to.mac, c.MAC, to.ip6, netip.IPv6Unspecified(), solicit(linkLocal)),
			"asking for another":                   nettest.ICMP6(to.mac, c.MAC, to.ip6, own6, solicit(d.Addresses[1].Addr())),
			"asking for a router":                  nettest.ICMP6(to.mac, c.MAC, to.ip6, linkLocal, []byte{133, 0, 0, 0, 0, 0, 0, 0}),
			"DHCP client":                          udp(to.mac, c.MAC, at(to.ip4, 67), at(own4, 68)),
		}
		var want []string
		for name, frame := range good {
			mark := "<" + name + ">"
			want = append(want, mark)
			c.send(append(slices.Clone(frame), mark...))
		}
		for name, frame := range evil {
			c.send(append(slices.Clone(frame), "<evil: "+name+">"...))
		}
		for _, frame := range bare {
			c.send(frame)
		}
		c.send(append(slices.Clone(honest4), "<the end>"...))
		got := hears(t, to.reader, "<the end>", bare)
		slices.Sort(want)
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s heard\n%q, want\n%q", to.name, got, want)
		}
	}
	for _, g := range []*wire{c, d} {
		_ = g.f.Close()
	}
	for _, id := range []string{"c", "d"} {
		w.must(w.s.Release(t.Context(), id))
	}
}
