package usernet

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"banger/internal/nettest"
	"banger/internal/sysexec"
)

// namespace is a machine with connections and services.
type namespace struct {
	*nettest.NS
	t testing.TB
}

func newNamespace(t testing.TB) *namespace {
	t.Helper()
	return &namespace{nettest.NewNS(t), t}
}

func (n *namespace) dial(network, to string) (net.Conn, error) {
	return n.dialFor(deadline, network, to)
}

func (n *namespace) dialFor(patience time.Duration, network, to string) (c net.Conn, err error) {
	err = n.Do(func() error {
		c, err = net.DialTimeout(network, to, patience)
		return err
	})
	if err == nil {
		_ = c.SetDeadline(time.Now().Add(deadline))
	}
	return c, err
}

// alias says whose a device is.
func (n *namespace) alias(device, alias string) {
	n.t.Helper()
	n.Must(func() error {
		link, err := netlink.LinkByName(device)
		if err != nil {
			return err
		}
		return netlink.LinkSetAlias(link, alias)
	})
}

// serveTCP greets and then echoes on an address of the namespace; it counts.
func (n *namespace) serveTCP(at string, accepted *atomic.Int32) {
	n.t.Helper()
	var l net.Listener
	n.Must(func() (err error) { l, err = net.Listen("tcp", at); return err })
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted.Add(1)
			wg.Go(func() {
				defer func() { _ = c.Close() }()
				_ = c.SetDeadline(time.Now().Add(3 * deadline))
				_, _ = io.Copy(c, c)
			})
		}
	})
	n.t.Cleanup(func() { _ = l.Close(); wg.Wait() })
}

// serveUDP echoes datagrams; it counts.
func (n *namespace) serveUDP(at string, received *atomic.Int32) {
	n.t.Helper()
	var c net.PacketConn
	n.Must(func() (err error) { c, err = net.ListenPacket("udp", at); return err })
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 65535)
		for {
			size, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			received.Add(1)
			_, _ = c.WriteTo(buf[:size], from)
		}
	}()
	n.t.Cleanup(func() { _ = c.Close(); <-done })
}

// lab is a host with services, an outside world it is wired to, and a guest
// with the kernel's own network stack:
//
//	guest: tap0 192.168.127.2 -- helper in host: 10.77.0.1 -- outside: 10.77.0.2
type lab struct {
	guest, host, outside *namespace
	client               *Client
	dir                  string
}

const (
	hostIP    = "10.77.0.1"
	outsideIP = "10.77.0.2"
)

func newLab(t testing.TB) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	l := &lab{guest: newNamespace(t), host: newNamespace(t), outside: newNamespace(t), dir: shortDir(t)}
	l.host.Wire("v0", []string{hostIP + "/24"}, l.outside.NS, "v1", []string{outsideIP + "/24"})
	l.host.IP("addr add 127.5.5.5/8 dev lo",
		"link add d0 type veth peer name d1", "link set d1 up", "link set d0 up",
		"addr add 203.0.113.5/32 dev d0", "addr add 169.254.9.9/16 dev d0",
		"addr add 10.99.0.1 peer 10.99.0.2 dev d0",
		"route add local 198.18.0.0/24 dev lo",
		"route add default via "+outsideIP)
	l.outside.IP("route add default via " + hostIP)
	if err := os.WriteFile(l.resolvConf(), []byte("nameserver 127.0.0.1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	l.client = detachedClient(t, l.dir, l.resolvConf())
	return l
}

func (l *lab) resolvConf() string { return filepath.Join(l.dir, "resolv.conf") }

// boot gives the guest its card and attaches it; the helper runs in the host.
func (l *lab) boot(t testing.TB) {
	t.Helper()
	tap := l.guest.Tap("tap0", false)
	l.guest.IP("addr flush dev lo", "link set tap0 address "+GuestMAC+fmt.Sprintf(" mtu %d up", MTU),
		"addr add "+GuestAddress+" dev tap0", "route add default via "+GatewayIP,
		"route add 127.0.0.0/8 via "+GatewayIP)
	// A hostile guest sends whatever it likes; the kernel has to be talked into it.
	l.guest.Sysctl("net.ipv4.conf.all.route_localnet", "1")
	l.guest.Sysctl("net.ipv4.conf.tap0.rp_filter", "0")

	socket := filepath.Join(l.dir, "net.sock")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.host.Must(func() error { return l.client.Attach(testContext(t), "vm1", socket) })
	conn, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	_ = ln.Close()
	var wg sync.WaitGroup
	wg.Go(func() { toTap(tap, conn) })
	wg.Go(func() { fromTap(tap, conn) })
	t.Cleanup(func() { _ = conn.Close(); _ = tap.Close(); wg.Wait() })
}

func fromTap(tap io.Reader, conn net.Conn) {
	buf := make([]byte, 4+MTU+14)
	for {
		n, err := tap.Read(buf[4:])
		if err != nil {
			return
		}
		binary.BigEndian.PutUint32(buf, uint32(n))
		if _, err := conn.Write(buf[:4+n]); err != nil {
			return
		}
	}
}

func toTap(tap io.Writer, conn net.Conn) {
	buf := make([]byte, 256<<10)
	start, end := 0, 0
	for {
		n, err := conn.Read(buf[end:])
		if err != nil {
			return
		}
		end += n
		for end-start >= 4 {
			size := int(binary.BigEndian.Uint32(buf[start:]))
			if end-start < 4+size {
				break
			}
			_, _ = tap.Write(buf[start+4 : start+4+size])
			start += 4 + size
		}
		copy(buf, buf[start:end])
		start, end = 0, end-start
	}
}

// startDNSMasq runs a resolver on the host's loopback.
func (l *lab) startDNSMasq(t testing.TB) {
	t.Helper()
	path, err := sysexec.Look("dnsmasq")
	if err != nil {
		t.Skip("needs dnsmasq")
	}
	log, err := os.Create(filepath.Join(l.dir, "dnsmasq.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	args := []string{"--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--user=root",
		"--pid-file=", "--listen-address=127.0.0.1", "--bind-interfaces", "--log-facility=-",
		"--address=/www.test/" + outsideIP, "--local=/test/"}
	for i := range 20 {
		args = append(args, fmt.Sprintf("--txt-record=big.test,%02d%s", i, strings.Repeat("x", 200)))
	}
	var p *sysexec.Proc
	l.host.Must(func() error {
		p, err = sysexec.StartDetached(sysexec.Detached{Path: path, Args: args, Stdout: log, Stderr: log})
		return err
	})
	t.Cleanup(func() { _ = p.Kill(context.Background()) })
	// It listens soon after it was started; the kernel says when.
	for end := time.Now().Add(deadline); ; {
		c, err := l.host.dial("tcp", "127.0.0.1:53")
		if err == nil {
			_ = c.Close()
			return
		}
		if time.Now().After(end) {
			out, _ := os.ReadFile(log.Name())
			t.Fatalf("dnsmasq does not answer: %v\n%s", err, out)
		}
	}
}

// isOnWire reports whether the guest's kernel gets an answer to a packet to ip.
func (l *lab) isOnWire(ip string) bool {
	switch ip {
	case "192.168.127.77", "0.1.2.3":
		return false // no such neighbour; not an address a kernel connects to
	case "127.0.0.1", "127.5.5.5":
		return false // dropped as what it is: a loopback address on a wire
	}
	return true
}
