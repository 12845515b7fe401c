package usernet

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestTCPBothWays(t *testing.T) {
	echo := listenTCP(t, func(c *net.TCPConn) { _, _ = io.Copy(c, c) })
	v, _ := attached(t, HelperConfig{Policy: allowAll})
	c := v.mustDialTCP(echo)
	want := make([]byte, 8<<20)
	_, _ = rand.Read(want)
	go func() {
		_, _ = c.Write(want)
		_ = c.CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("echo of %d bytes differs: got %d", len(want), len(got))
	}
}

// The guest closes its half first and still receives; and the other way round.
func TestTCPHalfClose(t *testing.T) {
	t.Run("guest first", func(t *testing.T) {
		answer := listenTCP(t, func(c *net.TCPConn) {
			sum := sha256.New()
			_, _ = io.Copy(sum, c) // until the guest's FIN
			_, _ = c.Write(sum.Sum(nil))
		})
		v, _ := attached(t, HelperConfig{Policy: allowAll})
		c := v.mustDialTCP(answer)
		if _, err := c.Write([]byte("question")); err != nil {
			t.Fatal(err)
		}
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(c)
		want := sha256.Sum256([]byte("question"))
		if err != nil || !bytes.Equal(got, want[:]) {
			t.Fatalf("got %x, %v", got, err)
		}
	})
	t.Run("host first", func(t *testing.T) {
		received := make(chan []byte, 1)
		srv := listenTCP(t, func(c *net.TCPConn) {
			_, _ = c.Write([]byte("banner"))
			_ = c.CloseWrite()
			b, _ := io.ReadAll(c)
			received <- b
		})
		v, _ := attached(t, HelperConfig{Policy: allowAll})
		c := v.mustDialTCP(srv)
		if got, err := io.ReadAll(c); err != nil || string(got) != "banner" {
			t.Fatalf("got %q, %v", got, err)
		}
		if _, err := c.Write([]byte("late")); err != nil {
			t.Fatal(err)
		}
		_ = c.CloseWrite()
		select {
		case b := <-received:
			if string(b) != "late" {
				t.Fatalf("host got %q", b)
			}
		case <-time.After(deadline):
			t.Fatal("the guest's FIN did not arrive")
		}
	})
}

// A reset of one side reaches the other as a reset, not as an end.
func TestTCPReset(t *testing.T) {
	t.Run("by host", func(t *testing.T) {
		srv := listenTCP(t, func(c *net.TCPConn) {
			_, _ = io.ReadFull(c, make([]byte, 1))
			_ = c.SetLinger(0)
		})
		v, _ := attached(t, HelperConfig{Policy: allowAll})
		c := v.mustDialTCP(srv)
		_, _ = c.Write([]byte("x"))
		_, err := c.Read(make([]byte, 1))
		if err == nil || !strings.Contains(err.Error(), "reset") {
			t.Fatalf("guest read: %v, want a reset", err)
		}
	})
	t.Run("by guest", func(t *testing.T) {
		result := make(chan error, 1)
		srv := listenTCP(t, func(c *net.TCPConn) {
			_, _ = c.Write([]byte("x"))
			_, err := io.Copy(io.Discard, c)
			result <- err
		})
		v, _ := attached(t, HelperConfig{Policy: allowAll})
		c := v.mustDialTCP(srv)
		_, _ = io.ReadFull(c, make([]byte, 1))
		for _, ep := range v.stack.RegisteredEndpoints() {
			ep.Abort()
		}
		select {
		case err := <-result:
			if err == nil || !strings.Contains(err.Error(), "reset") {
				t.Fatalf("host read: %v, want a reset", err)
			}
		case <-time.After(deadline):
			t.Fatal("host saw nothing")
		}
	})
	t.Run("nobody listens", func(t *testing.T) {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		dead := seenFromGuest(l.Addr())
		_ = l.Close()
		v, _ := attached(t, HelperConfig{Policy: allowAll})
		began := time.Now()
		if _, err := v.dialTCP(dead); err == nil || !strings.Contains(err.Error(), "refused") {
			t.Fatalf("dial: %v, want refused", err)
		}
		if d := time.Since(began); d > 2*time.Second {
			t.Fatalf("refused only after %s", d)
		}
	})
}

func TestUDPEcho(t *testing.T) {
	echo := listenUDP(t)
	v, _ := attached(t, HelperConfig{Policy: allowAll})
	c := v.mustDialUDP(echo)
	// The last ones are fragmented on the guest's wire.
	for _, size := range []int{1, 0, 1400, 20000, 40000, 60000} {
		want := make([]byte, size)
		_, _ = rand.Read(want)
		if _, err := c.Write(want); err != nil {
			t.Fatalf("%d bytes: %v", size, err)
		}
		got := make([]byte, 65535)
		n, err := c.Read(got)
		if err != nil || !bytes.Equal(got[:n], want) {
			t.Fatalf("%d bytes: got %d, %v", size, n, err)
		}
	}
}

func TestUDPIdleFlowsEnd(t *testing.T) {
	echo := listenUDP(t)
	v, _ := attached(t, HelperConfig{Policy: allowAll, Limits: Limits{UDPFlows: 1, UDPIdle: 100 * time.Millisecond}})
	if err := v.roundTripUDP(echo, deadline); err != nil {
		t.Fatal(err)
	}
	// The only slot is free again once the first flow was idle. Until then a try
	// is refused, or not answered at all: such answers are rationed.
	for end := time.Now().Add(deadline); ; {
		if v.roundTripUDP(echo, 50*time.Millisecond) == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatal("the idle flow was never given up")
		}
	}
}

func TestFlowLimits(t *testing.T) {
	hold := make(chan struct{})
	srv := listenTCP(t, func(c *net.TCPConn) {
		_, _ = c.Write([]byte("hello"))
		<-hold
	})
	defer close(hold)
	echo := listenUDP(t)
	v, _ := attached(t, HelperConfig{Policy: allowAll, Limits: Limits{TCPFlows: 5, UDPFlows: 3}})
	for i := range 5 {
		c := v.mustDialTCP(srv)
		if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
	}
	if _, err := v.dialTCP(srv); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Fatalf("connection over the limit: %v, want refused", err)
	}
	for i := range 3 {
		if err := v.roundTripUDP(echo, deadline); err != nil {
			t.Fatalf("flow %d: %v", i, err)
		}
	}
	if err := v.roundTripUDP(echo, deadline); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Fatalf("flow over the limit: %v, want refused", err)
	}
}

func TestPolicyIsAsked(t *testing.T) {
	srv := listenTCP(t, func(c *net.TCPConn) {})
	flows := make(chan Flow, 10)
	v, _ := attached(t, HelperConfig{Policy: func(f Flow) error {
		flows <- f
		return errors.New("no")
	}})
	began := time.Now()
	if _, err := v.dialTCP(srv); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Fatalf("dial: %v, want refused", err)
	}
	if d := time.Since(began); d > 2*time.Second {
		t.Fatalf("refused only after %s", d)
	}
	f := <-flows
	if f.VM != "vm1" || f.Proto != TCP || f.Dst != srv || f.Src.Addr() != guestIP || f.Src.Port() == 0 {
		t.Fatalf("flow %+v", f)
	}
	to := netip.AddrPortFrom(gatewayIP, DNSPort)
	c := v.mustDialUDP(to)
	_, _ = c.Write(make([]byte, 20)) // as good as a question
	if f := <-flows; f.Proto != UDP || f.Dst != to {
		t.Fatalf("flow %+v", f)
	}
}

func TestHostPolicy(t *testing.T) {
	own := netip.MustParseAddr("203.0.113.7")
	p := HostPolicy(func(a netip.Addr) error {
		if a == own {
			return errOwnHost
		}
		return nil
	})
	for dst, allowed := range map[string]bool{
		"198.51.100.1:443":           true,
		"10.1.2.3:22":                true,
		"[2001:db8::1]:443":          true,
		"203.0.113.7:80":             false,
		"[::ffff:203.0.113.7]:80":    false,
		"127.0.0.1:80":               false,
		"127.99.0.1:80":              false,
		"[::1]:80":                   false,
		"[::ffff:127.0.0.1]:80":      false,
		"[::127.0.0.1]:80":           false,
		"[64:ff9b::7f00:1]:80":       false,
		"[2002:7f00:1::1]:80":        false,
		"0.0.0.0:80":                 false,
		"0.1.2.3:80":                 false,
		"[::]:80":                    false,
		"[::ffff:0.0.0.0]:80":        false,
		"169.254.169.254:80":         false,
		"[fe80::1%eth0]:80":          false,
		"168.63.129.16:80":           false,
		"168.63.129.17:80":           true,
		"100.100.100.200:80":         false,
		"[::ffff:100.100.100.200]:1": false,
		"[fd00:ec2::254]:80":         false,
		"[fd20:ce::254]:80":          false,
		"[::ffff:169.254.169.254]:1": false,
		"224.0.0.1:80":               false,
		"[ff02::1]:80":               false,
		"255.255.255.255:80":         false,
		"240.0.0.1:80":               false,
		"192.168.127.1:53":           true,
		"192.168.127.1:80":           false,
		"192.168.127.2:53":           false,
		"192.168.127.200:53":         false,
		"192.168.127.255:53":         false,
	} {
		for _, proto := range []Proto{TCP, UDP} {
			err := p(Flow{Proto: proto, Dst: netip.MustParseAddrPort(dst)})
			if (err == nil) != allowed {
				t.Errorf("%s %s: %v, want allowed: %v", proto, dst, err, allowed)
			}
		}
	}
	if p(Flow{Proto: ICMP, Dst: netip.MustParseAddrPort("192.168.127.1:53")}) == nil {
		t.Error("echo to the gateway is the stack's own business")
	}
}

// Handshakes that are on their way to the guest when the network closes end too.
func TestCloseDuringHandshakes(t *testing.T) {
	srv := listenTCP(t, func(c *net.TCPConn) { _, _ = io.Copy(io.Discard, c) })
	var n *network
	const count = 16
	dialed := make(chan struct{}, count)
	var asked sync.Map
	n, err := newNetwork("vm1", host{
		policy: func(f Flow) error {
			// Asked again when the other side is there, just before the guest is
			// answered.
			if _, again := asked.LoadOrStore(f.Src, true); again {
				dialed <- struct{}{}
				<-n.ctx.Done()
			}
			return nil
		},
		names: NewResolver(""), files: &slots{max: 100}, limits: Limits{}.withDefaults(),
		log: testLog(t), redirect: toLoopback,
	})
	if err != nil {
		t.Fatal(err)
	}
	for i := range count {
		frame := synFrame(srv)
		frame[35] = byte(i) // its port
		n.link.receive(frame)
	}
	for range count {
		select {
		case <-dialed:
		case <-time.After(deadline):
			t.Fatal("a connection is not asked about again")
		}
	}
	closed := make(chan struct{})
	go func() { n.Close(); close(closed) }()
	select {
	case <-closed:
	case <-time.After(deadline):
		t.Fatal("the network does not close")
	}
}
