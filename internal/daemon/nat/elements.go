package nat

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"golang.org/x/sys/unix"
)

// The sets and maps, by name. Those of the bridge table are keyed by tap.
const (
	setSource   = "source"   // tap . MAC: the frames a tap may send
	setSource4  = "source4"  // tap . IPv4 address: as sender, in IP and ARP
	setSource6  = "source6"  // tap . IPv6 address: as sender, and as what it says is its own
	mapNetwork  = "network"  // tap : network
	setMembers  = "members"  // network . tap
	setOutside4 = "outside4" // IPv4 addresses that may reach what lies beyond the host
	setOutside6 = "outside6"
	mapNetwork4 = "network4" // IPv4 address : network
	mapNetwork6 = "network6"
	setMembers4 = "members4" // network . IPv4 address
	setMembers6 = "members6"
	setService4 = "service4" // IPv4 address . protocol . port: what all guests reach
	setService6 = "service6"
	setGateway4 = "gateway4" // the host's own addresses on the bridge
	setGateway6 = "gateway6"
	setBegun4   = "begun4" // IPv4 address: how fast it begins connections
	setBegun6   = "begun6"
	setHeld4    = "held4" // IPv4 address: how many it has
	setHeld6    = "held6"
	setExposed4 = "exposed4" // guest . protocol . port: what one guest reaches at a gateway
	setExposed6 = "exposed6"
)

// elements holds what is to be put into sets, or taken out, by set.
type elements map[string][]nftables.SetElement

func (e elements) add(set string, parts ...[]byte) {
	e[set] = append(e[set], nftables.SetElement{Key: key(parts...)})
}

// key lays out the parts of a key, each filled up to whole words.
func key(parts ...[]byte) []byte {
	var k []byte
	for _, p := range parts {
		k = append(k, p...)
		k = append(k, make([]byte, (4-len(p)%4)%4)...)
	}
	return k
}

func (e elements) mapTo(m string, value uint32, k []byte) {
	e[m] = append(e[m], nftables.SetElement{Key: key(k), Val: mark(value)})
}

func mark(v uint32) []byte { return binaryutil.NativeEndian.PutUint32(v) }

// state adds what does not depend on the guests.
func (e elements) state(st State) {
	for _, g := range st.Gateways {
		if g.Is4() {
			e.add(setGateway4, g.AsSlice())
		} else {
			e.add(setGateway6, g.AsSlice())
		}
	}
	for _, s := range st.Services {
		set, proto := setService4, byte(unix.IPPROTO_TCP)
		if s.Addr.Addr().Is6() {
			set = setService6
		}
		if s.UDP {
			proto = unix.IPPROTO_UDP
		}
		e.add(set, s.Addr.Addr().AsSlice(), []byte{proto}, be16(s.Addr.Port()))
	}
}

// guest adds all that the rules know of a guest.
func (e elements) guest(g Guest) {
	tap, linkLocal := ifname(g.Tap), LinkLocal(g.MAC).AsSlice()
	e.add(setSource, tap, g.MAC)
	e.add(setSource4, tap, g.IPv4.AsSlice())
	e.add(setSource6, tap, g.IPv6.AsSlice())
	e.add(setSource6, tap, linkLocal)
	if g.Outbound {
		e.add(setOutside4, g.IPv4.AsSlice())
		e.add(setOutside6, g.IPv6.AsSlice())
	}
	if g.Network != 0 {
		e.mapTo(mapNetwork, g.Network, tap)
		e.mapTo(mapNetwork4, g.Network, g.IPv4.AsSlice())
		e.mapTo(mapNetwork6, g.Network, g.IPv6.AsSlice())
		e.mapTo(mapNetwork6, g.Network, linkLocal)
		e.add(setMembers, mark(g.Network), tap)
		e.add(setMembers4, mark(g.Network), g.IPv4.AsSlice())
		e.add(setMembers6, mark(g.Network), g.IPv6.AsSlice())
		e.add(setMembers6, mark(g.Network), linkLocal)
	}
	ports := slices.Clone(g.Ports)
	slices.Sort(ports)
	for _, port := range slices.Compact(ports) {
		for _, proto := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
			e.add(setExposed4, g.IPv4.AsSlice(), []byte{proto}, be16(port))
			e.add(setExposed6, g.IPv6.AsSlice(), []byte{proto}, be16(port))
		}
	}
}

// LinkLocal is the IPv6 address that a kernel derives from a hardware address.
func LinkLocal(mac net.HardwareAddr) netip.Addr {
	a := [16]byte{0: 0xfe, 1: 0x80, 11: 0xff, 12: 0xfe}
	copy(a[8:], mac[:3])
	copy(a[13:], mac[3:])
	a[8] ^= 2
	return netip.AddrFrom16(a)
}

// change sends the elements of every set, in the order of the sets' names and in
// messages that the kernel can take.
func (r *refs) change(send func(*nftables.Set, []nftables.SetElement) error, e elements) error {
	for _, name := range setNames {
		for chunk := range slices.Chunk(e[name], maxElements) {
			if err := send(r.sets[name], chunk); err != nil {
				return fmt.Errorf("put together elements of set %s: %w", name, err)
			}
		}
	}
	return nil
}
