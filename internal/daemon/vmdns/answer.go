package vmdns

import (
	"encoding/binary"
	"strings"

	"github.com/miekg/dns"
)

const (
	headerSize = 12
	// maxQuery is the size of a question, in bytes, above which it is none of
	// anybody's who means well.
	maxQuery = 4096
	// maxUDP is how large an answer by UDP is at most, whatever the asker takes:
	// it is never cut up on the way (RFC 9715).
	maxUDP = 1232
)

// transport is how a question came.
type transport int

const (
	byUDP transport = iota
	byTCP
)

// respond returns the answer to a packet from somebody with that view, in buf when it
// fits. It is nil for what
// is no question, and for what cannot be understood: an answer to that would go to
// somebody who has not asked.
func (z *zone) respond(v view, via transport, packet, buf []byte) []byte {
	if len(packet) < headerSize || len(packet) > maxQuery {
		return nil
	}
	word := func(i int) uint16 { return binary.BigEndian.Uint16(packet[2*i:]) }
	header := dns.Header{Id: word(0), Bits: word(1), Qdcount: word(2), Ancount: word(3), Nscount: word(4), Arcount: word(5)}
	// The counts come first, so that only what looks like a question is unpacked.
	switch dns.DefaultMsgAcceptFunc(header) {
	case dns.MsgIgnore:
		return nil
	case dns.MsgReject:
		return refuse(header, dns.RcodeFormatError, buf)
	case dns.MsgRejectNotImplemented:
		return refuse(header, dns.RcodeNotImplemented, buf)
	}
	if opcode(header) != dns.OpcodeQuery {
		return refuse(header, dns.RcodeNotImplemented, buf)
	}
	var q, m dns.Msg
	if err := q.Unpack(packet); err != nil || len(q.Question) != 1 {
		return nil
	}
	m.SetReply(&q)
	m.Compress = true
	size := dns.MinMsgSize
	if opt := q.IsEdns0(); opt != nil {
		size = min(max(size, int(opt.UDPSize())), maxUDP)
		own := &dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT}}
		own.SetUDPSize(maxUDP)
		own.SetDo(opt.Do())
		m.Extra = append(m.Extra, own)
		if opts := len(q.Extra); opt.Hdr.Name != "." || opts == 2 && q.Extra[0].Header().Rrtype == q.Extra[1].Header().Rrtype {
			m.Rcode = dns.RcodeFormatError
		} else if opt.Version() != 0 {
			m.Rcode = dns.RcodeBadVers
		}
	}
	if m.Rcode == dns.RcodeSuccess {
		z.answer(v, &m)
	}
	if via == byTCP {
		size = dns.MaxMsgSize
	}
	out, err := m.PackBuffer(buf)
	if err == nil && len(out) > size {
		// Cut in the middle it would be of no more use: the whole comes by TCP.
		m.Truncated, m.Answer, m.Ns = true, nil, nil
		out, err = m.PackBuffer(buf)
	}
	if err != nil {
		return refuse(header, dns.RcodeServerFailure, buf)
	}
	return out
}

func opcode(h dns.Header) int { return int(h.Bits>>11) & 0xf }

// refuse is an answer that consists of a header only.
func refuse(h dns.Header, rcode int, buf []byte) []byte {
	out := append(buf[:0], make([]byte, headerSize)...)
	binary.BigEndian.PutUint16(out, h.Id)
	out[2] = 0x80 | byte(opcode(h)<<3) | byte(h.Bits>>8)&0x01 // an answer; operation and RD as asked
	out[3] = byte(rcode)
	return out
}

// answer fills in m, which has its question already.
func (z *zone) answer(v view, m *dns.Msg) {
	q := m.Question[0]
	switch {
	case q.Qclass != dns.ClassINET, q.Qtype == dns.TypeAXFR, q.Qtype == dns.TypeIXFR:
		m.Rcode = dns.RcodeRefused
		return
	case q.Qtype == dns.TypeOPT, q.Qtype >= 128 && q.Qtype < dns.TypeANY: // no type of any record
		m.Rcode = dns.RcodeNotImplemented
		return
	}
	name := strings.ToLower(q.Name)
	n, found := v[name]
	top, ours := apex, found || dns.IsSubDomain(apex, name)
	if !ours {
		n, found, top, ours = z.gap(name)
	}
	if !ours {
		m.Rcode = dns.RcodeRefused
		if len(m.Extra) > 0 {
			opt := m.Extra[0].(*dns.OPT)
			opt.Option = append(opt.Option, &dns.EDNS0_EDE{
				InfoCode: dns.ExtendedErrorCodeNotAuthoritative, ExtraText: "only ." + Domain + " is answered here",
			})
		}
		return
	}
	m.Authoritative = true
	// What is asked for is answered in the letters it was asked in.
	if n.apex {
		top = q.Name
	}
	header := func(rrtype uint16) dns.RR_Header {
		return dns.RR_Header{Name: q.Name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: ttl}
	}
	soa := func() *dns.SOA {
		soa := z.soa
		soa.Hdr = header(dns.TypeSOA)
		soa.Hdr.Name = top
		return &soa
	}
	switch {
	case !found:
		m.Rcode = dns.RcodeNameError
	case q.Qtype == dns.TypeA:
		for _, ip := range n.a {
			m.Answer = append(m.Answer, &dns.A{Hdr: header(dns.TypeA), A: ip})
		}
	case q.Qtype == dns.TypeAAAA:
		for _, ip := range n.aaaa {
			m.Answer = append(m.Answer, &dns.AAAA{Hdr: header(dns.TypeAAAA), AAAA: ip})
		}
	case q.Qtype == dns.TypePTR && n.ptr != "":
		m.Answer = append(m.Answer, &dns.PTR{Hdr: header(dns.TypePTR), Ptr: n.ptr})
	case q.Qtype == dns.TypeSOA && n.apex:
		m.Answer = append(m.Answer, soa())
	case q.Qtype == dns.TypeNS && n.apex:
		m.Answer = append(m.Answer, &dns.NS{Hdr: header(dns.TypeNS), Ns: apex})
	case q.Qtype == dns.TypeANY && (n.apex || len(n.a)+len(n.aaaa) > 0):
		// Nobody needs all of it; those who ask do it to get large answers (RFC 8482).
		m.Answer = append(m.Answer, &dns.HINFO{Hdr: header(dns.TypeHINFO), Cpu: "RFC8482"})
	}
	if len(m.Answer) == 0 {
		m.Ns = append(m.Ns, soa())
	}
}
