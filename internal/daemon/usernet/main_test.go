package usernet

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/link/ethernet"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// deadline is how long anything in these tests may take before it counts as
// hanging.
const deadline = 20 * time.Second

// TestMain makes the test binary double as the helper process:
//
//	usernet.test helper SOCKET [allow-all] [RESOLVERS]
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "helper" {
		os.Exit(helperMain(os.Args[2:]))
	}
	os.Exit(m.Run())
}

func helperMain(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	cfg := HelperConfig{Socket: args[0], Grace: 500 * time.Millisecond,
		Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	for _, a := range args[1:] {
		if a == "allow-all" {
			cfg.Policy, cfg.redirect = allowAll, toLoopback
		} else {
			cfg.Resolvers = a
		}
	}
	if err := Serve(ctx, cfg); err != nil {
		cfg.Log.Error("helper", "err", err)
		return 1
	}
	return 0
}

func allowAll(Flow) error { return nil }

// outside is the address under which guests find what listens on this host's
// loopback: neither their stack nor ours would carry packets to a loopback
// address.
var outside = netip.MustParseAddr("198.51.100.1")

func toLoopback(a netip.AddrPort) netip.AddrPort {
	if a.Addr() == outside {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), a.Port())
	}
	return a
}

func seenFromGuest(a net.Addr) netip.AddrPort {
	_, port, _ := net.SplitHostPort(a.String())
	return netip.MustParseAddrPort(outside.String() + ":" + port)
}

func testContext(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	t.Cleanup(cancel)
	return ctx
}

func testLog(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", p)
	return len(p), nil
}

// shortDir is a directory with a path short enough for a control socket.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "un")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// startHelper runs a helper in this process and returns a client of it. The
// returned function ends the helper and waits.
func startHelper(t testing.TB, cfg HelperConfig) (*Client, func() error) {
	t.Helper()
	if cfg.Socket == "" {
		cfg.Socket = filepath.Join(shortDir(t), "c.sock")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	cfg.Shared, cfg.redirect = true, toLoopback
	ready := make(chan struct{})
	cfg.Ready = func() { close(ready) }
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	var err error
	go func() {
		defer close(ended)
		err = Serve(ctx, cfg)
	}()
	select {
	case <-ready:
	case <-ended:
		t.Fatalf("helper did not start: %v", err)
	}
	c := New(Deps{Socket: cfg.Socket, Log: cfg.Log})
	stop := sync.OnceValue(func() error {
		_ = c.Close()
		cancel()
		<-ended
		return err
	})
	t.Cleanup(func() { _ = stop() })
	return c, stop
}

// vmm stands in for QEMU: it listens on a socket and carries the frames of a
// guest with a network stack of its own. Like QEMU it serves one connection at
// a time and takes the next one when that ended.
type vmm struct {
	t        testing.TB
	socket   string
	listener net.Listener
	link     *channel.Endpoint
	stack    *stack.Stack
	cancel   context.CancelFunc
	tasks    sync.WaitGroup
	arrivals chan struct{} // one for each connection taken
	frames   chan []byte   // when set before boot: frames to the guest go here instead

	mu   sync.Mutex
	conn net.Conn
	dead bool
}

func bootVMM(t testing.TB, socket string) *vmm {
	t.Helper()
	v := &vmm{t: t, socket: socket, arrivals: make(chan struct{}, 100)}
	v.boot()
	return v
}

func (v *vmm) boot() {
	v.t.Helper()
	l, err := net.Listen("unix", v.socket)
	if err != nil {
		v.t.Fatal(err)
	}
	v.bootOn(l)
}

// bootOn boots the guest with connections from l.
func (v *vmm) bootOn(l net.Listener) {
	v.t.Helper()
	v.listener = l
	mac, err := net.ParseMAC(GuestMAC)
	if err != nil {
		v.t.Fatal(err)
	}
	v.link = channel.New(4096, MTU+header.EthernetMinimumSize, tcpip.LinkAddress(mac))
	v.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
	})
	buf := tcpip.TCPReceiveBufferSizeRangeOption{Min: 4096, Default: 1 << 20, Max: 4 << 20}
	v.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &buf)
	snd := tcpip.TCPSendBufferSizeRangeOption{Min: 4096, Default: 1 << 20, Max: 4 << 20}
	v.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &snd)
	rec := tcpip.TCPRecovery(0)
	v.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &rec)
	if err := v.stack.CreateNIC(1, ethernet.New(v.link)); err != nil {
		v.t.Fatal(err)
	}
	guest := netip.MustParsePrefix(GuestAddress)
	v.stack.AddProtocolAddress(1, tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber,
		AddressWithPrefix: tcpip.AddressWithPrefix{Address: addr(guest.Addr()), PrefixLen: guest.Bits()}},
		stack.AddressProperties{})
	subnet := tcpip.AddressWithPrefix{Address: addr(guest.Addr()), PrefixLen: guest.Bits()}.Subnet()
	v.stack.SetRouteTable([]tcpip.Route{
		{Destination: subnet, NIC: 1},
		{Destination: header.IPv4EmptySubnet, Gateway: addr(gatewayIP), NIC: 1},
	})
	ctx, cancel := context.WithCancel(context.Background())
	v.cancel = cancel
	v.tasks.Go(v.serve)
	v.tasks.Go(func() { v.transmit(ctx) })
	v.t.Cleanup(v.kill)
}

func addr(a netip.Addr) tcpip.Address { return tcpip.AddrFrom4(a.As4()) }

func (v *vmm) serve() {
	for {
		conn, err := v.listener.Accept()
		if err != nil {
			return
		}
		v.mu.Lock()
		v.conn = conn
		if v.dead {
			_ = conn.Close()
		}
		v.mu.Unlock()
		v.arrivals <- struct{}{}
		in := bufio.NewReaderSize(conn, 256<<10)
		for {
			var size [4]byte
			if _, err := io.ReadFull(in, size[:]); err != nil {
				break
			}
			frame := make([]byte, binary.BigEndian.Uint32(size[:]))
			if _, err := io.ReadFull(in, frame); err != nil {
				break
			}
			if v.frames != nil {
				v.frames <- frame
				continue
			}
			pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(frame)})
			v.link.InjectInbound(0, pkt)
			pkt.DecRef()
		}
		_ = conn.Close()
	}
}

func (v *vmm) transmit(ctx context.Context) {
	for {
		pkt := v.link.ReadContext(ctx)
		if pkt == nil {
			return
		}
		frame := pkt.ToView()
		v.send(frame.AsSlice())
		frame.Release()
		pkt.DecRef()
	}
}

// send transmits one frame of the guest.
func (v *vmm) send(frame []byte) {
	v.mu.Lock()
	conn := v.conn
	v.mu.Unlock()
	if conn == nil {
		return
	}
	var size [4]byte
	binary.BigEndian.PutUint32(size[:], uint32(len(frame)))
	bufs := net.Buffers{size[:], frame}
	_, _ = bufs.WriteTo(conn)
}

// unplug breaks the connection; the VM lives on.
func (v *vmm) unplug() {
	v.mu.Lock()
	defer v.mu.Unlock()
	_ = v.conn.Close()
}

// arrived waits for the helper's next connection.
func (v *vmm) arrived() {
	v.t.Helper()
	select {
	case <-v.arrivals:
	case <-time.After(deadline):
		v.t.Fatal("nobody connected to the VM")
	}
}

// kill ends the VM.
func (v *vmm) kill() {
	v.cancel()
	_ = v.listener.Close()
	v.mu.Lock()
	v.dead = true
	if v.conn != nil {
		_ = v.conn.Close()
	}
	v.mu.Unlock()
	v.tasks.Wait()
	v.stack.Destroy()
}

func full(a netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: 1, Addr: addr(a.Addr()), Port: a.Port()}
}

func (v *vmm) dialTCP(to netip.AddrPort) (*gonet.TCPConn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	return gonet.DialContextTCP(ctx, v.stack, full(to), ipv4.ProtocolNumber)
}

func (v *vmm) mustDialTCP(to netip.AddrPort) *gonet.TCPConn {
	v.t.Helper()
	c, err := v.dialTCP(to)
	if err != nil {
		v.t.Fatalf("guest dials %s: %v", to, err)
	}
	v.t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(deadline))
	return c
}

func (v *vmm) mustDialUDP(to netip.AddrPort) *gonet.UDPConn {
	v.t.Helper()
	dst := full(to)
	c, err := gonet.DialUDP(v.stack, nil, &dst, ipv4.ProtocolNumber)
	if err != nil {
		v.t.Fatal(err)
	}
	v.t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(deadline))
	return c
}

// roundTripUDP sends one datagram from a new port and waits for an answer, or
// for the ICMP message that there is none.
func (v *vmm) roundTripUDP(to netip.AddrPort, patience time.Duration) error {
	v.t.Helper()
	var wq waiter.Queue
	ep, err := v.stack.NewEndpoint(udp.ProtocolNumber, ipv4.ProtocolNumber, &wq)
	if err != nil {
		v.t.Fatal(err)
	}
	defer ep.Close()
	entry, event := waiter.NewChannelEntry(waiter.ReadableEvents | waiter.EventErr)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)
	if err := ep.Connect(full(to)); err != nil {
		v.t.Fatal(err)
	}
	if _, err := ep.Write(bytes.NewReader([]byte("x")), tcpip.WriteOptions{}); err != nil {
		v.t.Fatal(err)
	}
	select {
	case <-event:
	case <-time.After(patience):
		return errors.New("no answer")
	}
	if err := ep.LastError(); err != nil {
		return errors.New(err.String())
	}
	return nil
}

// attached boots a VM and attaches it to a helper with this configuration.
func attached(t testing.TB, cfg HelperConfig) (*vmm, *Client) {
	t.Helper()
	c, _ := startHelper(t, cfg)
	v := bootVMM(t, filepath.Join(shortDir(t), "net.sock"))
	if err := c.Attach(testContext(t), "vm1", v.socket); err != nil {
		t.Fatal(err)
	}
	v.arrived()
	return v, c
}

// listenTCP serves connections on the host's loopback.
func listenTCP(t testing.TB, serve func(*net.TCPConn)) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer func() { _ = c.Close() }()
				_ = c.SetDeadline(time.Now().Add(deadline))
				serve(c.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() { _ = l.Close(); wg.Wait() })
	return seenFromGuest(l.Addr())
}

// listenUDP echoes datagrams on the host's loopback.
func listenUDP(t testing.TB) netip.AddrPort {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 65535)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				_, _ = c.WriteToUDPAddrPort(buf[:n], from)
			}
		}
	}()
	t.Cleanup(func() { _ = c.Close(); <-done })
	return seenFromGuest(c.LocalAddr())
}
