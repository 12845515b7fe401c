package usernet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"banger/internal/logkey"
)

// Limits bound what one VM can make the helper hold. Zero takes the default.
type Limits struct {
	TCPFlows int           // connections; default 1024
	HalfOpen int           // connections being set up; default 128
	UDPFlows int           // pairs of ports; default 512
	Pings    int           // echo flows; default 32
	Queries  int           // questions to the resolver under way; default 64
	Connect  time.Duration // setting up a connection; default 15s
	UDPIdle  time.Duration // a UDP flow without packets; default 90s
}

func (l Limits) withDefaults() Limits {
	def := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	def(&l.TCPFlows, 1024)
	def(&l.HalfOpen, 128)
	def(&l.UDPFlows, 512)
	def(&l.Pings, 32)
	def(&l.Queries, 64)
	if l.Connect == 0 {
		l.Connect = 15 * time.Second
	}
	if l.UDPIdle == 0 {
		l.UDPIdle = 90 * time.Second
	}
	return l
}

// Buffers of one connection, in bytes. They grow only while the other side keeps
// up, so connections that go nowhere stay at the default: the most a hostile
// guest can tie up is that, both ways, and a copy buffer for each of its flows.
const (
	tcpBufferMin     = 4 << 10
	tcpBufferDefault = 128 << 10
	tcpBufferMax     = 1 << 20
	copyBuffer       = 64 << 10
)

// On a wire with two ends and no detours, old segments do not turn up late.
const timeWait = 2 * time.Second

const nicID tcpip.NICID = 1

var copyBuffers = sync.Pool{New: func() any { b := make([]byte, copyBuffer); return &b }}

// host is what the networks of all VMs share.
type host struct {
	policy Policy
	names  *Resolver
	files  *slots // descriptors left for flows
	limits Limits
	log    *slog.Logger
	// redirect lets tests offer services without an address of their own; nil
	// leaves destinations as they are.
	redirect func(netip.AddrPort) netip.AddrPort
}

// network is the network of one VM, for one life of that VM.
type network struct {
	host
	vm    string
	link  *link
	stack *stack.Stack
	ctx   context.Context

	cancel   context.CancelFunc
	tcpFlows slots
	udpFlows slots
	queries  chan struct{} // holds one for each under way
	pings    pinger

	// mu orders the start of a flow's goroutines before Close's wait for them.
	mu     sync.Mutex
	closed bool
	flows  sync.WaitGroup
}

func newNetwork(vm string, h host) (*network, error) {
	n := &network{host: h, vm: vm, link: newLink()}
	n.log = h.log.With(logkey.VM, vm)
	n.tcpFlows.max, n.udpFlows.max = int64(h.limits.TCPFlows), int64(h.limits.UDPFlows)
	n.queries = make(chan struct{}, h.limits.Queries)
	n.pings.init(n)
	n.link.ping = n.pings.send
	n.ctx, n.cancel = context.WithCancel(context.Background())
	n.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
	})
	if err := n.setUp(); err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

func (n *network) setUp() error {
	timeWaitOpt := tcpip.TCPTimeWaitTimeoutOption(timeWait)
	synRetries := tcpip.TCPSynRetriesOption(3)
	sack, moderate := tcpip.TCPSACKEnabled(true), tcpip.TCPModerateReceiveBufferOption(true)
	// Time-based loss detection mistakes a guest that was not scheduled for a
	// loss; the classic kind does not.
	recovery := tcpip.TCPRecovery(0)
	for _, opt := range []tcpip.SettableTransportProtocolOption{
		&tcpip.TCPReceiveBufferSizeRangeOption{Min: tcpBufferMin, Default: tcpBufferDefault, Max: tcpBufferMax},
		&tcpip.TCPSendBufferSizeRangeOption{Min: tcpBufferMin, Default: tcpBufferDefault, Max: tcpBufferMax},
		&timeWaitOpt, &synRetries, &sack, &moderate, &recovery,
	} {
		if err := n.stack.SetTransportProtocolOption(tcp.ProtocolNumber, opt); err != nil {
			return fmt.Errorf("set TCP option %T: %s", opt, err)
		}
	}
	if err := n.stack.CreateNIC(nicID, n.link); err != nil {
		return fmt.Errorf("create card: %s", err)
	}
	gateway := tcpip.AddrFrom4(gatewayIP.As4())
	if err := n.stack.AddProtocolAddress(nicID, tcpip.ProtocolAddress{
		Protocol:          ipv4.ProtocolNumber,
		AddressWithPrefix: tcpip.AddressWithPrefix{Address: gateway, PrefixLen: guestSubnet.Bits()},
	}, stack.AddressProperties{}); err != nil {
		return fmt.Errorf("set the gateway's address: %s", err)
	}
	// The stack stands in for every address the guest talks to.
	if err := n.stack.SetPromiscuousMode(nicID, true); err != nil {
		return fmt.Errorf("accept all destinations: %s", err)
	}
	if err := n.stack.SetSpoofing(nicID, true); err != nil {
		return fmt.Errorf("answer for all addresses: %s", err)
	}
	n.stack.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: nicID}})
	n.stack.SetTransportProtocolHandler(tcp.ProtocolNumber,
		tcp.NewForwarder(n.stack, tcpBufferDefault, n.limits.HalfOpen, n.acceptTCP).HandlePacket)
	n.stack.SetTransportProtocolHandler(udp.ProtocolNumber, udp.NewForwarder(n.stack, n.acceptUDP).HandlePacket)
	return n.serveDNS(gateway)
}

// Close ends all flows and waits for them. The link must not run any more, or
// its run ends with errors only the caller can make sense of.
func (n *network) Close() {
	n.mu.Lock()
	n.closed = true
	n.mu.Unlock()
	n.cancel()
	n.link.drop()
	n.pings.close()
	n.stack.Close()
	n.abortUntilEnded()
	n.stack.Wait()
}

// lateHandshake is how long Close waits before it looks again for a connection
// that appeared while it closed.
const lateHandshake = 10 * time.Millisecond

// abortUntilEnded waits for the goroutines of all flows. A handshake that was on
// its way when the stack closed registers its connection after the stack has
// looked for what to abort; nothing else would wake it, so this looks again.
func (n *network) abortUntilEnded() {
	ended := make(chan struct{})
	go func() {
		n.flows.Wait()
		close(ended)
	}()
	again := time.NewTicker(lateHandshake)
	defer again.Stop()
	for {
		select {
		case <-ended:
			return
		case <-again.C:
			for _, e := range n.stack.RegisteredEndpoints() {
				e.Abort()
			}
		}
	}
}

// enter makes Close wait for the caller, who then calls flows.Done; false when
// it is too late.
func (n *network) enter() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return false
	}
	n.flows.Add(1)
	return true
}

// start runs fn on a goroutine that Close waits for; false when it is too late.
func (n *network) start(fn func()) bool {
	if !n.enter() {
		return false
	}
	go func() {
		defer n.flows.Done()
		fn()
	}()
	return true
}

// admit asks the policy. A refusal is no news at any level that a guest could
// fill the log with.
func (n *network) admit(f Flow) bool {
	err := n.policy(f)
	if err != nil {
		n.log.Debug("refused a flow", logkey.Proto, f.Proto, logkey.Src, f.Src, logkey.Dst, f.Dst, logkey.Err, err)
	}
	return err == nil
}

// flow names what a packet of the guest opens.
func (n *network) flow(proto Proto, id stack.TransportEndpointID) Flow {
	return Flow{VM: n.vm, Proto: proto,
		Src: netip.AddrPortFrom(netip.AddrFrom4(id.RemoteAddress.As4()), id.RemotePort),
		Dst: netip.AddrPortFrom(netip.AddrFrom4(id.LocalAddress.As4()), id.LocalPort),
	}
}

// dial opens the host's side of a flow.
func (n *network) dial(f Flow) (net.Conn, error) {
	if !n.files.take() {
		return nil, errors.New("no descriptors left")
	}
	to := f.Dst
	if n.redirect != nil {
		to = n.redirect(to)
	}
	d := net.Dialer{Timeout: n.limits.Connect}
	c, err := d.DialContext(n.ctx, string(f.Proto), to.String())
	if err != nil {
		n.files.give()
		return nil, err
	}
	// The address may have become the host's own while the connection was made.
	if !n.admit(f) {
		if tc, ok := c.(*net.TCPConn); ok {
			_ = tc.SetLinger(0)
		}
		_ = c.Close()
		n.files.give()
		return nil, errors.New("refused after all")
	}
	return c, nil
}

// slots is a bounded number of things.
type slots struct {
	max int64
	n   atomic.Int64
}

func (s *slots) take() bool {
	if s.n.Add(1) > s.max {
		s.n.Add(-1)
		return false
	}
	return true
}

func (s *slots) give() { s.n.Add(-1) }
