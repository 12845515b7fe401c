package vmdns

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/miekg/dns"
)

// gap judges a name of an address that no view has. One of the guests' prefixes is
// ours, and nobody else is to be asked about it: whoever that is may know VMs that the
// asker does not see. There is nothing at the name of a whole address; shorter ones
// have names below them. top is the name of the zone it lies in.
func (z *zone) gap(name string) (n node, found bool, top string, ours bool) {
	p, below, ok := addressOf(name)
	if !ok {
		return n, false, "", false
	}
	for _, guests := range z.reverse {
		// Zones end at a label, which may be ahead of where the prefix does.
		label, suffix := 8, 2
		if guests.Addr().Is6() {
			label = 4
		}
		labels := guests.Bits() / label
		if !p.Overlaps(guests) || p.Bits() < labels*label {
			continue
		}
		at := dns.Split(name)
		top = name[at[len(at)-labels-suffix]:]
		return node{apex: name == top}, !below && !p.IsSingleIP(), top, true
	}
	return n, false, "", false
}

// addressOf reads as much of an address as the name of one has, from its end. below
// says that it goes on with what is no part of an address.
func addressOf(name string) (p netip.Prefix, below, ok bool) {
	if rest, v4 := strings.CutSuffix(name, ".in-addr.arpa."); v4 {
		var b [4]byte
		n, below := digits(rest, 10, len(b), func(i int, v byte) { b[i] = v })
		return netip.PrefixFrom(netip.AddrFrom4(b), 8*n), below, n > 0
	}
	if rest, v6 := strings.CutSuffix(name, ".ip6.arpa."); v6 {
		var b [16]byte
		n, below := digits(rest, 16, 2*len(b), func(i int, v byte) { b[i/2] |= v << (4 * (1 - i%2)) })
		return netip.PrefixFrom(netip.AddrFrom16(b), 4*n), below, n > 0
	}
	return p, false, false
}

// digits reads up to limit labels of a name from its end, each a byte in decimal or
// one digit in hex, and hands them to set. below: there are more labels.
func digits(name string, base, limit int, set func(i int, v byte)) (n int, below bool) {
	for more := true; more; n++ {
		label := name
		cut := strings.LastIndexByte(name, '.')
		if more = cut >= 0; more {
			name, label = name[:cut], name[cut+1:]
		}
		v, err := strconv.ParseUint(label, base, 8)
		if n == limit || err != nil || base == 16 && len(label) != 1 || base == 10 && label != strconv.Itoa(int(v)) {
			return n, true
		}
		set(n, byte(v))
	}
	return n, false
}
