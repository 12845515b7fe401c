package vmdns

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

func addrs(list ...string) []netip.Addr {
	var all []netip.Addr
	for _, a := range list {
		all = append(all, netip.MustParseAddr(a))
	}
	return all
}

// world is the hosts that most tests ask for.
func world() map[string]Host {
	return map[string]Host{
		"web":  {Addrs: addrs("10.42.0.2", "10.42.0.3", "fd42::2")},
		"v4":   {Addrs: addrs("10.42.0.4")},
		"v6":   {Addrs: addrs("fd42::6")},
		"bare": {},
		"db":   {Network: "lab", Addrs: addrs("10.42.1.2", "fd42:1::2")},
		"app":  {Network: "lab", Addrs: addrs("10.42.1.3")},
		"far":  {Network: "other", Addrs: addrs("10.42.2.2")},
	}
}

// zoneOf is the zone of hosts, of whose addresses some are all ours.
func zoneOf(hosts map[string]Host, reverse ...netip.Prefix) *zone {
	all := map[string]known{}
	for name, h := range hosts {
		all[name] = newKnown(name, h)
	}
	return newZone(all, reverse, 7)
}

// summary is an answer in one line: code, flags, and the records of its sections.
func summary(m *dns.Msg) string {
	flags := ""
	for _, f := range []struct {
		set  bool
		name string
	}{{m.Authoritative, "aa"}, {m.Truncated, "tc"}, {m.RecursionAvailable, "ra"}} {
		if f.set {
			flags += " " + f.name
		}
	}
	section := func(rrs []dns.RR) string {
		var all []string
		for _, rr := range rrs {
			h := rr.Header()
			data := strings.TrimSpace(strings.TrimPrefix(rr.String(), h.String()))
			if h.Rrtype == dns.TypeSOA {
				data, _, _ = strings.Cut(data, " ")
			}
			all = append(all, fmt.Sprintf("%s %s %s", h.Name, dns.TypeToString[h.Rrtype], data))
		}
		return strings.Join(all, ", ")
	}
	return fmt.Sprintf("%s%s | %s | %s", dns.RcodeToString[m.Rcode], flags, section(m.Answer), section(m.Ns))
}

const (
	refused = "REFUSED |  | "
	nodata  = "NOERROR aa |  | vm. SOA vm."
	absent  = "NXDOMAIN aa |  | vm. SOA vm."
)

func TestAnswers(t *testing.T) {
	z := zoneOf(world())
	for _, tc := range []struct {
		asker, name string
		rrtype      uint16
		want        string
	}{
		{"", "web.vm.", dns.TypeA, "NOERROR aa | web.vm. A 10.42.0.2, web.vm. A 10.42.0.3 | "},
		{"", "web.vm.", dns.TypeAAAA, "NOERROR aa | web.vm. AAAA fd42::2 | "},
		{"", "WeB.vM.", dns.TypeAAAA, "NOERROR aa | WeB.vM. AAAA fd42::2 | "},
		{"", "v4.vm.", dns.TypeAAAA, nodata},
		{"", "v6.vm.", dns.TypeA, nodata},
		{"", "web.vm.", dns.TypeMX, nodata},
		{"", "web.vm.", dns.TypeHTTPS, nodata},
		{"", "web.vm.", dns.TypeSOA, nodata},
		{"", "web.vm.", dns.TypeNS, nodata},
		{"", "bare.vm.", dns.TypeA, nodata},
		{"", "bare.vm.", dns.TypeANY, nodata},
		{"", "web.vm.", dns.TypeANY, "NOERROR aa | web.vm. HINFO \"RFC8482\" \"\" | "},
		{"", "nobody.vm.", dns.TypeA, absent},
		{"", "nobody.vm.", dns.TypeANY, absent},
		{"", "x.web.vm.", dns.TypeA, absent},
		{"", "_srv.web.vm.", dns.TypeSRV, absent},

		// The top of the zone.
		{"", "vm.", dns.TypeSOA, "NOERROR aa | vm. SOA vm. | "},
		{"", "VM.", dns.TypeNS, "NOERROR aa | VM. NS vm. | "},
		{"", "VM.", dns.TypeA, "NOERROR aa |  | VM. SOA vm."},
		{"", "vm.", dns.TypeDS, nodata},
		{"", "vm.", dns.TypeANY, "NOERROR aa | vm. HINFO \"RFC8482\" \"\" | "},

		// Networks: their names have names below them, and their guests see each
		// other only.
		{"", "db.lab.vm.", dns.TypeA, "NOERROR aa | db.lab.vm. A 10.42.1.2 | "},
		{"", "db.vm.", dns.TypeA, "NOERROR aa | db.vm. A 10.42.1.2 | "},
		{"", "lab.vm.", dns.TypeA, nodata},
		{"", "lab.vm.", dns.TypeANY, nodata},
		{"", "web.lab.vm.", dns.TypeA, absent},
		{"10.42.1.3", "db.vm.", dns.TypeA, "NOERROR aa | db.vm. A 10.42.1.2 | "},
		{"10.42.1.3", "app.lab.vm.", dns.TypeA, "NOERROR aa | app.lab.vm. A 10.42.1.3 | "},
		{"10.42.1.3", "web.vm.", dns.TypeA, absent},
		{"10.42.1.3", "far.vm.", dns.TypeA, absent},
		{"10.42.1.3", "far.other.vm.", dns.TypeA, absent},
		{"10.42.1.3", "other.vm.", dns.TypeA, absent},
		{"10.42.9.9", "db.vm.", dns.TypeA, absent},
		{"fd42:1::2", "app.vm.", dns.TypeA, "NOERROR aa | app.vm. A 10.42.1.3 | "},
		{"fe80::1", "app.vm.", dns.TypeA, absent},

		// A guest of no network sees itself.
		{"10.42.0.4", "v4.vm.", dns.TypeA, "NOERROR aa | v4.vm. A 10.42.0.4 | "},
		{"10.42.0.4", "4.0.42.10.in-addr.arpa.", dns.TypePTR, "NOERROR aa | 4.0.42.10.in-addr.arpa. PTR v4.vm. | "},
		{"10.42.0.4", "web.vm.", dns.TypeA, absent},
		{"10.42.0.4", "db.lab.vm.", dns.TypeA, absent},
		{"10.42.0.4", "lab.vm.", dns.TypeA, absent},
		{"fd42::2", "web.vm.", dns.TypeAAAA, "NOERROR aa | web.vm. AAAA fd42::2 | "},
		{"fd42::2", "v4.vm.", dns.TypeA, absent},
		{"10.42.9.9", "vm.", dns.TypeSOA, "NOERROR aa | vm. SOA vm. | "},

		// Addresses: those of VMs, each the top of its own zone, and no others.
		{"", "2.0.42.10.in-addr.arpa.", dns.TypePTR, "NOERROR aa | 2.0.42.10.in-addr.arpa. PTR web.vm. | "},
		{"", "2.0.42.10.IN-ADDR.ARPA.", dns.TypePTR, "NOERROR aa | 2.0.42.10.IN-ADDR.ARPA. PTR web.vm. | "},
		{"", reverse("fd42::2"), dns.TypePTR, "NOERROR aa | " + reverse("fd42::2") + " PTR web.vm. | "},
		{"", "2.0.42.10.in-addr.arpa.", dns.TypeA, "NOERROR aa |  | 2.0.42.10.in-addr.arpa. SOA vm."},
		{"", "2.0.42.10.in-addr.arpa.", dns.TypeSOA, "NOERROR aa | 2.0.42.10.in-addr.arpa. SOA vm. | "},
		{"", "9.0.42.10.in-addr.arpa.", dns.TypePTR, refused},
		{"", "0.42.10.in-addr.arpa.", dns.TypePTR, refused},
		{"", "1.0.0.127.in-addr.arpa.", dns.TypePTR, refused},
		{"", reverse("fd42::3"), dns.TypePTR, refused},
		{"10.42.1.3", "2.1.42.10.in-addr.arpa.", dns.TypePTR, "NOERROR aa | 2.1.42.10.in-addr.arpa. PTR db.vm. | "},
		{"10.42.1.3", "2.0.42.10.in-addr.arpa.", dns.TypePTR, refused},

		// Everything else is somebody else's.
		{"", "example.org.", dns.TypeA, refused},
		{"", "web.vm.example.org.", dns.TypeA, refused},
		{"", "xvm.", dns.TypeA, refused},
		{"", `web\.vm.`, dns.TypeA, refused},
		{"", ".", dns.TypeNS, refused},
		{"", "vm.", dns.TypeAXFR, refused},
		{"", "vm.", dns.TypeIXFR, refused},
		{"", "vm.", dns.TypeMAILB, "NOTIMP |  | "},
		{"", "vm.", dns.TypeTKEY, "NOTIMP |  | "},
		{"", "vm.", dns.TypeOPT, "NOTIMP |  | "},
	} {
		q := new(dns.Msg).SetQuestion(tc.name, tc.rrtype)
		for _, via := range []transport{byUDP, byTCP} {
			m := exchange(t, z, tc.asker, via, q)
			if got := summary(m); got != tc.want {
				t.Errorf("%q %s %s:\n got %s\nwant %s", tc.asker, tc.name, dns.TypeToString[tc.rrtype], got, tc.want)
			}
			if m.Id != q.Id || !m.Response || !m.RecursionDesired || m.Question[0] != q.Question[0] || len(m.Extra) != 0 {
				t.Errorf("%s: not an answer to the question: %v", tc.name, m)
			}
		}
	}
}

func reverse(addr string) string {
	name, err := dns.ReverseAddr(addr)
	if err != nil {
		panic(err)
	}
	return name
}

// exchange asks z.
// All names of the guests' addresses are ours: what nobody has is not there, and is
// nobody else's to say, neither to the host nor to a guest that does not see the VM.
func TestNamesOfAddresses(t *testing.T) {
	z := zoneOf(world(), netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("fd42::/64"), netip.MustParsePrefix("192.168.16.0/20"))
	const (
		top  = "42.10.in-addr.arpa."
		top6 = "0.0.0.0.0.0.0.0.0.0.0.0.2.4.d.f.ip6.arpa."
	)
	gone := func(top string) string { return "NXDOMAIN aa |  | " + top + " SOA vm." }
	between := func(top string) string { return "NOERROR aa |  | " + top + " SOA vm." }
	for _, tc := range []struct{ asker, name, want string }{
		{"", "2.0.42.10.in-addr.arpa.", "NOERROR aa | 2.0.42.10.in-addr.arpa. PTR web.vm. | "},
		{"", "9.0.42.10.in-addr.arpa.", gone(top)},
		{"", "9.0.42.10.IN-ADDR.arpa.", gone(top)},
		{"10.42.0.4", "2.0.42.10.in-addr.arpa.", gone(top)},
		{"10.42.0.4", "2.1.42.10.in-addr.arpa.", gone(top)},
		{"10.42.1.2", "2.0.42.10.in-addr.arpa.", gone(top)},
		{"10.42.1.2", "3.1.42.10.in-addr.arpa.", "NOERROR aa | 3.1.42.10.in-addr.arpa. PTR app.vm. | "},
		{"", reverse("fd42::99"), gone(top6)},
		{"10.42.0.4", reverse("fd42::2"), gone(top6)},

		// Above an address there are names below; a name that is of no address is not there.
		{"", "0.42.10.in-addr.arpa.", between(top)},
		{"", top, between(top)},
		{"", top6, between(top6)},
		{"", "0." + top6, between(top6)},
		{"", "x.0.42.10.in-addr.arpa.", gone(top)},
		{"", "02.0.42.10.in-addr.arpa.", gone(top)},
		{"", "x.2.0.42.10.in-addr.arpa.", gone(top)},
		{"", "300.42.10.in-addr.arpa.", gone(top)},
		{"", "10." + top6, gone(top6)},

		// What lies beside a prefix that ends within a label is somebody else's.
		{"", "1.17.168.192.in-addr.arpa.", gone("168.192.in-addr.arpa.")},
		{"", "1.32.168.192.in-addr.arpa.", refused},
		{"", "10.in-addr.arpa.", refused},
		{"", "in-addr.arpa.", refused},
		{"", "x.in-addr.arpa.", refused},
		{"", "1.43.10.in-addr.arpa.", refused},
		{"", reverse("fd43::1"), refused},
		{"", "ip6.arpa.", refused},
	} {
		m := exchange(t, z, tc.asker, byUDP, new(dns.Msg).SetQuestion(tc.name, dns.TypePTR))
		if got := summary(m); got != tc.want {
			t.Errorf("%q %s:\n got %s\nwant %s", tc.asker, tc.name, got, tc.want)
		}
	}
	if got := summary(exchange(t, z, "", byUDP, new(dns.Msg).SetQuestion(top, dns.TypeSOA))); got != "NOERROR aa | "+top+" SOA vm. | " {
		t.Error(got)
	}
}

func exchange(t testing.TB, z *zone, asker string, via transport, q *dns.Msg) *dns.Msg {
	t.Helper()
	packet, err := q.Pack()
	if err != nil {
		t.Fatal(err)
	}
	v := z.all
	if asker != "" {
		who, _ := z.askedBy(netip.MustParseAddr(asker))
		v = who.view
	}
	out := z.respond(v, via, packet, make([]byte, maxUDP))
	if out == nil {
		t.Fatalf("no answer to %v", q)
	}
	var m dns.Msg
	if err := m.Unpack(out); err != nil {
		t.Fatalf("%v: %x", err, out)
	}
	return &m
}

// A VM may have the name of a network; which of the two is made known first does not
// matter.
func TestVMNamedLikeANetwork(t *testing.T) {
	z := zoneOf(map[string]Host{
		"lab": {Addrs: addrs("10.42.0.7")}, "aa": {Network: "lab", Addrs: addrs("10.42.1.2")}, "zz": {Network: "lab", Addrs: addrs("10.42.1.3")},
	})
	for _, tc := range []struct{ asker, name, want string }{
		{"", "lab.vm.", "NOERROR aa | lab.vm. A 10.42.0.7 | "},
		{"", "zz.lab.vm.", "NOERROR aa | zz.lab.vm. A 10.42.1.3 | "},
		{"10.42.1.3", "lab.vm.", nodata},
		{"10.42.1.3", "aa.lab.vm.", "NOERROR aa | aa.lab.vm. A 10.42.1.2 | "},
	} {
		if got := summary(exchange(t, z, tc.asker, byUDP, new(dns.Msg).SetQuestion(tc.name, dns.TypeA))); got != tc.want {
			t.Errorf("%q %s:\n got %s\nwant %s", tc.asker, tc.name, got, tc.want)
		}
	}
}

// Codes that depend on more than the name.
func TestCodes(t *testing.T) {
	z := zoneOf(world())
	question := func(change func(m *dns.Msg)) *dns.Msg {
		m := new(dns.Msg).SetQuestion("v4.vm.", dns.TypeA)
		change(m)
		return m
	}
	opt := func(change func(*dns.OPT)) *dns.OPT {
		o := &dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT}}
		o.SetUDPSize(1232)
		change(o)
		return o
	}
	same := func(*dns.OPT) {}
	for _, tc := range []struct {
		what  string
		q     *dns.Msg
		rcode int
	}{
		{"class CHAOS", question(func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }), dns.RcodeRefused},
		{"class ANY", question(func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassANY }), dns.RcodeRefused},
		{"status", question(func(m *dns.Msg) { m.Opcode = dns.OpcodeStatus }), dns.RcodeNotImplemented},
		{"notify", question(func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }), dns.RcodeNotImplemented},
		{"update", question(func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }), dns.RcodeNotImplemented},
		{"opcode 15", question(func(m *dns.Msg) { m.Opcode = 15 }), dns.RcodeNotImplemented},
		{"no question", question(func(m *dns.Msg) { m.Question = nil }), dns.RcodeFormatError},
		{"two questions", question(func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }), dns.RcodeFormatError},
		{"EDNS", question(func(m *dns.Msg) { m.Extra = []dns.RR{opt(same)} }), dns.RcodeSuccess},
		{"EDNS twice", question(func(m *dns.Msg) { m.Extra = []dns.RR{opt(same), opt(same)} }), dns.RcodeFormatError},
		{"EDNS of a name", question(func(m *dns.Msg) { m.Extra = []dns.RR{opt(func(o *dns.OPT) { o.Hdr.Name = "x." })} }), dns.RcodeFormatError},
		{"EDNS 1", question(func(m *dns.Msg) { m.Extra = []dns.RR{opt(func(o *dns.OPT) { o.SetVersion(1) })} }), dns.RcodeBadVers},
		{"unknown option", question(func(m *dns.Msg) {
			m.Extra = []dns.RR{opt(func(o *dns.OPT) { o.Option = []dns.EDNS0{&dns.EDNS0_LOCAL{Code: 65001, Data: []byte("x")}} })}
		}), dns.RcodeSuccess},
		{"padding and recursion off", question(func(m *dns.Msg) {
			m.RecursionDesired = false
			m.Extra = []dns.RR{opt(func(o *dns.OPT) { o.Option = []dns.EDNS0{&dns.EDNS0_PADDING{Padding: make([]byte, 400)}} })}
		}), dns.RcodeSuccess},
	} {
		m := exchange(t, z, "", byUDP, tc.q)
		if m.Rcode != tc.rcode || m.Opcode != tc.q.Opcode || m.Id != tc.q.Id || m.RecursionDesired != tc.q.RecursionDesired {
			t.Errorf("%s: %v", tc.what, m)
		}
		if answered := len(m.Answer) > 0; answered != (tc.rcode == dns.RcodeSuccess) {
			t.Errorf("%s: %v", tc.what, m)
		}
	}
}

func TestSilence(t *testing.T) {
	z := zoneOf(world())
	good, err := new(dns.Msg).SetQuestion("v4.vm.", dns.TypeA).SetEdns0(1232, true).Pack()
	if err != nil {
		t.Fatal(err)
	}
	response := bytes.Clone(good)
	response[2] |= 0x80
	loop := append(bytes.Clone(good[:headerSize]), 0xc0, headerSize, 0, 1, 0, 1)
	loop[11] = 0
	for what, packet := range map[string][]byte{
		"nothing": nil, "a byte": {1}, "half a header": good[:headerSize-1], "a header": good[:headerSize],
		"half a question": good[:16], "half an OPT": good[:len(good)-3], "an answer": response,
		"a name that points at itself": loop, "too much": append(bytes.Clone(good), make([]byte, maxQuery)...),
	} {
		if out := z.respond(z.all, byUDP, packet, nil); out != nil {
			t.Errorf("%s: answered %x", what, out)
		}
	}
}

func TestEDNS(t *testing.T) {
	z := zoneOf(world())
	m := exchange(t, z, "", byUDP, new(dns.Msg).SetQuestion("web.vm.", dns.TypeA).SetEdns0(4096, true))
	if opt := m.IsEdns0(); opt == nil || opt.UDPSize() != maxUDP || !opt.Do() || len(opt.Option) != 0 {
		t.Errorf("%v", m)
	}
	// Who is refused learns why.
	m = exchange(t, z, "", byUDP, new(dns.Msg).SetQuestion("example.org.", dns.TypeA).SetEdns0(4096, false))
	opt := m.IsEdns0()
	if m.Rcode != dns.RcodeRefused || opt == nil || opt.Do() || len(opt.Option) != 1 {
		t.Fatalf("%v", m)
	}
	if ede, ok := opt.Option[0].(*dns.EDNS0_EDE); !ok || ede.InfoCode != dns.ExtendedErrorCodeNotAuthoritative {
		t.Errorf("%v", m)
	}
}

func TestTruncation(t *testing.T) {
	var many []netip.Addr
	for a := netip.MustParseAddr("fd42::1"); len(many) < maxAddrs; a = a.Next() {
		many = append(many, a)
	}
	some := many[:20]
	z := zoneOf(map[string]Host{"many": {Addrs: many}, "some": {Addrs: some}})
	for _, tc := range []struct {
		name    string
		size    uint16 // of EDNS; 0: without
		via     transport
		answers int
	}{
		{"some", 0, byUDP, 0},
		{"some", 100, byUDP, 0}, // less than 512 counts as 512
		{"some", 700, byUDP, len(some)},
		{"some", 65535, byUDP, len(some)},
		{"many", 0, byUDP, 0},
		{"many", 65535, byUDP, 0}, // never larger than what need not be cut up
		{"some", 0, byTCP, len(some)},
		{"many", 512, byTCP, maxAddrs},
	} {
		q := new(dns.Msg).SetQuestion(tc.name+".vm.", dns.TypeAAAA)
		if tc.size > 0 {
			q.SetEdns0(tc.size, false)
		}
		m := exchange(t, z, "", tc.via, q)
		if len(m.Answer) != tc.answers || m.Truncated != (tc.answers == 0) || (m.IsEdns0() != nil) != (tc.size > 0) || !m.Authoritative {
			t.Errorf("%s %d: %d answers, truncated %v", tc.name, tc.size, len(m.Answer), m.Truncated)
		}
	}
}

// The question comes back as it was, to the bit: askers put randomness into the
// letters of a name to tell an answer from a forged one.
func TestQuestionIsEchoed(t *testing.T) {
	z := zoneOf(world())
	for _, name := range []string{"wEB.Vm.", "NoBody.VM.", "ExAmple.ORG.", `a\000\.b\255.vM.`, strings.Repeat("aB", 31) + ".vm."} {
		packet, err := new(dns.Msg).SetQuestion(name, dns.TypeA).Pack()
		if err != nil {
			t.Fatal(err)
		}
		out := z.respond(z.all, byUDP, packet, nil)
		if len(out) < len(packet) || !bytes.Equal(out[headerSize:len(packet)], packet[headerSize:]) {
			t.Errorf("%s: %x\n%x", name, packet, out)
		}
	}
}

func FuzzRespond(f *testing.F) {
	z := zoneOf(world(), netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("fd42::/64"))
	for name, rrtype := range map[string]uint16{"web.vm.": dns.TypeA, "db.lab.vm.": dns.TypeAAAA, "vm.": dns.TypeSOA,
		"2.0.42.10.in-addr.arpa.": dns.TypePTR, "x.9.42.10.in-addr.arpa.": dns.TypePTR, reverse("fd42::9"): dns.TypeA, "example.org.": dns.TypeANY, "x.vm.": dns.TypeAXFR} {
		for _, q := range []*dns.Msg{new(dns.Msg).SetQuestion(name, rrtype), new(dns.Msg).SetQuestion(name, rrtype).SetEdns0(900, true)} {
			packet, err := q.Pack()
			if err != nil {
				f.Fatal(err)
			}
			f.Add(packet)
			f.Add(packet[:len(packet)-1])
		}
	}
	buf := make([]byte, maxUDP)
	f.Fuzz(func(t *testing.T, packet []byte) {
		before := bytes.Clone(packet)
		for _, via := range []transport{byUDP, byTCP} {
			out := z.respond(z.all, via, packet, buf)
			if !bytes.Equal(packet, before) {
				t.Fatal("the question was written to")
			}
			if out == nil {
				continue
			}
			var m, q dns.Msg
			if err := m.Unpack(out); err != nil {
				t.Fatalf("the answer is malformed: %v", err)
			}
			switch {
			case via == byUDP && len(out) > maxUDP:
				t.Fatalf("an answer of %d bytes", len(out))
			case !m.Response || m.RecursionAvailable || m.Id != uint16(packet[0])<<8|uint16(packet[1]):
				t.Fatalf("no answer to the question: %v", &m)
			case m.Rcode == dns.RcodeServerFailure:
				t.Fatalf("no answer could be made: %v", &m)
			case len(m.Question) == 0:
				continue // a header that refuses
			}
			if q.Unpack(packet) != nil || !slices.Equal(q.Question, m.Question) {
				t.Fatalf("another question was answered: %v", &m)
			}
		}
	})
}
