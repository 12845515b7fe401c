package nat

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"banger/internal/model"
)

// refs is a batch under way, with the sets that its rules and elements refer to.
type refs struct {
	Table
	conn         *nftables.Conn
	inet, bridge *nftables.Table
	sets         map[string]*nftables.Set
}

// setTypes is what the keys of each set are made of. All of these are hash tables:
// a look-up costs the same for one VM and for thousands.
var setTypes = map[string][]nftables.SetDatatype{
	setSource:  {nftables.TypeIFName, nftables.TypeEtherAddr},
	setSource4: {nftables.TypeIFName, nftables.TypeIPAddr},
	setSource6: {nftables.TypeIFName, nftables.TypeIP6Addr},
	mapNetwork: {nftables.TypeIFName},
	setMembers: {nftables.TypeMark, nftables.TypeIFName},

	setOutside4: {nftables.TypeIPAddr},
	setOutside6: {nftables.TypeIP6Addr},
	mapNetwork4: {nftables.TypeIPAddr},
	mapNetwork6: {nftables.TypeIP6Addr},
	setMembers4: {nftables.TypeMark, nftables.TypeIPAddr},
	setMembers6: {nftables.TypeMark, nftables.TypeIP6Addr},
	setBegun4:   {nftables.TypeIPAddr},
	setBegun6:   {nftables.TypeIP6Addr},
	setHeld4:    {nftables.TypeIPAddr},
	setHeld6:    {nftables.TypeIP6Addr},
	setGateway4: {nftables.TypeIPAddr},
	setGateway6: {nftables.TypeIP6Addr},
	setService4: {nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService},
	setService6: {nftables.TypeIP6Addr, nftables.TypeInetProto, nftables.TypeInetService},
	setExposed4: {nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService},
	setExposed6: {nftables.TypeIP6Addr, nftables.TypeInetProto, nftables.TypeInetService},
}

var (
	setNames  = slices.Sorted(maps.Keys(setTypes))
	bridgeSet = []string{setSource, setSource4, setSource6, mapNetwork, setMembers}
	networkOf = []string{mapNetwork, mapNetwork4, mapNetwork6}
	filledIn  = []string{setBegun4, setBegun6, setHeld4, setHeld6} // by the kernel, as packets come
)

// refer names the tables and sets without making them.
func (t Table) refer() *refs {
	r := &refs{Table: t, sets: map[string]*nftables.Set{},
		inet:   &nftables.Table{Name: t.Name, Family: nftables.TableFamilyINet},
		bridge: &nftables.Table{Name: t.Name, Family: nftables.TableFamilyBridge},
	}
	for name, types := range setTypes {
		s := &nftables.Set{Table: r.inet, Name: name, KeyType: types[0]}
		if slices.Contains(bridgeSet, name) {
			s.Table = r.bridge
		}
		if len(types) > 1 {
			s.KeyType, s.Concatenation = nftables.MustConcatSetType(types...), true
		}
		if slices.Contains(networkOf, name) {
			s.IsMap, s.DataType = true, nftables.TypeMark
		}
		s.Dynamic = slices.Contains(filledIn, name)
		if name == mapNetwork { // for nft, which could not print the names otherwise
			s.KeyByteOrder = binaryutil.NativeEndian
		}
		r.sets[name] = s
	}
	return r
}

// declare makes the tables and sets, empty.
func (t Table) declare(c *nftables.Conn) *refs {
	r := t.refer()
	r.conn = c
	c.AddTable(r.inet)
	c.AddTable(r.bridge)
	return r
}

// chain makes a chain with its rules. Base chains accept what no rule has decided:
// they are about our guests, and everything else is none of their business.
func (r *refs) chain(c nftables.Chain, rules ...[]expr.Any) {
	if c.Hooknum != nil {
		policy := nftables.ChainPolicyAccept
		c.Policy = &policy
	}
	chain := r.conn.AddChain(&c)
	for _, exprs := range rules {
		r.conn.AddRule(&nftables.Rule{Table: c.Table, Chain: chain, Exprs: exprs})
	}
}

func (r *refs) rules() error {
	for _, name := range setNames {
		if err := r.conn.AddSet(r.sets[name], nil); err != nil {
			return fmt.Errorf("put together set %s: %w", name, err)
		}
	}
	r.spoofing()
	r.bridging()
	r.bounded() // before what goes on in it
	r.inbound() // with the chain that outbound goes on in
	r.outbound()
	r.siblings()
	r.forward()
	r.input()
	r.leaving()
	return nil
}

// Chains' priorities. In the bridge family ours come before the point at which a
// bridged packet is shown to the other families; in inet, before filter, where the
// tables of other programs are: whatever they do, it was judged here first.
const (
	bridgeFirst = -300
	inetFirst   = -10
)

func hook(t *nftables.Table, name string, h *nftables.ChainHook, priority nftables.ChainPriority) nftables.Chain {
	return nftables.Chain{Table: t, Name: name, Type: nftables.ChainTypeFilter, Hooknum: h, Priority: nftables.ChainPriorityRef(priority)}
}

// What ICMPv6 messages are for, as far as a guest must not send them or must.
const (
	icmp6RouterAdvert   = 134
	icmp6NeighborSol    = 135
	icmp6NeighborAdvert = 136
	icmp6Redirect       = 137
)

// From which ports servers of DHCP tell others who they are.
const (
	dhcpServer  = 67
	dhcp6Server = 547
)

// spoofing lets in from a tap only frames that its VM may send. A warm tap, or one
// that was given back, stands in no set: nothing comes in.
func (r *refs) spoofing() {
	iif := loadMeta(expr.MetaKeyIIFNAME, 0)
	v4, v6 := ethertype(unix.ETH_P_IP), ethertype(unix.ETH_P_IPV6)
	icmp6 := join(v6, layer4(unix.IPPROTO_ICMPV6))
	r.chain(hook(r.bridge, "prerouting", nftables.ChainHookPrerouting, bridgeFirst),
		join(notATap(expr.MetaKeyIIFNAME, r.TapPrefix), accept),
		join(iif, etherSource(ifnameWords), notIn(r.sets[setSource]), drop),

		join(tagged(unix.ETH_P_8021Q), drop),
		join(tagged(unix.ETH_P_8021AD), drop),

		// A guest says to no other who that is.
		join(v4, layer4(unix.IPPROTO_UDP), sourcePort(dhcpServer), drop),
		join(v6, layer4(unix.IPPROTO_UDP), sourcePort(dhcp6Server), drop),

		join(v4, iif, ip4Source(ifnameWords), in(r.sets[setSource4]), accept),

		// ARP names its sender a second time; only that one counts for its receiver.
		join(ethertype(unix.ETH_P_ARP),
			loadPayload(expr.PayloadBaseNetworkHeader, 0, 6, 0), is(0, 1, 8, 0, 6, 4), // of IPv4 on Ethernet
			iif, loadPayload(expr.PayloadBaseNetworkHeader, 8, 6, ifnameWords), in(r.sets[setSource]),
			iif, loadPayload(expr.PayloadBaseNetworkHeader, 14, 4, ifnameWords), in(r.sets[setSource4]), accept),

		// A guest is no router, and says of no address but its own that it is there.
		// Parts of such a message could hide what it says; nobody else sends it in parts.
		join(icmp6, fragment, drop),
		join(icmp6, icmpType(icmp6RouterAdvert), drop),
		join(icmp6, icmpType(icmp6Redirect), drop),
		join(icmp6, icmpType(icmp6NeighborAdvert), iif, neighborTarget(ifnameWords), in(r.sets[setSource6]),
			ip6Source(ifnameWords), in(r.sets[setSource6]), accept),
		join(icmp6, icmpType(icmp6NeighborAdvert), drop),
		// It asks whether somebody has its address before it has one.
		join(icmp6, icmpType(icmp6NeighborSol), ip6Source(0), is(netip.IPv6Unspecified().AsSlice()...),
			iif, neighborTarget(ifnameWords), in(r.sets[setSource6]), accept),
		// What it holds must be known: behind fragments of headers, where no rule can
		// see it, all of the above could hide. No comparison holds then, this one either.
		join(v6, loadMeta(expr.MetaKeyL4PROTO, 0), isNot(unix.IPPROTO_RAW), iif, ip6Source(ifnameWords), in(r.sets[setSource6]), accept),

		join(drop),
	)
}

// bridging lets frames pass from tap to tap inside a network only. Ports of no
// network are isolated by the bridge as well, which holds even while somebody
// reloads all firewall rules.
func (r *refs) bridging() {
	r.chain(hook(r.bridge, "forward", nftables.ChainHookForward, bridgeFirst),
		join(notATap(expr.MetaKeyIIFNAME, r.TapPrefix), notATap(expr.MetaKeyOIFNAME, r.TapPrefix), accept),
		join(setMark(0)),
		join(loadMeta(expr.MetaKeyIIFNAME, 0), markFrom(r.sets[mapNetwork])),
		join(loadMeta(expr.MetaKeyMARK, 0), loadMeta(expr.MetaKeyOIFNAME, markWords), in(r.sets[setMembers]), setMark(0), accept),
		join(drop),
	)
}

// Bits of conntrack's state and status, and its directions.
const (
	ctDNAT    = 1 << 5
	ctReply   = 1
	ctAnswers = expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED
)

// answers tests for packets that belong to what the other side has begun. Nothing
// is let through for having been let through before in the same direction: what is
// taken from a VM ends at once, in connections under way too.
var answers = slices.Concat(anyOf(ct(expr.CtKeySTATE), ctAnswers), ct(expr.CtKeyDIRECTION), is(ctReply))

// How many connections a guest may have at once by one of its addresses, and how many it
// may begin in a second, when it has begun a number at once: the kernel's table of
// connections is one for the whole host. What is closed no longer counts as one that it
// has, but stays in the table for two minutes; and of what is dropped the kernel's count
// is not cleared at once. That is what the rate is for. (Variables for tests.)
var (
	maxHeld  = uint32(4096)
	maxBegun = uint64(256)
	maxBurst = uint32(4096)
)

// bounded drops what would begin more connections.
func (r *refs) bounded() {
	rate := &expr.Limit{Type: expr.LimitTypePkts, Rate: maxBegun, Unit: expr.LimitTimeSecond, Burst: maxBurst, Over: true}
	number := &expr.Connlimit{Count: maxHeld, Flags: expr.NFT_CONNLIMIT_F_INV}
	v4, v6 := join(ofVersion(unix.NFPROTO_IPV4), ip4Source(0)), join(ofVersion(unix.NFPROTO_IPV6), ip6Source(0))
	r.chain(nftables.Chain{Table: r.inet, Name: "bounded"},
		join(v4, each(r.sets[setBegun4], rate), drop),
		join(v6, each(r.sets[setBegun6], rate), drop),
		join(v4, each(r.sets[setHeld4], number), drop),
		join(v6, each(r.sets[setHeld6], number), drop),
	)
}

// begins goes through the bounds with what begins a connection that may be.
var begins = slices.Concat(anyOf(ct(expr.CtKeySTATE), expr.CtStateBitNEW), phrase{&expr.Verdict{Kind: expr.VerdictJump, Chain: "bounded"}})

// outbound judges what a guest sends through the host.
func (r *refs) outbound() {
	rules := [][]expr.Any{
		// What conntrack cannot place is not masqueraded either.
		join(anyOf(ct(expr.CtKeySTATE), expr.CtStateBitINVALID), drop),
		// An address of the host's that leads to a container is a service of the host's.
		join(anyOf(ct(expr.CtKeySTATUS), ctDNAT), reject),
	}
	for _, p := range model.CloudMetadata() {
		rules = append(rules, join(destIn(p), reject))
	}
	r.chain(nftables.Chain{Table: r.inet, Name: "outbound"}, append(rules,
		join(begins),
		join(ofVersion(unix.NFPROTO_IPV4), ip4Source(0), in(r.sets[setOutside4]), goTo("passed")),
		join(ofVersion(unix.NFPROTO_IPV6), ip6Source(0), in(r.sets[setOutside6]), goTo("passed")),
		join(reject),
	)...)
}

// inbound judges what comes through the host to a guest: answers.
func (r *refs) inbound() {
	r.chain(nftables.Chain{Table: r.inet, Name: "inbound"},
		join(answers, ofVersion(unix.NFPROTO_IPV4), ip4Dest(0), in(r.sets[setOutside4]), setMarkBit, accept),
		join(answers, ofVersion(unix.NFPROTO_IPV6), ip6Dest(0), in(r.sets[setOutside6]), setMarkBit, accept),
		join(drop),
	)
	r.chain(nftables.Chain{Table: r.inet, Name: "passed"},
		// Behind another bridge are the networks of another program, with rules of its
		// own for who gets in: for those we do not vouch.
		join(loadMeta(metaOIFKind, 0), is(ifname("bridge")...), accept),
		join(setMarkBit, accept),
	)
}

var (
	setMarkBit   = maskMark(^uint32(Mark), Mark)
	clearMarkBit = maskMark(^uint32(Mark), 0)
)

// metaOIFKind is the kind of link a packet goes out of, which the library has no
// name for. A physical card has none, and then a rule that asks does not match.
const metaOIFKind = expr.MetaKey(27)

// siblings judges what goes from guest to guest. Frames that were bridged come by
// here as well where bridge-nf-call-iptables is on, as Docker sets it.
func (r *refs) siblings() {
	v4, v6 := ofVersion(unix.NFPROTO_IPV4), ofVersion(unix.NFPROTO_IPV6)
	network := loadMeta(expr.MetaKeyMARK, 0)
	r.chain(nftables.Chain{Table: r.inet, Name: "siblings"},
		// What is for many can only have been bridged; the bridge table has judged it.
		// Everything else, link-local addresses too, may be sent to the host's own hardware
		// address: the kernel sends it back out of the bridge as a router would.
		join(loadMeta(expr.MetaKeyPKTTYPE, 0), isNot(unix.PACKET_HOST), setMark(Mark), accept),
		join(begins),
		join(setMark(0)),
		join(v4, ip4Source(0), markFrom(r.sets[mapNetwork4])),
		join(v6, ip6Source(0), markFrom(r.sets[mapNetwork6])),
		join(v4, network, ip4Dest(markWords), in(r.sets[setMembers4]), setMark(Mark), accept),
		join(v6, network, ip6Dest(markWords), in(r.sets[setMembers6]), setMark(Mark), accept),
		join(setMark(0), reject),
	)
}

func (r *refs) forward() {
	fromGuest, toGuest := device(expr.MetaKeyIIFNAME, r.Bridge), device(expr.MetaKeyOIFNAME, r.Bridge)
	r.chain(hook(r.inet, "forward", nftables.ChainHookForward, inetFirst),
		// A tap that was pulled out of the bridge is no way in.
		join(aTap(expr.MetaKeyIIFNAME, r.TapPrefix), drop),
		join(fromGuest, toGuest, goTo("siblings")),
		join(fromGuest, goTo("outbound")),
		join(toGuest, goTo("inbound")),
	)
}

// input judges what a guest sends to the host itself, whichever of its addresses.
func (r *refs) input() {
	v4, v6 := ofVersion(unix.NFPROTO_IPV4), ofVersion(unix.NFPROTO_IPV6)
	icmp6 := join(v6, layer4(unix.IPPROTO_ICMPV6))
	r.chain(hook(r.inet, "input", nftables.ChainHookInput, inetFirst),
		join(aTap(expr.MetaKeyIIFNAME, r.TapPrefix), drop),
		join(notDevice(expr.MetaKeyIIFNAME, r.Bridge), accept),
		join(answers, accept),
		join(icmp6, icmpType(icmp6NeighborSol), accept),
		join(icmp6, icmpType(icmp6NeighborAdvert), accept),
		join(begins),
		join(v4, ip4Dest(0), loadMeta(expr.MetaKeyL4PROTO, ip4Words), destPort(ip4Words+protoWords), in(r.sets[setService4]), accept),
		join(v6, ip6Dest(0), loadMeta(expr.MetaKeyL4PROTO, ip6Words), destPort(ip6Words+protoWords), in(r.sets[setService6]), accept),
		join(v4, ip4Dest(0), in(r.sets[setGateway4]),
			ip4Source(0), loadMeta(expr.MetaKeyL4PROTO, ip4Words), destPort(ip4Words+protoWords), in(r.sets[setExposed4]), accept),
		join(v6, ip6Dest(0), in(r.sets[setGateway6]),
			ip6Source(0), loadMeta(expr.MetaKeyL4PROTO, ip6Words), destPort(ip6Words+protoWords), in(r.sets[setExposed6]), accept),
		join(loadMeta(expr.MetaKeyPKTTYPE, 0), isNot(unix.PACKET_HOST), drop),
		join(reject),
	)
}

// leaving takes our mark off again, and gives what guests send out the host's address.
func (r *refs) leaving() {
	r.chain(hook(r.inet, "unmark", nftables.ChainHookPostrouting, *nftables.ChainPriorityMangle),
		join(anyOf(loadMeta(expr.MetaKeyMARK, 0), Mark), clearMarkBit),
	)
	nat := hook(r.inet, "postrouting", nftables.ChainHookPostrouting, *nftables.ChainPriorityNATSource)
	nat.Type = nftables.ChainTypeNAT
	elsewhere := notDevice(expr.MetaKeyOIFNAME, r.Bridge)
	r.chain(nat,
		join(elsewhere, ofVersion(unix.NFPROTO_IPV4), ip4Source(0), in(r.sets[setOutside4]), phrase{&expr.Masq{}}),
		join(elsewhere, ofVersion(unix.NFPROTO_IPV6), ip6Source(0), in(r.sets[setOutside6]), phrase{&expr.Masq{}}),
	)
}
