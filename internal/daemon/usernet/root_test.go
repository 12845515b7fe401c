package usernet

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"banger/internal/model"
	"banger/internal/sysexec"
)

// None of the host's services answers, under whatever address.
func TestKernelGuestCannotReachHost(t *testing.T) {
	l := newLab(t)
	var tcp, udp atomic.Int32
	l.host.serveTCP(":7", &tcp)
	l.host.serveUDP("0.0.0.0:7", &udp)
	l.host.serveTCP("127.0.0.1:53", &tcp) // the host's resolver is not the guest's to talk to
	l.boot(t)

	own := []string{hostIP, "127.0.0.1", "127.5.5.5", "203.0.113.5", "169.254.9.9", "10.99.0.1",
		"198.18.0.7", "198.18.0.0", "10.77.0.255", GatewayIP}
	for _, ip := range own {
		if ip != GatewayIP && ip != "10.77.0.255" {
			// It is the policy that keeps the guest out: the host itself gets in.
			c, err := l.host.dial("tcp", ip+":7")
			if err != nil {
				t.Fatalf("the host itself does not reach %s: %v", ip, err)
			}
			if err := roundTrip(c, "hello"); err != nil {
				t.Fatalf("the host itself does not reach %s: %v", ip, err)
			}
			_ = c.Close()
		}
	}
	tcp.Store(0)
	for _, ip := range append(own, "0.1.2.3", "192.168.127.77") {
		began := time.Now()
		for _, port := range []string{"7", "22", "53"} {
			if ip == GatewayIP && port == "53" {
				continue
			}
			patience := deadline
			if !l.isOnWire(ip) {
				patience = 200 * time.Millisecond
			}
			c, err := l.guest.dialFor(patience, "tcp", ip+":"+port)
			if err == nil {
				t.Errorf("the guest reaches %s:%s", ip, port)
				_ = c.Close()
			}
			if l.isOnWire(ip) && !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("%s:%s: %v, want refused", ip, port, err)
			}
		}
		if d := time.Since(began); l.isOnWire(ip) && d > 2*time.Second {
			t.Errorf("%s is refused only after %s", ip, d)
		}
		l.guest.Must(func() error {
			c, err := net.Dial("udp", ip+":7")
			if err != nil {
				return nil // the kernel would not even try
			}
			defer func() { _ = c.Close() }()
			_, _ = c.Write([]byte("x"))
			_ = c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
			if _, err := c.Read(make([]byte, 1)); err == nil {
				t.Errorf("a datagram to %s is answered", ip)
			}
			return nil
		})
	}
	if tcp.Load() != 0 || udp.Load() != 0 {
		t.Fatalf("the host's services saw %d connections and %d datagrams of the guest", tcp.Load(), udp.Load())
	}

	// The same services in the outside world are reached, so the wire works.
	var outTCP, outUDP atomic.Int32
	l.outside.serveTCP(":7", &outTCP)
	l.outside.serveUDP("0.0.0.0:7", &outUDP)
	for _, network := range []string{"tcp", "udp"} {
		c, err := l.guest.dial(network, outsideIP+":7")
		if err != nil {
			t.Fatal(err)
		}
		if err := roundTrip(c, "hello"); err != nil {
			t.Fatalf("%s: %v", network, err)
		}
		_ = c.Close()
	}

	// An address that comes later is refused from then on, and one that goes is
	// somebody else's.
	l.outside.IP("addr add 203.0.113.77/32 dev v1")
	for range 3 {
		c, err := l.guest.dial("tcp", "203.0.113.77:7")
		if err != nil {
			t.Fatal(err)
		}
		// To the end, while the address is where it is.
		_ = c.(*net.TCPConn).CloseWrite()
		if _, err := io.Copy(io.Discard, c); err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
		l.host.IP("addr add 203.0.113.77/32 dev d0")
		if c, err := l.guest.dial("tcp", "203.0.113.77:7"); !errors.Is(err, syscall.ECONNREFUSED) {
			_ = c.Close()
			t.Fatalf("dial to a new address of the host: %v, want refused", err)
		}
		l.host.IP("addr del 203.0.113.77/32 dev d0")
	}
	if tcp.Load() != 0 {
		t.Fatal("the guest got into the host by a new address")
	}
}

// VMs with addresses, whichever daemon's they are, are not reached by way of the host,
// which reaches them.
func TestKernelGuestCannotReachOtherVMs(t *testing.T) {
	l := newLab(t)
	sibling := newNamespace(t)
	l.host.Wire("b0", []string{"10.31.0.1/16", "fd99::1/64"}, sibling.NS, "eth0", []string{"10.31.0.2/16", "fd99::2/64"})
	sibling.IP("route add default via 10.31.0.1")
	var reached atomic.Int32
	sibling.serveTCP(":7", &reached)
	l.boot(t)
	reach := func() error {
		c, err := l.guest.dial("tcp", "10.31.0.2:7")
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		return roundTrip(c, "hello")
	}
	// What tells it from any other machine is whose the device is, from then on.
	for range 3 {
		if err := reach(); err != nil {
			t.Fatalf("a machine that is no VM: %v", err)
		}
		l.host.alias("b0", model.LinkOwner+"0123456789abcdef")
		seen := reached.Load()
		if err := reach(); !errors.Is(err, syscall.ECONNREFUSED) || reached.Load() != seen {
			t.Fatalf("a VM on a bridge: %v, want refused", err)
		}
		if c, err := l.host.dial("tcp", "10.31.0.2:7"); err != nil {
			t.Fatalf("the host itself: %v", err)
		} else {
			_ = c.Close()
		}
		l.host.alias("b0", "somebody else's")
	}
}

// The networks of VMs are known by IPv4 and IPv6, and apart from the host's own
// addresses in them.
func TestInsideOtherVMs(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	host := newNamespace(t)
	host.IP("link add b0 type veth peer name b1")
	host.alias("b0", model.LinkOwner+"x")
	host.IP("link set b0 up", "link set b1 up", "addr add 10.31.0.1/16 dev b0", "addr add fd99::1/64 dev b0 nodad")
	var h *hostAddrs
	host.Must(func() (err error) { h, err = openHostAddrs(testLog(t)); return err })
	defer h.Close()
	for addr, want := range map[string]error{
		"10.31.0.1": errOwnHost, "10.31.0.2": errOtherVM, "10.31.255.254": errOtherVM, "10.32.0.1": nil,
		"fd99::1": errOwnHost, "fd99::2": errOtherVM, "fd99:0:0:1::2": nil,
	} {
		var got error
		host.Must(func() error { got = h.Inside(netip.MustParseAddr(addr)); return nil })
		if !errors.Is(got, want) {
			t.Errorf("%s: %v, want %v", addr, got, want)
		}
	}
}

// Large transfers with half-close both ways, through the kernel's stack.
func TestKernelGuestTCP(t *testing.T) {
	l := newLab(t)
	var accepted atomic.Int32
	l.outside.serveTCP(":7", &accepted)
	l.boot(t)
	c, err := l.guest.dial("tcp", outsideIP+":7")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(3 * deadline))
	const size = 100 << 20
	sent, got := sha256.New(), sha256.New()
	errs := make(chan error, 1)
	go func() {
		src := io.LimitReader(rand64{}, size)
		_, err := io.Copy(c, io.TeeReader(src, sent))
		if err == nil {
			err = c.(*net.TCPConn).CloseWrite()
		}
		errs <- err
	}()
	n, err := io.Copy(got, c)
	if err != nil || n != size {
		t.Fatalf("echo ended after %d bytes: %v", n, err)
	}
	if err := <-errs; err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(sent.Sum(nil), got.Sum(nil)) {
		t.Fatal("the bytes differ")
	}
}

// rand64 is an endless stream of bytes that do not repeat soon.
type rand64 struct{}

var rand64State atomic.Uint64

func (rand64) Read(p []byte) (int, error) {
	x := rand64State.Add(0x9e3779b97f4a7c15) | 1
	for i := 0; i+8 <= len(p); i += 8 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		binary.LittleEndian.PutUint64(p[i:], x)
	}
	return len(p) &^ 7, nil
}

// A real resolver behind the forwarder, and real tools before it.
func TestKernelGuestDNS(t *testing.T) {
	l := newLab(t)
	l.startDNSMasq(t)
	l.boot(t)
	ask := func(network string, m *dns.Msg) *dns.Msg {
		t.Helper()
		c, err := l.guest.dial(network, net.JoinHostPort(GatewayIP, "53"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		r, _, err := (&dns.Client{Net: network, Timeout: deadline}).ExchangeWithConn(m, &dns.Conn{Conn: c, UDPSize: 4096})
		if err != nil {
			t.Fatalf("%s %s: %v", network, m.Question[0].Name, err)
		}
		return r
	}
	for _, network := range []string{"udp", "tcp"} {
		r := ask(network, new(dns.Msg).SetQuestion("www.test.", dns.TypeA))
		if len(r.Answer) != 1 || r.Answer[0].(*dns.A).A.String() != outsideIP {
			t.Fatalf("%s: %v", network, r)
		}
		if r := ask(network, new(dns.Msg).SetQuestion("nothing.test.", dns.TypeA)); r.Rcode != dns.RcodeNameError {
			t.Fatalf("%s: %v", network, r)
		}
	}
	big := new(dns.Msg).SetQuestion("big.test.", dns.TypeTXT)
	if r := ask("udp", big); !r.Truncated {
		t.Fatalf("a large answer by UDP is not marked as truncated: %v", r)
	}
	if r := ask("tcp", big); r.Truncated || len(r.Answer) != 20 {
		t.Fatalf("by TCP: truncated %v, %d records", r.Truncated, len(r.Answer))
	}
	if r := ask("udp", big.Copy().SetEdns0(8192, false)); r.Truncated && len(r.Answer) == 20 {
		t.Fatalf("%v", r)
	}

	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Skip("needs curl for the rest")
	}
	var ln net.Listener
	l.outside.Must(func() (err error) { ln, err = net.Listen("tcp", ":80"); return err })
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "hello "+r.Host)
	})}
	go func() { _ = srv.Serve(ln) }()
	t.Cleanup(func() { _ = srv.Close() })
	guestConf := filepath.Join(l.dir, "guest-resolv.conf")
	if err := os.WriteFile(guestConf, []byte("nameserver "+DNSIP+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var out []byte
	l.guest.Must(func() error {
		// A view of the file system in which the guest's resolvers are the system's.
		if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
			return err
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return err
		}
		if err := unix.Mount(guestConf, "/etc/resolv.conf", "", unix.MS_BIND, ""); err != nil {
			return err
		}
		out, err = sysexec.Output(testContext(t), sysexec.Cmd{Path: curl,
			Args: []string{"--silent", "--show-error", "--noproxy", "*", "http://www.test/"}})
		return err
	})
	if string(out) != "hello www.test" {
		t.Fatalf("curl got %q", out)
	}
}

func TestKernelGuestPing(t *testing.T) {
	l := newLab(t)
	// By default nobody may use ping sockets; here all groups may.
	l.guest.Sysctl("net.ipv4.ping_group_range", "0 2147483647")
	l.host.Sysctl("net.ipv4.ping_group_range", "0 2147483647")
	l.boot(t)
	ping := func(to string) error {
		var c net.Conn
		l.guest.Must(func() (err error) { c, err = openPing(netip.MustParseAddr(to)); return err })
		defer func() { _ = c.Close() }()
		msg := append([]byte{8, 0, 0, 0, 0, 0, 0, 1}, "payload"...)
		if _, err := c.Write(msg); err != nil {
			return err
		}
		_ = c.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
		buf := make([]byte, 100)
		n, err := c.Read(buf)
		if err == nil && (buf[0] != 0 || string(buf[8:n]) != "payload") {
			err = fmt.Errorf("answer %x", buf[:n])
		}
		return err
	}
	for _, to := range []string{GatewayIP, outsideIP} {
		if err := ping(to); err != nil {
			t.Errorf("ping %s: %v", to, err)
		}
	}
	for _, to := range []string{hostIP, "203.0.113.5", "127.0.0.1", "198.51.100.200"} {
		if err := ping(to); err == nil {
			t.Errorf("ping %s is answered", to)
		}
	}
}

func BenchmarkKernelGuest(b *testing.B) {
	l := newLab(b)
	var accepted atomic.Int32
	l.outside.serveTCP(":7", &accepted)
	l.boot(b)
	c, err := l.guest.dial("tcp", outsideIP+":7")
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(10 * time.Minute))
	chunk := make([]byte, 1<<20)
	b.SetBytes(int64(len(chunk)))
	b.ResetTimer()
	go func() {
		for range b.N {
			_, _ = c.Write(chunk)
		}
	}()
	if _, err := io.CopyN(io.Discard, c, int64(b.N)*int64(len(chunk))); err != nil {
		b.Fatal(err)
	}
}
