package nettest

import (
	"encoding/binary"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Ethernet puts a header before a payload.
func Ethernet(dst, src net.HardwareAddr, ethertype uint16, payload []byte) []byte {
	f := append(append([]byte{}, dst...), src...)
	return append(binary.BigEndian.AppendUint16(f, ethertype), payload...)
}

// UDP is a frame with one datagram, of IPv4 or IPv6 as its addresses are.
func UDP(dst, src net.HardwareAddr, to, from netip.AddrPort, payload string) []byte {
	u := binary.BigEndian.AppendUint16(nil, from.Port())
	u = binary.BigEndian.AppendUint16(u, to.Port())
	u = binary.BigEndian.AppendUint16(u, uint16(8+len(payload)))
	u = append(append(u, 0, 0), payload...)
	binary.BigEndian.PutUint16(u[6:], sum(pseudo(from.Addr(), to.Addr(), unix.IPPROTO_UDP, len(u)), u))
	return Ethernet(dst, src, version(to.Addr()), IP(to.Addr(), from.Addr(), unix.IPPROTO_UDP, u))
}

// ICMP6 is a frame with one ICMPv6 message; body begins with its type and has room
// for the checksum.
func ICMP6(dst, src net.HardwareAddr, to, from netip.Addr, body []byte) []byte {
	body = append([]byte{}, body...)
	binary.BigEndian.PutUint16(body[2:], sum(pseudo(from, to, unix.IPPROTO_ICMPV6, len(body)), body))
	return Ethernet(dst, src, unix.ETH_P_IPV6, IP(to, from, unix.IPPROTO_ICMPV6, body))
}

// ARP is a reply, or a request, that says mac is at ip.
func ARP(dst, src net.HardwareAddr, op uint16, mac net.HardwareAddr, ip, target netip.Addr) []byte {
	a := []byte{0, 1, 8, 0, 6, 4}
	a = binary.BigEndian.AppendUint16(a, op)
	a = append(append(a, mac...), ip.AsSlice()...)
	a = append(append(a, make([]byte, 6)...), target.AsSlice()...)
	return Ethernet(dst, src, unix.ETH_P_ARP, a)
}

func version(a netip.Addr) uint16 {
	if a.Is4() {
		return unix.ETH_P_IP
	}
	return unix.ETH_P_IPV6
}

// IP puts an IP header before a payload.
func IP(to, from netip.Addr, proto byte, payload []byte) []byte {
	if to.Is4() {
		h := make([]byte, 20)
		h[0], h[8], h[9] = 0x45, 64, proto
		binary.BigEndian.PutUint16(h[2:], uint16(20+len(payload)))
		copy(h[12:], from.AsSlice())
		copy(h[16:], to.AsSlice())
		binary.BigEndian.PutUint16(h[10:], sum(h))
		return append(h, payload...)
	}
	h := make([]byte, 40)
	h[0], h[6], h[7] = 0x60, proto, 255
	binary.BigEndian.PutUint16(h[4:], uint16(len(payload)))
	copy(h[8:], from.AsSlice())
	copy(h[24:], to.AsSlice())
	return append(h, payload...)
}

func pseudo(from, to netip.Addr, proto byte, length int) []byte {
	p := append(from.AsSlice(), to.AsSlice()...)
	p = binary.BigEndian.AppendUint32(p, uint32(length))
	return append(p, 0, 0, 0, proto)
}

// sum is the Internet checksum; every part but the last has an even length.
func sum(parts ...[]byte) uint16 {
	var s uint32
	for _, p := range parts {
		for i := 0; i+1 < len(p); i += 2 {
			s += uint32(binary.BigEndian.Uint16(p[i:]))
		}
		if len(p)%2 == 1 {
			s += uint32(p[len(p)-1]) << 8
		}
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return ^uint16(s)
}
