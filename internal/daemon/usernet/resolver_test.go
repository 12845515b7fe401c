package usernet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// dnsServer answers on a port of the loopback, by UDP and TCP.
func dnsServer(t testing.TB, handle dns.HandlerFunc) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := l.Addr().(*net.TCPAddr).AddrPort()
	pc, err := net.ListenPacket("udp4", at.String())
	if err != nil {
		t.Skipf("the UDP port beside a free TCP port is taken: %v", err)
	}
	for _, s := range []*dns.Server{{Listener: l, Handler: handle}, {PacketConn: pc, Handler: handle}} {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		go func() { _ = s.ActivateAndServe() }()
		<-started
		t.Cleanup(func() { _ = s.Shutdown() })
	}
	return at
}

// says makes a handler that gives every name this address, and counts.
func says(ip string, asked *atomic.Int32) dns.HandlerFunc {
	return func(w dns.ResponseWriter, q *dns.Msg) {
		asked.Add(1)
		m := new(dns.Msg).SetReply(q)
		rr, _ := dns.NewRR(q.Question[0].Name + " 60 IN A " + ip)
		m.Answer = append(m.Answer, rr)
		_ = w.WriteMsg(m)
	}
}

func fixedResolver(servers ...netip.AddrPort) *Resolver {
	return &Resolver{path: "/nonexistent/resolv.conf", servers: servers}
}

func query(t testing.TB, name string) []byte {
	t.Helper()
	b, err := new(dns.Msg).SetQuestion(name, dns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestResolverFailover(t *testing.T) {
	var good, failing atomic.Int32
	working := dnsServer(t, says("198.51.100.9", &good))
	broken := dnsServer(t, func(w dns.ResponseWriter, q *dns.Msg) {
		failing.Add(1)
		_ = w.WriteMsg(new(dns.Msg).SetRcode(q, dns.RcodeServerFailure))
	})
	closed, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead := closed.LocalAddr().(*net.UDPAddr).AddrPort()
	_ = closed.Close()

	for _, network := range []string{"udp", "tcp"} {
		r := fixedResolver(dead, broken, working)
		for range 3 {
			a, err := r.Resolve(testContext(t), network, query(t, "x.example."))
			if err != nil {
				t.Fatal(err)
			}
			var m dns.Msg
			if err := m.Unpack(a); err != nil || len(m.Answer) != 1 {
				t.Fatalf("%s: %v, %v", network, m, err)
			}
		}
	}
	if good.Load() != 6 || failing.Load() != 2 {
		t.Fatalf("the working server was asked %d times, the failing one %d", good.Load(), failing.Load())
	}

	r := fixedResolver(dead, broken)
	a, err := r.Resolve(testContext(t), "udp", query(t, "x.example."))
	if err != nil || a[3]&0xf != rcodeServerFailure {
		t.Fatalf("%x, %v: want the server's failure passed on", a, err)
	}
	if _, err := fixedResolver(dead).Resolve(testContext(t), "udp", query(t, "x.example.")); !errors.Is(err, errNoAnswer) {
		t.Fatalf("%v, want no answer", err)
	}
}

// The host may know the names of VMs; no guest hears of them, by whichever name it asks.
func TestResolverKnowsNoVMs(t *testing.T) {
	var asked atomic.Int32
	server := dnsServer(t, func(w dns.ResponseWriter, q *dns.Msg) {
		asked.Add(1)
		m := new(dns.Msg).SetReply(q)
		m.Compress = true
		for _, record := range map[string][]string{
			"db.vm.":                     {"db.vm. A 10.31.0.2"},
			"evil.example.":              {"evil.example. CNAME DB.VM.", "DB.VM. A 10.31.0.2"},
			"2.0.31.10.in-addr.arpa.":    {"2.0.31.10.in-addr.arpa. PTR db.vm."},
			"vm.example.":                {"vm.example. A 198.51.100.9"},
			"db.vms.":                    {"db.vms. A 198.51.100.9"},
			"9.100.51.198.in-addr.arpa.": {"9.100.51.198.in-addr.arpa. PTR www.vm.example."},
		}[strings.ToLower(q.Question[0].Name)] {
			rr, err := dns.NewRR(record)
			if err != nil {
				t.Error(err)
			}
			m.Answer = append(m.Answer, rr)
		}
		_ = w.WriteMsg(m)
	})
	r := fixedResolver(server)
	for name, want := range map[string]struct{ rcode, records int }{
		"db.vm.":                     {dns.RcodeNameError, 0},
		"DB.Vm.":                     {dns.RcodeNameError, 0},
		"vm.":                        {dns.RcodeNameError, 0},
		"db.lab.vm.":                 {dns.RcodeNameError, 0},
		"evil.example.":              {dns.RcodeNameError, 0},
		"2.0.31.10.in-addr.arpa.":    {dns.RcodeNameError, 0},
		"vm.example.":                {dns.RcodeSuccess, 1},
		"db.vms.":                    {dns.RcodeSuccess, 1},
		"9.100.51.198.in-addr.arpa.": {dns.RcodeSuccess, 1},
	} {
		for _, network := range []string{"udp", "tcp"} {
			asked.Store(0)
			a, err := r.Resolve(testContext(t), network, query(t, name))
			if err != nil {
				t.Fatal(err)
			}
			var m dns.Msg
			if err := m.Unpack(a); err != nil || m.Rcode != want.rcode || len(m.Answer) != want.records {
				t.Errorf("%s by %s: %v, %v", name, network, &m, err)
			}
			if vm := strings.HasSuffix(strings.ToLower("."+name), ".vm."); vm == (asked.Load() > 0) {
				t.Errorf("%s by %s: the host's resolver was asked %d times", name, network, asked.Load())
			}
		}
	}
}

// Datagrams that do not answer the question are passed over.
func TestResolverIgnoresForgeries(t *testing.T) {
	server := dnsServer(t, func(w dns.ResponseWriter, q *dns.Msg) {
		for _, forge := range []func(*dns.Msg){
			func(m *dns.Msg) { m.Id++ },
			func(m *dns.Msg) { m.Question[0].Name = "evil.example." },
			func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAAAA },
			func(m *dns.Msg) { m.Response = false },
			func(m *dns.Msg) {
				m.Question[0].Name = strings.ToUpper(m.Question[0].Name)
				m.Rcode = dns.RcodeNameError
			},
		} {
			m := new(dns.Msg).SetReply(q)
			forge(m)
			_ = w.WriteMsg(m)
		}
		_, _ = w.Write([]byte("short"))
	})
	a, err := fixedResolver(server).Resolve(testContext(t), "udp", query(t, "x.example."))
	if err != nil {
		t.Fatal(err)
	}
	if a[3]&0xf != dns.RcodeNameError {
		t.Fatalf("rcode %d: a forgery was taken", a[3]&0xf)
	}
}

func TestResolvConfIsReadAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	write := func(text string, age time.Duration) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		at := time.Now().Add(-age)
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	r := NewResolver(path)
	check := func(want string) {
		t.Helper()
		if got := fmt.Sprint(r.current()); got != want {
			t.Fatalf("servers %s, want %s", got, want)
		}
	}
	check("[127.0.0.1:53]")
	write("# comment\nsearch x\nnameserver 192.0.2.1\n  nameserver\tfe80::1%eth0 \nnameserver bad\nnameserver ::1\nnameserver 192.0.2.4\n", time.Hour)
	check("[192.0.2.1:53 [fe80::1%eth0]:53 [::1]:53]")
	write("nameserver 192.0.2.2\n", time.Minute)
	check("[192.0.2.2:53]")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	check("[127.0.0.1:53]")
}

// exchange asks the gateway from the guest.
func (v *vmm) exchange(network string, m *dns.Msg) (*dns.Msg, error) {
	v.t.Helper()
	to := netip.AddrPortFrom(gatewayIP, DNSPort)
	var c net.Conn
	if network == "tcp" {
		c = v.mustDialTCP(to)
	} else {
		c = v.mustDialUDP(to)
	}
	cl := &dns.Client{Net: network, Timeout: deadline}
	r, _, err := cl.ExchangeWithConn(m, &dns.Conn{Conn: c, UDPSize: 4096})
	return r, err
}

func TestGuestDNSFailure(t *testing.T) {
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	// Nobody answers there, and says so at once.
	if err := os.WriteFile(conf, []byte("nameserver 127.83.99.1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	v, _ := attached(t, HelperConfig{Resolvers: conf})
	for _, network := range []string{"udp", "tcp"} {
		r, err := v.exchange(network, new(dns.Msg).SetQuestion("x.example.", dns.TypeA))
		if err != nil || r.Rcode != dns.RcodeServerFailure || len(r.Question) != 1 {
			t.Fatalf("%s: %v, %v; want a server failure", network, r, err)
		}
	}
	// Only so many questions are under way at a time; the rest is dropped, and
	// the resolver lives on.
	c := v.mustDialUDP(netip.AddrPortFrom(gatewayIP, DNSPort))
	for range 1000 {
		_, _ = c.Write(query(t, "flood.example."))
	}
	if _, err := v.exchange("tcp", new(dns.Msg).SetQuestion("x.example.", dns.TypeA)); err != nil {
		t.Fatal(err)
	}
}

func TestServerFailure(t *testing.T) {
	q := new(dns.Msg).SetQuestion("some.name.example.", dns.TypeMX).SetEdns0(1232, true)
	b, err := q.Pack()
	if err != nil {
		t.Fatal(err)
	}
	var m dns.Msg
	if err := m.Unpack(serverFailure(b)); err != nil {
		t.Fatal(err)
	}
	if m.Id != q.Id || !m.Response || m.Rcode != dns.RcodeServerFailure || len(m.Question) != 1 || m.Question[0] != q.Question[0] || len(m.Extra) != 0 {
		t.Fatalf("%v", &m)
	}
	junk := append(b[:12:12], 0xc0, 0x0c, 0, 1)
	if err := m.Unpack(serverFailure(junk)); err != nil || len(m.Question) != 0 {
		t.Fatalf("%v, %v", &m, err)
	}
}

// FuzzDNS feeds what a guest or a server may send to the code that looks into it.
func FuzzDNS(f *testing.F) {
	f.Add(query(f, "x.example."), query(f, "y.example."))
	f.Fuzz(func(t *testing.T, a, q []byte) {
		if isQuery(q) {
			_ = answers(a, q)
			_ = serverFailure(q)
		}
	})
}
