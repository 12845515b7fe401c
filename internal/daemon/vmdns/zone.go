package vmdns

import (
	"maps"
	"net"
	"net/netip"
	"slices"

	"github.com/miekg/dns"
)

// apex is the top of the zone, as questions spell it.
const apex = Domain + "."

// ttl is how long an answer may be kept, in seconds: not at all. A VM comes and
// goes at any moment, and asking again costs a few microseconds.
const ttl = 0

// zone is what is true at one moment. It does not change.
type zone struct {
	all      view                 // of this host
	networks map[string]view      // of the VMs on each network
	askers   map[netip.Addr]asker // VMs, by their addresses
	none     view                 // of an address that is no VM's
	reverse  []netip.Prefix       // all names of these addresses are ours
	soa      dns.SOA
}

// view is the part of a zone that is seen from one place: its nodes by their
// names, in lower case and with the dot at the end. The name of an address that
// is known stands in it as well.
type view map[string]node

// asker is who asks.
type asker struct {
	view     view
	isolated bool
	counted  netip.Addr // the one of its addresses that it is counted by
}

// node is one name. Without any content it only has names below it.
type node struct {
	a, aaaa []net.IP
	ptr     string // name of the VM with the address that this name is of
	apex    bool   // has SOA and NS: it is the top of a zone
}

// known is a host as it is kept.
type known struct {
	Host
	alone view // what a VM of no network sees: itself
}

func newKnown(name string, h Host) known {
	k := known{Host: h}
	if h.Network == "" {
		k.alone = newView()
		k.alone.add(name, h)
	}
	return k
}

// newZone makes the zone of these hosts.
func newZone(hosts map[string]known, reverse []netip.Prefix, serial uint32) *zone {
	z := &zone{
		all: newView(), networks: map[string]view{}, askers: map[netip.Addr]asker{}, none: newView(), reverse: reverse,
		// As RFC 6303 has it for zones that exist locally only. The mailbox is
		// what Check knows a bangerd by.
		soa: dns.SOA{Ns: apex, Mbox: mailbox, Serial: serial, Refresh: 3600, Retry: 1200, Expire: 604800, Minttl: ttl},
	}
	// In the order of names: should two have one address, the same one is always
	// its owner.
	for _, name := range slices.Sorted(maps.Keys(hosts)) {
		h := hosts[name]
		z.all.add(name, h.Host)
		own := h.alone
		if h.Network != "" {
			if z.networks[h.Network] == nil {
				z.networks[h.Network] = newView()
			}
			own = z.networks[h.Network]
			own.add(name, h.Host)
		}
		for _, a := range h.Addrs {
			if _, taken := z.askers[a]; !taken {
				z.askers[a] = asker{own, h.Isolated, h.Addrs[0]}
			}
		}
	}
	return z
}

// askedBy returns the VM with that address; known is false, and nothing seen, when there
// is none.
func (z *zone) askedBy(a netip.Addr) (who asker, known bool) {
	if who, known = z.askers[a]; !known {
		who.view = z.none
	}
	return who, known
}

// counted is the address that stands for whoever asks from a.
func (z *zone) counted(a netip.Addr) netip.Addr {
	if who, known := z.askers[a]; known {
		return who.counted
	}
	return a
}

func newView() view { return view{apex: {apex: true}} }

// add makes the nodes of one VM.
func (v view) add(name string, h Host) {
	own := name + "." + apex
	n := v[own] // there already when a network has this VM's name
	for _, a := range h.Addrs {
		if a.Is4() {
			n.a = append(n.a, a.AsSlice())
		} else {
			n.aaaa = append(n.aaaa, a.AsSlice())
		}
		// An error is one of a malformed address, which this is not.
		reverse, _ := dns.ReverseAddr(a.String())
		if _, taken := v[reverse]; !taken {
			v[reverse] = node{ptr: own, apex: true}
		}
	}
	v[own] = n
	if h.Network != "" {
		network := h.Network + "." + apex
		if _, taken := v[network]; !taken { // by a VM of the same name
			v[network] = node{}
		}
		v[name+"."+network] = n
	}
}
