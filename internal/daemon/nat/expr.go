package nat

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	mnl "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// The vocabulary of the rules. A phrase is a list of expressions; joined phrases
// make a rule. Registers are counted in words of four bytes from word(0), as set
// keys of several parts are laid out.

type phrase []expr.Any

func join(parts ...phrase) []expr.Any { return slices.Concat(parts...) }

// word is the n-th four-byte register.
func word(n uint32) uint32 { return unix.NFT_REG32_00 + n }

// How many words the parts of a key take.
const (
	ifnameWords = 4
	macWords    = 2
	markWords   = 1
	protoWords  = 1
	ip4Words    = 1
	ip6Words    = 4
)

func bigBuffers(c *mnl.Conn) error {
	if err := c.SetWriteBuffer(bufferBytes); err != nil {
		return err
	}
	return c.SetReadBuffer(bufferBytes)
}

func loadMeta(key expr.MetaKey, reg uint32) phrase {
	return phrase{&expr.Meta{Key: key, Register: word(reg)}}
}

func loadPayload(base expr.PayloadBase, offset, length, reg uint32) phrase {
	return phrase{&expr.Payload{Base: base, Offset: offset, Len: length, DestRegister: word(reg)}}
}

func compare(op expr.CmpOp, data []byte) phrase {
	return phrase{&expr.Cmp{Op: op, Register: word(0), Data: data}}
}

func is(data ...byte) phrase    { return compare(expr.CmpOpEq, data) }
func isNot(data ...byte) phrase { return compare(expr.CmpOpNeq, data) }

// in and notIn look up the key that begins at word 0.
func in(s *nftables.Set) phrase {
	return phrase{&expr.Lookup{SourceRegister: word(0), SetName: s.Name, SetID: s.ID}}
}

func notIn(s *nftables.Set) phrase {
	return phrase{&expr.Lookup{SourceRegister: word(0), SetName: s.Name, SetID: s.ID, Invert: true}}
}

// each tests with an expression of its own for every key: the one that begins at word 0.
func each(s *nftables.Set, test expr.Any) phrase {
	return phrase{&expr.Dynset{SrcRegKey: word(0), SetName: s.Name, SetID: s.ID, Operation: unix.NFT_DYNSET_OP_ADD, Exprs: []expr.Any{test}}}
}

// markFrom looks the key up in a map and makes the value the packet's mark.
func markFrom(m *nftables.Set) phrase {
	return phrase{
		&expr.Lookup{SourceRegister: word(0), DestRegister: word(0), IsDestRegSet: true, SetName: m.Name, SetID: m.ID},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: word(0)},
	}
}

func setMark(v uint32) phrase {
	return phrase{
		&expr.Immediate{Register: word(0), Data: binaryutil.NativeEndian.PutUint32(v)},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: word(0)},
	}
}

// maskMark keeps the bits of mask and flips those of xor.
func maskMark(mask, xor uint32) phrase {
	return append(loadMeta(expr.MetaKeyMARK, 0),
		bits(mask, xor),
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: word(0)})
}

func bits(mask, xor uint32) *expr.Bitwise {
	return &expr.Bitwise{SourceRegister: word(0), DestRegister: word(0), Len: 4,
		Mask: binaryutil.NativeEndian.PutUint32(mask), Xor: binaryutil.NativeEndian.PutUint32(xor)}
}

// anyOf tests for any of the bits of a 32-bit value of the host's byte order.
func anyOf(load phrase, mask uint32) phrase {
	return append(slices.Clone(load), bits(mask, 0), &expr.Cmp{Op: expr.CmpOpNeq, Register: word(0), Data: make([]byte, 4)})
}

func ct(key expr.CtKey) phrase { return phrase{&expr.Ct{Key: key, Register: word(0)}} }

func verdict(kind expr.VerdictKind) phrase { return phrase{&expr.Verdict{Kind: kind}} }

func goTo(chain string) phrase {
	return phrase{&expr.Verdict{Kind: expr.VerdictGoto, Chain: chain}}
}

var (
	accept = verdict(expr.VerdictAccept)
	drop   = verdict(expr.VerdictDrop)
	// reject says so to the guest, which then need not wait for a timeout.
	reject = phrase{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED}}
)

// ifname is a device's name as a register holds it.
func ifname(name string) []byte {
	b := make([]byte, 4*ifnameWords)
	copy(b, name)
	return b
}

// device and the following test the name of the device a packet came from or goes to.
func device(key expr.MetaKey, name string) phrase {
	return append(loadMeta(key, 0), is(ifname(name)...)...)
}

func notDevice(key expr.MetaKey, name string) phrase {
	return append(loadMeta(key, 0), isNot(ifname(name)...)...)
}

// aTap tests for the prefix of taps: a comparison of fewer bytes than a name has.
func aTap(key expr.MetaKey, prefix string) phrase {
	return append(loadMeta(key, 0), is([]byte(prefix)...)...)
}

func notATap(key expr.MetaKey, prefix string) phrase {
	return append(loadMeta(key, 0), isNot([]byte(prefix)...)...)
}

func be16(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }

// ethertype tests the protocol of a frame; of a tagged one, that of what is inside.
func ethertype(v uint16) phrase { return append(loadMeta(expr.MetaKeyPROTOCOL, 0), is(be16(v)...)...) }

// tagged tests for a VLAN tag of that kind, which stands where the protocol would.
func tagged(v uint16) phrase {
	return append(loadPayload(expr.PayloadBaseLLHeader, 12, 2, 0), is(be16(v)...)...)
}

// ofVersion tests the IP version of a packet in the inet table.
func ofVersion(proto byte) phrase { return append(loadMeta(expr.MetaKeyNFPROTO, 0), is(proto)...) }

func layer4(proto byte) phrase { return append(loadMeta(expr.MetaKeyL4PROTO, 0), is(proto)...) }

// Where things stand in packets.
func etherSource(reg uint32) phrase { return loadPayload(expr.PayloadBaseLLHeader, 6, 6, reg) }

func ip4Source(reg uint32) phrase { return loadPayload(expr.PayloadBaseNetworkHeader, 12, 4, reg) }

func ip4Dest(reg uint32) phrase { return loadPayload(expr.PayloadBaseNetworkHeader, 16, 4, reg) }

func ip6Source(reg uint32) phrase { return loadPayload(expr.PayloadBaseNetworkHeader, 8, 16, reg) }

func ip6Dest(reg uint32) phrase { return loadPayload(expr.PayloadBaseNetworkHeader, 24, 16, reg) }

// destIn tests for a prefix of whole bytes: a comparison of fewer than an address has.
func destIn(p netip.Prefix) phrase {
	version, offset, n := byte(unix.NFPROTO_IPV4), uint32(16), p.Bits()/8
	if p.Addr().Is6() {
		version, offset = unix.NFPROTO_IPV6, 24
	}
	return slices.Concat(ofVersion(version),
		loadPayload(expr.PayloadBaseNetworkHeader, offset, uint32(n), 0), is(p.Addr().AsSlice()[:n]...))
}

func destPort(reg uint32) phrase { return loadPayload(expr.PayloadBaseTransportHeader, 2, 2, reg) }

func sourcePort(v uint16) phrase {
	return append(loadPayload(expr.PayloadBaseTransportHeader, 0, 2, 0), is(be16(v)...)...)
}

func icmpType(v byte) phrase {
	return append(loadPayload(expr.PayloadBaseTransportHeader, 0, 1, 0), is(v)...)
}

// neighborTarget is the address that a neighbour solicitation or advertisement is about.
func neighborTarget(reg uint32) phrase {
	return loadPayload(expr.PayloadBaseTransportHeader, 8, 16, reg)
}

// fragment tests for the header of a part of an IPv6 packet.
var fragment = phrase{
	&expr.Exthdr{DestRegister: word(0), Type: unix.IPPROTO_FRAGMENT, Len: 1, Flags: unix.NFT_EXTHDR_F_PRESENT, Op: expr.ExthdrOpIpv6},
	&expr.Cmp{Op: expr.CmpOpEq, Register: word(0), Data: []byte{1}},
}
