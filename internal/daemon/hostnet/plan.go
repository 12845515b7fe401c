package hostnet

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"net"
	"net/netip"
	"slices"

	"banger/internal/daemon/tapdev"
	"banger/internal/errdefs"
	"banger/internal/model"
)

// plan is a Record with what follows from it. Its Bridge is the one that is up, and
// only while none is, the one that is configured.
type plan struct {
	Record
	mac   net.HardwareAddr // of the bridge
	alias string           // of the bridge and the taps
	// fresh says that there was no bridge: failing now means to take all away again.
	fresh bool
	added int // how many of Settings are of this time
}

// planOf derives a plan from a record that has an ID; bridge is the configured one.
func planOf(r Record, bridge string) *plan {
	if !r.Up || r.Bridge == "" {
		r.Bridge = bridge
	}
	sum := sha256.Sum256([]byte(r.ID + " " + r.Bridge))
	// Locally administered, and of another kind than those of guests.
	mac := append(net.HardwareAddr{0x06, 'b'}, sum[:4]...)
	return &plan{Record: r, mac: mac, alias: model.LinkOwner + r.ID}
}

// newRecord makes what is random about a host.
func newRecord() Record {
	var b [13]byte
	_, _ = rand.Read(b[:]) // it does not fail
	ula := [16]byte{0: 0xfd}
	copy(ula[1:6], b[8:])
	return Record{ID: hex.EncodeToString(b[:8]), Prefix6: netip.PrefixFrom(netip.AddrFrom16(ula), 64)}
}

// gateways are the host's addresses among the guests: the first of the prefix, for
// IPv4 and IPv6.
func (p *plan) gateways() []netip.Addr {
	gw := p.Prefix4.Masked().Addr().Next()
	return []netip.Addr{gw, p.ip6(gw)}
}

// addresses are what a guest with that IPv4 address has.
func (p *plan) addresses(a netip.Addr) []netip.Prefix {
	return []netip.Prefix{netip.PrefixFrom(a, p.Prefix4.Bits()), netip.PrefixFrom(p.ip6(a), p.Prefix6.Bits())}
}

// ip6 puts an IPv4 address into the IPv6 prefix: one allocation serves for both.
func (p *plan) ip6(a netip.Addr) netip.Addr {
	b, v4 := p.Prefix6.Addr().As16(), a.As4()
	copy(b[12:], v4[:])
	return netip.AddrFrom16(b)
}

// guestMAC is the hardware address that goes with an IPv4 address.
func guestMAC(a netip.Addr) net.HardwareAddr {
	v4 := a.As4()
	return append(net.HardwareAddr{0x02, 'b'}, v4[:]...)
}

// allocate returns the lowest address of the prefix that is not used. The first is
// the gateway's; the last is for everybody.
func allocate(prefix netip.Prefix, used []netip.Addr) (netip.Addr, error) {
	taken := make(map[netip.Addr]bool, len(used))
	for _, a := range used {
		taken[a] = true
	}
	last := lastOf(prefix)
	for a := prefix.Masked().Addr().Next().Next(); a.Less(last); a = a.Next() {
		if !taken[a] {
			return a, nil
		}
	}
	return netip.Addr{}, errdefs.Exhausted("all addresses of %s are in use, by %d VMs", prefix, len(used)).
		WithHint("delete VMs that are not needed, or set a larger network.prefix in the config")
}

// lastOf is the highest address of an IPv4 prefix.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().As4()
	n := binary.BigEndian.Uint32(b[:]) | ^uint32(0)>>p.Bits()
	binary.BigEndian.PutUint32(b[:], n)
	return netip.AddrFrom4(b)
}

// overlapping returns a route into or around the prefix, other than through the
// bridge itself.
func overlapping(prefix netip.Prefix, routes []tapdev.Route, bridge string) (tapdev.Route, bool) {
	i := slices.IndexFunc(routes, func(r tapdev.Route) bool { return r.Device != bridge && r.To.Overlaps(prefix) })
	if i < 0 {
		return tapdev.Route{}, false
	}
	return routes[i], true
}

// checkPrefix refuses a prefix that hosts are reached in already: those would be cut
// off, and with them perhaps whoever runs this.
func checkPrefix(prefix netip.Prefix, routes []tapdev.Route, bridge string) error {
	r, bad := overlapping(prefix, routes, bridge)
	if !bad {
		return nil
	}
	through := "of no device"
	if r.Device != "" {
		through = "through " + r.Device
	}
	return errdefs.Precondition("network prefix %s overlaps the route to %s %s", prefix, r.To, through).
		WithHint("set network.prefix in the config to a private prefix that is in use nowhere near, or to auto")
}

// autoPrefix finds a /16 that no route overlaps. Where it begins to look depends on
// the host: two hosts, one perhaps a guest of the other, seldom want the same.
func autoPrefix(id string, routes []tapdev.Route, bridge string) (netip.Prefix, error) {
	sum := sha256.Sum256([]byte(id))
	for i := range 240 {
		// 10.0 to 10.15 are what people choose by hand.
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 16 + byte((int(sum[0])+i)%240)}), 16)
		if _, bad := overlapping(p, routes, bridge); !bad {
			return p, nil
		}
	}
	// A tunnel may claim all of 10.0.0.0/8. Docker takes 172.17 to 172.20 by itself.
	for second := byte(31); second > 20; second-- {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{172, second}), 16)
		if _, bad := overlapping(p, routes, bridge); !bad {
			return p, nil
		}
	}
	return netip.Prefix{}, errdefs.Precondition("routes of this host lead to all private networks").
		WithHint("set network.prefix in the config to one of them that is in fact free")
}
