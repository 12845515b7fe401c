package vmdns

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"banger/internal/doctor"
	"banger/internal/errdefs"
)

var loopback = netip.MustParseAddrPort("127.0.0.1:0")

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// service returns one that answers for hosts on a free port.
func service(t testing.TB, hosts map[string]Host) (*Service, netip.AddrPort) {
	t.Helper()
	s := New(Deps{Log: quiet()})
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := s.Replace(hosts); err != nil {
		t.Fatal(err)
	}
	at, err := s.Open(Listener{Addr: loopback})
	if err != nil {
		t.Fatal(err)
	}
	return s, at
}

// ask puts a question to a server.
func ask(t testing.TB, at netip.AddrPort, network, name string, rrtype uint16) *dns.Msg {
	t.Helper()
	c := &dns.Client{Net: network, Timeout: 10 * time.Second}
	m, _, err := c.Exchange(new(dns.Msg).SetQuestion(name, rrtype), at.String())
	if err != nil {
		t.Fatalf("%s %s: %v", network, name, err)
	}
	return m
}

func TestRecordsFollowTheVMs(t *testing.T) {
	s, at := service(t, nil)
	check := func(name, want string) {
		t.Helper()
		for _, network := range []string{"udp", "tcp"} {
			if got := summary(ask(t, at, network, name, dns.TypeA)); got != want {
				t.Errorf("%s %s:\n got %s\nwant %s", network, name, got, want)
			}
		}
	}
	check("web.vm.", absent)
	if err := s.Set("web", Host{Addrs: addrs("10.42.0.2", "10.42.0.2", "::ffff:10.42.0.3")}); err != nil {
		t.Fatal(err)
	}
	check("web.vm.", "NOERROR aa | web.vm. A 10.42.0.2, web.vm. A 10.42.0.3 | ")
	if err := s.Set("web", Host{Network: "lab", Addrs: addrs("10.42.0.9")}); err != nil {
		t.Fatal(err)
	}
	check("web.lab.vm.", "NOERROR aa | web.lab.vm. A 10.42.0.9 | ")
	if m := ask(t, at, "udp", "2.0.42.10.in-addr.arpa.", dns.TypePTR); m.Rcode != dns.RcodeRefused {
		t.Errorf("an address that was given back is known: %v", m)
	}
	s.Remove("web", "")
	s.Remove("web", "")
	check("web.vm.", absent)
	check("lab.vm.", absent)

	before := s.zone.Load().soa.Serial
	if err := s.Replace(world()); err != nil {
		t.Fatal(err)
	}
	check("v4.vm.", "NOERROR aa | v4.vm. A 10.42.0.4 | ")
	if s.zone.Load().soa.Serial == before {
		t.Error("the serial is that of the zone before")
	}
	if err := s.Replace(map[string]Host{"v4": {Addrs: addrs("10.42.0.5")}}); err != nil {
		t.Fatal(err)
	}
	check("v4.vm.", "NOERROR aa | v4.vm. A 10.42.0.5 | ")
	check("web.vm.", absent)
}

// What a caller does with its slice afterwards is not seen.
func TestHostsAreCopied(t *testing.T) {
	s, at := service(t, nil)
	list := addrs("10.42.0.2")
	if err := s.Set("web", Host{Addrs: list}); err != nil {
		t.Fatal(err)
	}
	list[0] = netip.MustParseAddr("10.42.0.66")
	s.Remove("other", "")
	if got := summary(ask(t, at, "udp", "web.vm.", dns.TypeA)); !strings.Contains(got, "10.42.0.2") {
		t.Error(got)
	}
}

func TestBadHosts(t *testing.T) {
	s, at := service(t, world())
	for _, tc := range []struct {
		name string
		host Host
		msg  string
	}{
		{"my_vm", Host{}, `VM name "my_vm" is not a DNS label`},
		{"a.b", Host{}, "is not a DNS label"},
		{"Web", Host{}, "is not a DNS label"},
		{"", Host{}, "is not a DNS label"},
		{"web", Host{Network: "my_net"}, `network name "my_net" is not a DNS label`},
		{"web", Host{Addrs: []netip.Addr{{}}}, "cannot have the address"},
		{"web", Host{Addrs: addrs("0.0.0.0")}, "cannot have the address 0.0.0.0"},
		{"web", Host{Addrs: addrs("::")}, "cannot have the address"},
		{"web", Host{Addrs: addrs("224.0.0.251")}, "cannot have the address"},
		{"web", Host{Addrs: make([]netip.Addr, maxAddrs+1)}, "65 addresses, more than 64"},
	} {
		for how, err := range map[string]error{"set": s.Set(tc.name, tc.host), "replace": s.Replace(map[string]Host{"v4": {}, tc.name: tc.host})} {
			if !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), tc.msg) {
				t.Errorf("%s %q %+v: %v", how, tc.name, tc.host, err)
			}
		}
	}
	if got := summary(ask(t, at, "udp", "v4.vm.", dns.TypeA)); got != "NOERROR aa | v4.vm. A 10.42.0.4 | " {
		t.Errorf("a refused change left %s", got)
	}
}

// askFrom puts a question from an address of this host.
func askFrom(t testing.TB, from string, at netip.AddrPort, network, name string, rrtype uint16) *dns.Msg {
	t.Helper()
	c := &dns.Client{Net: network, Dialer: &net.Dialer{Timeout: 10 * time.Second, LocalAddr: &net.UDPAddr{IP: net.ParseIP(from)}}}
	if network == "tcp" {
		c.Dialer.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
	}
	m, _, err := c.Exchange(new(dns.Msg).SetQuestion(name, rrtype), at.String())
	if err != nil {
		t.Fatalf("%s from %s by %s: %v", name, from, network, err)
	}
	return m
}

// Where guests ask, each is told of the VMs it sees; what it does not see does not
// exist, and no other server is asked about it. The host sees all, there as well.
func TestGuestsSeeTheirNetwork(t *testing.T) {
	s, host := service(t, map[string]Host{
		"web": {Network: "lab", Addrs: addrs("127.9.0.2")}, "db": {Network: "lab", Addrs: addrs("127.9.0.3")},
		"far": {Network: "other", Addrs: addrs("127.9.0.4")}, "alone": {Addrs: addrs("127.9.0.5")},
	})
	gateway, err := s.Open(Listener{
		Addr: netip.MustParseAddrPort("127.9.0.1:0"), Guests: netip.MustParsePrefix("127.9.0.1/16"),
		Forward: func(_ context.Context, _ string, query []byte) ([]byte, error) {
			t.Errorf("others were asked %q", query)
			return nil, errors.New("nobody answers")
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	const nobody = "127.9.0.77"
	for _, tc := range []struct {
		at   netip.AddrPort
		from string
		sees string // of web, db, far, alone
	}{
		{host, "127.0.0.1", "web db far alone"},
		{host, "127.9.0.5", "web db far alone"}, // the host's own address is for the host
		{gateway, "127.9.0.1", "web db far alone"},
		{gateway, "127.9.0.2", "web db"},
		{gateway, "127.9.0.3", "web db"},
		{gateway, "127.9.0.4", "far"},
		{gateway, "127.9.0.5", "alone"},
		{gateway, nobody, ""},
		{gateway, "127.0.0.1", ""},
	} {
		for _, network := range []string{"udp", "tcp"} {
			var sees []string
			for i, name := range []string{"web", "db", "far", "alone"} {
				forth := askFrom(t, tc.from, tc.at, network, name+".vm.", dns.TypeA)
				back := askFrom(t, tc.from, tc.at, network, fmt.Sprintf("%d.0.9.127.in-addr.arpa.", i+2), dns.TypePTR)
				switch {
				case len(forth.Answer) == 1 && len(back.Answer) == 1:
					sees = append(sees, name)
				case forth.Rcode != dns.RcodeNameError || back.Rcode != dns.RcodeNameError:
					t.Errorf("%s by %s of %s:\n%v\n%v", tc.from, network, name, forth, back)
				}
			}
			if got := strings.Join(sees, " "); got != tc.sees {
				t.Errorf("%s at %s by %s sees %q, want %q", tc.from, tc.at, network, got, tc.sees)
			}
		}
	}
}

func TestBadAddresses(t *testing.T) {
	s, at := service(t, nil)
	for _, tc := range []struct {
		l         Listener
		want      error
		msg, hint string
	}{
		{Listener{}, errdefs.ErrInvalidArgument, "no address is given", ""},
		{Listener{Addr: netip.MustParseAddrPort("0.0.0.0:53")}, errdefs.ErrInvalidArgument, "not the address of one interface", "loopback"},
		{Listener{Addr: netip.MustParseAddrPort("[::]:53")}, errdefs.ErrInvalidArgument, "not the address of one interface", "loopback"},
		{Listener{Addr: netip.MustParseAddrPort("192.0.2.77:5300")}, errdefs.ErrUnavailable, "this host does not have that address", "loopback"},
		{Listener{Addr: at}, errdefs.ErrFailedPrecondition, fmt.Sprintf("answer for .vm on %s: the port is taken", at), fmt.Sprintf("'sport = :%d'", at.Port())},
		{Listener{Addr: netip.AddrPortFrom(netip.MustParseAddr("::ffff:127.0.0.1"), at.Port())}, errdefs.ErrFailedPrecondition, "the port is taken", "dns.listen"},
	} {
		_, err := s.Open(tc.l)
		if !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.msg) || !strings.Contains(errdefs.HintOf(err), tc.hint) {
			t.Errorf("%+v: %v (hint %q)", tc.l, err, errdefs.HintOf(err))
		}
	}
	err := bindError(netip.MustParseAddrPort("127.0.0.42:53"), os.NewSyscallError("bind", unix.EACCES))
	if !errors.Is(err, errdefs.ErrPermission) || !strings.Contains(errdefs.HintOf(err), "below 1024") {
		t.Errorf("%v (hint %q)", err, errdefs.HintOf(err))
	}
	// One of the two kinds of sockets being taken is enough.
	udp, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(loopback))
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	taken := udp.LocalAddr().(*net.UDPAddr).AddrPort()
	if _, err := s.Open(Listener{Addr: taken}); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("%v", err)
	}
	if err := New(Deps{Log: quiet(), Listen: []Listener{{Addr: taken}}}).Restore(t.Context()); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("%v", err)
	}
	// What failed has left nothing open.
	tcp, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(taken))
	if err != nil {
		t.Fatal(err)
	}
	_ = tcp.Close()
}

func TestStop(t *testing.T) {
	s, first := service(t, world())
	second, err := s.Open(Listener{Addr: loopback})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", second.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := s.Shut(second); err != nil {
		t.Fatal(err)
	}
	if err := s.Shut(second); err != nil {
		t.Errorf("again: %v", err)
	}
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("a connection lived on")
	}
	if m := ask(t, first, "udp", "v4.vm.", dns.TypeA); len(m.Answer) != 1 {
		t.Errorf("the other address: %v", m)
	}
	for range 2 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Open(Listener{Addr: loopback}); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("opened after the end: %v", err)
	}
	// All of it is free again.
	for _, at := range []netip.AddrPort{first, second} {
		s := New(Deps{Log: quiet(), Listen: []Listener{{Addr: at}}})
		if err := errors.Join(s.Restore(t.Context()), s.Close()); err != nil {
			t.Error(err)
		}
	}
}

// A packet that is no question is passed over, and the next one is answered.
func TestJunk(t *testing.T) {
	_, at := service(t, world())
	conn, err := net.Dial("udp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, junk := range [][]byte{{}, []byte("GET / HTTP/1.1\r\n"), make([]byte, 11), make([]byte, 60000)} {
		if _, err := conn.Write(junk); err != nil {
			t.Fatal(err)
		}
	}
	if m := ask(t, at, "udp", "v4.vm.", dns.TypeA); len(m.Answer) != 1 {
		t.Errorf("%v", m)
	}

	for _, junk := range []string{"\x00\x00", "\x00\x05hello", "\xff\xff" + strings.Repeat("x", 70000)} {
		conn, err := net.Dial("tcp", at.String())
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(conn, junk)
		if _, err := conn.Read(make([]byte, 1)); err == nil {
			t.Errorf("%.20q was answered", junk)
		}
		_ = conn.Close()
	}
}

// One connection carries many questions.
func TestConnection(t *testing.T) {
	_, at := service(t, world())
	conn, err := dns.DialTimeout("tcp", at.String(), 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var sent []uint16
	for _, name := range []string{"v4.vm.", "web.vm.", "example.org."} {
		q := new(dns.Msg).SetQuestion(name, dns.TypeA)
		sent = append(sent, q.Id)
		if err := conn.WriteMsg(q); err != nil {
			t.Fatal(err)
		}
	}
	for i, id := range sent {
		m, err := conn.ReadMsg()
		if err != nil || m.Id != id {
			t.Fatalf("answer %d: %v, %v", i, m, err)
		}
	}
}

func TestLimits(t *testing.T) {
	var l limiter
	now := time.Unix(1_700_000_000, 0)
	guest, other := netip.MustParseAddr("10.42.0.2"), netip.MustParseAddr("10.42.0.3")
	local := netip.MustParseAddr("127.0.0.1")
	answered := 0
	for range 3 * maxQuestions {
		if l.question(guest, now) {
			answered++
		}
		if !l.question(local, now) {
			t.Fatal("this host was refused")
		}
	}
	if answered != maxQuestions {
		t.Errorf("%d questions were answered", answered)
	}
	if !l.question(other, now) {
		t.Error("another guest pays for it")
	}
	if !l.question(guest, now.Add(time.Second)) {
		t.Error("the next second is not another")
	}
	// Invented addresses cost no more than a bounded memory.
	for a, i := netip.MustParseAddr("fd42::1"), 0; i < 3*maxSources; a, i = a.Next(), i+1 {
		l.question(a, now)
	}
	if len(l.questions) > maxSources {
		t.Errorf("%d addresses are counted", len(l.questions))
	}

	opened := 0
	for range 2 * maxConnsEach {
		if l.connect(guest) {
			opened++
		}
	}
	if opened != maxConnsEach || !l.connect(other) {
		t.Errorf("%d connections of one guest", opened)
	}
	for l.connect(local) {
		opened++
	}
	if l.conns.all != maxConns {
		t.Errorf("%d connections are open", l.conns.all)
	}
	for range opened - maxConnsEach {
		l.disconnect(local)
	}
	for range maxConnsEach {
		l.disconnect(guest)
	}
	l.disconnect(other)
	if l.conns.all != 0 || len(l.conns.each) != 0 {
		t.Errorf("%+v", l.conns)
	}
}

// Questions are answered while the zone is replaced under them.
func TestQuestionsDuringChanges(t *testing.T) {
	s, at := service(t, world())
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for i := range 2 {
		wg.Go(func() {
			name := fmt.Sprintf("vm-%d", i)
			for n := range 10_000 {
				select {
				case <-stop:
					return
				default:
				}
				if err := s.Set(name, Host{Network: "lab", Addrs: addrs(fmt.Sprintf("10.43.%d.%d", n>>8&0xff, n&0xff))}); err != nil {
					t.Error(err)
				}
				s.Remove(name, "")
			}
		})
	}
	for range 200 {
		if m := ask(t, at, "udp", "web.vm.", dns.TypeA); len(m.Answer) != 2 {
			t.Fatalf("%v", m)
		}
	}
	close(stop)
	wg.Wait()
}

func TestCheck(t *testing.T) {
	run := func(at netip.AddrPort) doctor.Result { return Check(at).Run(t.Context()) }
	s, at := service(t, nil)
	if r := run(at); r.Status != doctor.StatusPass || !strings.Contains(r.Detail, "bangerd answers for .vm on "+at.String()) {
		t.Errorf("ours: %+v", r)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the check itself leaves it free
		if r := run(at); r.Status != doctor.StatusPass || !strings.Contains(r.Detail, "is free") {
			t.Errorf("free: %+v", r)
		}
	}
	// Another name server, and something that is none.
	other := &dns.Server{Addr: at.String(), Net: "udp", Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		_ = w.WriteMsg(new(dns.Msg).SetRcode(q, dns.RcodeNameError))
	})}
	started := make(chan struct{})
	other.NotifyStartedFunc = func() { close(started) }
	go func() { _ = other.ListenAndServe() }()
	<-started
	defer func() { _ = other.Shutdown() }()
	if r := run(at); r.Status != doctor.StatusWarn || !strings.Contains(r.Detail, "the port is taken") || !strings.Contains(r.Fix, "ss -lntup") {
		t.Errorf("another's: %+v", r)
	}
	tcp, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(loopback))
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	if r := run(tcp.Addr().(*net.TCPAddr).AddrPort()); r.Status != doctor.StatusWarn {
		t.Errorf("no name server: %+v", r)
	}
	if r := run(netip.MustParseAddrPort("192.0.2.77:53")); r.Status != doctor.StatusWarn || r.Fix == "" {
		t.Errorf("not here: %+v", r)
	}
}

// What is refused is put to others for VMs that are known and not isolated, and for the
// host; for nobody else.
func TestForward(t *testing.T) {
	const web, cut, nobody = "127.9.0.2", "127.9.0.3", "127.9.0.77"
	s, refusing := service(t, map[string]Host{"web": {Addrs: addrs(web)}, "cut": {Isolated: true, Addrs: addrs(cut)}})
	var asked atomic.Int32
	forward := func(_ context.Context, network string, query []byte) ([]byte, error) {
		asked.Add(1)
		var q dns.Msg
		if err := q.Unpack(query); err != nil {
			return nil, err
		}
		if q.Question[0].Name == "silent.example." {
			return nil, errors.New("nobody answers")
		}
		m := new(dns.Msg).SetReply(&q)
		rr, err := dns.NewRR(q.Question[0].Name + " 60 IN TXT " + network)
		m.Answer = append(m.Answer, rr)
		b, perr := m.Pack()
		return b, errors.Join(err, perr)
	}
	gateway, err := s.Open(Listener{Addr: netip.MustParseAddrPort("127.9.0.1:0"), Forward: forward, Guests: netip.MustParsePrefix("127.9.0.0/16")})
	if err != nil {
		t.Fatal(err)
	}
	for _, network := range []string{"udp", "tcp"} {
		for _, from := range []string{web, "127.9.0.1"} {
			if m := askFrom(t, from, gateway, network, "www.example.", dns.TypeTXT); len(m.Answer) != 1 || m.Answer[0].(*dns.TXT).Txt[0] != network {
				t.Errorf("%s: %s got %v", network, from, m)
			}
			if m := askFrom(t, from, gateway, network, "silent.example.", dns.TypeTXT); m.Rcode != dns.RcodeServerFailure {
				t.Errorf("%s: without an answer %s got %v", network, from, m)
			}
		}
		before := asked.Load()
		if m := askFrom(t, web, gateway, network, "web.vm.", dns.TypeA); len(m.Answer) != 1 {
			t.Errorf("%s: a guest got %v for a VM", network, m)
		}
		if m := askFrom(t, cut, gateway, network, "cut.vm.", dns.TypeA); len(m.Answer) != 1 {
			t.Errorf("%s: an isolated guest got %v for a VM", network, m)
		}
		if m := askFrom(t, web, gateway, network, "nothing.vm.", dns.TypeA); m.Rcode != dns.RcodeNameError {
			t.Errorf("%s: a guest got %v for no VM", network, m)
		}
		for from, at := range map[string]netip.AddrPort{cut: gateway, "127.0.0.1": gateway, web: refusing} {
			if m := askFrom(t, from, at, network, "www.example.", dns.TypeTXT); m.Rcode != dns.RcodeRefused {
				t.Errorf("%s: %s at %s got %v", network, from, at, m)
			}
		}
		// Of a VM that is not known yet the question comes again.
		c := &dns.Client{Net: network, Timeout: 100 * time.Millisecond, Dialer: &net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(nobody)}}}
		if network == "tcp" {
			c.Dialer.LocalAddr = &net.TCPAddr{IP: net.ParseIP(nobody)}
		}
		if m, _, err := c.Exchange(new(dns.Msg).SetQuestion("www.example.", dns.TypeTXT), gateway.String()); err == nil {
			t.Errorf("%s: nobody got %v", network, m)
		}
		if n := asked.Load() - before; n != 0 {
			t.Errorf("%s: %d questions were passed on that must not be", network, n)
		}
	}
}
