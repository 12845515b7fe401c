package vmdns

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// tool returns the path of a program, or skips.
func tool(t *testing.T, name, pkg string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		// Not in every user's PATH.
		if path, err = exec.LookPath(filepath.Join("/usr/sbin", name)); err != nil {
			t.Skipf("no %s here (package %s)", name, pkg)
		}
	}
	return path
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// dig and kdig take what they get apart more strictly than a resolver does, and
// complain about what is odd in it.
func TestDig(t *testing.T) {
	_, at := service(t, world())
	port := strconv.Itoa(int(at.Port()))
	for _, tc := range []struct {
		args []string
		want []string
	}{
		{[]string{"web.vm", "A"}, []string{"status: NOERROR", "10.42.0.2", "10.42.0.3"}},
		{[]string{"web.vm", "A", "+tcp"}, []string{"status: NOERROR", "10.42.0.2"}},
		{[]string{"WEB.vm", "AAAA", "+dnssec"}, []string{"fd42::2", " do; "}},
		{[]string{"nobody.vm", "A"}, []string{"status: NXDOMAIN", "SOA", "bangerd.invalid."}},
		{[]string{"v4.vm", "AAAA"}, []string{"status: NOERROR", "SOA"}},
		{[]string{"-x", "10.42.0.2"}, []string{"status: NOERROR", "web.vm."}},
		{[]string{"-x", "fd42::2"}, []string{"status: NOERROR", "web.vm."}},
		{[]string{"-x", "127.0.0.1"}, []string{"status: REFUSED"}},
		{[]string{"vm", "SOA"}, []string{"status: NOERROR", "SOA"}},
		{[]string{"vm", "NS"}, []string{"status: NOERROR", "NS"}},
		{[]string{"web.vm", "ANY", "+tcp"}, []string{"status: NOERROR", "RFC8482"}},
		{[]string{"example.org", "A"}, []string{"status: REFUSED", "only .vm is answered here"}},
		{[]string{"-c", "CH", "version.bind", "TXT"}, []string{"status: REFUSED"}},
	} {
		for program, pkg := range map[string]string{"dig": "bind9-dnsutils", "kdig": "knot-dnsutils"} {
			path, err := exec.LookPath(program)
			if err != nil {
				t.Logf("no %s here (package %s)", program, pkg)
				continue
			}
			args := append([]string{"@127.0.0.1", "-p", port, "+norecurse"}, tc.args...)
			if program == "kdig" {
				args = append(args, "+edns")
			}
			out := run(t, path, args...)
			for _, want := range append(tc.want, " qr") {
				if !strings.Contains(out, want) {
					t.Errorf("%s %s: no %q in\n%s", program, strings.Join(args, " "), want, out)
				}
			}
			if strings.Contains(strings.ToUpper(out), "WARNING") || strings.Contains(out, "malformed") {
				t.Errorf("%s %s complains:\n%s", program, strings.Join(args, " "), out)
			}
		}
	}
}

// A guest that asks for a VM it does not see, and for its address.
func TestDigFromAGuest(t *testing.T) {
	s, _ := service(t, map[string]Host{"web": {Network: "lab", Addrs: addrs("127.9.0.2")}, "far": {Addrs: addrs("127.9.0.4")}})
	at, err := s.Open(Listener{Addr: netip.MustParseAddrPort("127.9.0.1:0"), Guests: netip.MustParsePrefix("127.9.0.0/16")})
	if err != nil {
		t.Fatal(err)
	}
	for program, pkg := range map[string]string{"dig": "bind9-dnsutils", "kdig": "knot-dnsutils"} {
		path := tool(t, program, pkg)
		for _, tc := range []struct {
			args []string
			want []string
		}{
			{[]string{"web.vm", "A"}, []string{"status: NOERROR", "127.9.0.2"}},
			{[]string{"web.lab.vm", "AAAA"}, []string{"status: NOERROR", "SOA"}},
			{[]string{"far.vm", "A"}, []string{"status: NXDOMAIN", "SOA"}},
			{[]string{"far.vm", "A", "+tcp"}, []string{"status: NXDOMAIN", "SOA"}},
			{[]string{"-x", "127.9.0.2"}, []string{"status: NOERROR", "web.vm."}},
			{[]string{"-x", "127.9.0.4"}, []string{"status: NXDOMAIN", "9.127.in-addr.arpa."}},
		} {
			args := append([]string{"@127.9.0.1", "-p", strconv.Itoa(int(at.Port())), "-b", "127.9.0.2", "+norecurse"}, tc.args...)
			out := run(t, path, args...)
			for _, want := range tc.want {
				if !strings.Contains(out, want) {
					t.Errorf("%s %s: no %q in\n%s", program, strings.Join(args, " "), want, out)
				}
			}
		}
	}
}

func TestDigTransfer(t *testing.T) {
	dig := tool(t, "dig", "bind9-dnsutils")
	_, at := service(t, world())
	out := run(t, dig, "@127.0.0.1", "-p", strconv.Itoa(int(at.Port())), "vm", "AXFR")
	if !strings.Contains(out, "Transfer failed") {
		t.Error(out)
	}
}

// An answer that is too large for UDP is asked for by TCP.
func TestDigTruncation(t *testing.T) {
	dig := tool(t, "dig", "bind9-dnsutils")
	var many []netip.Addr
	for a := netip.MustParseAddr("fd42::1"); len(many) < maxAddrs; a = a.Next() {
		many = append(many, a)
	}
	_, at := service(t, map[string]Host{"many": {Addrs: many}})
	out := run(t, dig, "@127.0.0.1", "-p", strconv.Itoa(int(at.Port())), "many.vm", "AAAA")
	if !strings.Contains(out, "Truncated, retrying in TCP mode") || !strings.Contains(out, fmt.Sprintf("ANSWER: %d,", maxAddrs)) {
		t.Error(out)
	}
}

// dnsmasqAt runs dnsmasq with these options and returns where it listens. It has
// read the hosts in list when it does.
func dnsmasqAt(t *testing.T, list string, options ...string) netip.AddrPort {
	t.Helper()
	path := tool(t, "dnsmasq", "dnsmasq-base")
	file := filepath.Join(t.TempDir(), "hosts")
	if err := os.WriteFile(file, []byte(list), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(loopback))
	if err != nil {
		t.Fatal(err)
	}
	at := l.Addr().(*net.TCPAddr).AddrPort()
	_ = l.Close()
	// With -d it stays in front, keeps this user and says on stderr what it does.
	cmd := exec.Command(path, append([]string{"-d", "--conf-file=/dev/null", "--port=" + strconv.Itoa(int(at.Port())), "--listen-address=127.0.0.1",
		"--bind-interfaces", "--no-resolv", "--no-hosts", "--addn-hosts=" + file, "--log-facility=-", "--pid-file="}, options...)...)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ready, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		said := ""
		for lines := bufio.NewScanner(stderr); lines.Scan(); said += lines.Text() + "\n" {
			if strings.Contains(lines.Text(), "read "+file) {
				close(ready)
			}
		}
		_ = cmd.Wait()
		if !strings.Contains(said, "read "+file) {
			t.Logf("dnsmasq said: %s", said)
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
	})
	select {
	case <-ready:
	case <-ended:
		t.Fatal("dnsmasq ended")
	case <-time.After(30 * time.Second):
		t.Fatal("dnsmasq does not answer")
	}
	return at
}

// A resolver is to see no difference between us and dnsmasq with the same records:
// the code, and which addresses and names.
func TestSameAsDnsmasq(t *testing.T) {
	hosts := map[string]Host{
		"web": {Addrs: addrs("10.42.0.2", "fd42::2")}, "v4": {Addrs: addrs("10.42.0.4")}, "v6": {Addrs: addrs("fd42::6")},
	}
	var list strings.Builder
	for name, h := range hosts {
		for _, a := range h.Addrs {
			fmt.Fprintf(&list, "%s %s.vm\n", a, name)
		}
	}
	theirs := dnsmasqAt(t, list.String(), "--local=/vm/")
	_, ours := service(t, hosts)
	for _, q := range []struct {
		name   string
		rrtype uint16
	}{
		{"web.vm.", dns.TypeA}, {"web.vm.", dns.TypeAAAA}, {"wEb.vM.", dns.TypeA}, {"v4.vm.", dns.TypeA}, {"v4.vm.", dns.TypeAAAA},
		{"v6.vm.", dns.TypeA}, {"v6.vm.", dns.TypeMX}, {"nobody.vm.", dns.TypeA}, {"nobody.vm.", dns.TypeAAAA}, {"x.web.vm.", dns.TypeA},
		{"2.0.42.10.in-addr.arpa.", dns.TypePTR}, {reverse("fd42::6"), dns.TypePTR}, {"example.org.", dns.TypeA},
	} {
		for _, network := range []string{"udp", "tcp"} {
			a, b := ask(t, ours, network, q.name, q.rrtype), ask(t, theirs, network, q.name, q.rrtype)
			gist := func(m *dns.Msg) string {
				out := dns.RcodeToString[m.Rcode]
				for _, rr := range m.Answer {
					out += fmt.Sprintf(" %s %s", rr.Header().Name, strings.TrimPrefix(rr.String(), rr.Header().String()))
				}
				return out
			}
			if gist(a) != gist(b) {
				t.Errorf("%s %s by %s:\n   ours %s\ndnsmasq %s", q.name, dns.TypeToString[q.rrtype], network, gist(a), gist(b))
			}
		}
	}
}

// The lines that docs/dns.md gives for dnsmasq make it ask us.
func TestDnsmasqRecipe(t *testing.T) {
	text, err := os.ReadFile("../../../docs/dns.md")
	if err != nil {
		t.Fatal(err)
	}
	_, ours := service(t, world())
	options := []string{"--stop-dns-rebind"}
	for _, line := range regexp.MustCompile(`(?m)^    ((?:rev-)?server=.*|rebind-domain-ok=.*)$`).FindAllStringSubmatch(string(text), -1) {
		options = append(options, "--"+strings.ReplaceAll(line[1], "127.0.0.42#53", strings.ReplaceAll(ours.String(), ":", "#")))
	}
	if len(options) != 4 {
		t.Fatalf("options %q", options)
	}
	through := dnsmasqAt(t, "", options...)
	for _, tc := range []struct {
		name   string
		rrtype uint16
		want   string
	}{
		{"web.vm.", dns.TypeAAAA, "fd42::2"}, {"v4.vm.", dns.TypeA, "10.42.0.4"}, {"nobody.vm.", dns.TypeA, "NXDOMAIN"},
		{"2.0.42.10.in-addr.arpa.", dns.TypePTR, "web.vm."}, {"example.org.", dns.TypeA, "REFUSED"},
	} {
		if got := summary(ask(t, through, "udp", tc.name, tc.rrtype)); !strings.Contains(got, tc.want) {
			t.Errorf("%s: %s", tc.name, got)
		}
	}
}
