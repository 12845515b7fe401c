package usernet

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"banger/internal/logkey"
)

const (
	pingIdle = 30 * time.Second
	maxPing  = 8 << 10 // bytes of one echo message
)

// pinger carries echo requests to the outside, where the kernel lets ordinary
// processes ping (net.ipv4.ping_group_range). Elsewhere they are dropped.
type pinger struct {
	net *network
	off atomic.Bool // the kernel does not let us

	// mu guards flows; a packet of the reader must not meet a flow that ends.
	mu    sync.Mutex
	flows map[pingKey]*pingFlow
}

// pingKey is a ping process in the guest and whom it asks.
type pingKey struct {
	id  uint16
	dst netip.Addr
}

type pingFlow struct {
	key  pingKey
	conn net.Conn
}

func (p *pinger) init(n *network) {
	p.net, p.flows = n, make(map[pingKey]*pingFlow)
}

// send takes an IP packet of the guest that holds an ICMP message. It does not
// block.
func (p *pinger) send(packet []byte) {
	if p.off.Load() {
		return
	}
	ip := header.IPv4(packet)
	if !ip.IsValid(len(packet)) || ip.More() || ip.FragmentOffset() != 0 {
		return
	}
	msg := ip.Payload()
	if len(msg) < header.ICMPv4MinimumSize || len(msg) > maxPing || header.ICMPv4(msg).Type() != header.ICMPv4Echo {
		return
	}
	key := pingKey{id: header.ICMPv4(msg).Ident(), dst: netip.AddrFrom4(ip.DestinationAddress().As4())}
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.flows[key]
	if f == nil {
		if f = p.openLocked(key); f == nil {
			return
		}
	}
	_ = f.conn.SetReadDeadline(time.Now().Add(pingIdle))
	_, _ = f.conn.Write(msg) // the kernel puts in its own id and checksum
}

func (p *pinger) openLocked(key pingKey) *pingFlow {
	n := p.net
	if len(p.flows) >= n.limits.Pings || !n.admit(Flow{VM: n.vm, Proto: ICMP,
		Src: netip.AddrPortFrom(guestIP, 0), Dst: netip.AddrPortFrom(key.dst, 0)}) {
		return nil
	}
	if !n.files.take() {
		return nil
	}
	conn, err := openPing(key.dst)
	if err != nil {
		n.files.give()
		if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
			p.off.Store(true)
		}
		n.log.Debug("no ping", logkey.Dst, key.dst, logkey.Err, err)
		return nil
	}
	f := &pingFlow{key: key, conn: conn}
	if !n.start(func() { p.receive(f) }) {
		_ = conn.Close()
		n.files.give()
		return nil
	}
	p.flows[key] = f
	return f
}

// openPing opens a ping socket to dst.
func openPing(dst netip.Addr) (net.Conn, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_ICMP)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "ping")
	defer func() { _ = file.Close() }()
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: dst.As4()}); err != nil {
		return nil, err
	}
	return net.FileConn(file)
}

// receive passes the answers on, until there is nothing asked for a while.
func (p *pinger) receive(f *pingFlow) {
	defer p.net.files.give()
	defer func() { _ = f.conn.Close() }()
	defer func() {
		p.mu.Lock()
		delete(p.flows, f.key)
		p.mu.Unlock()
	}()
	buf := make([]byte, maxPing)
	for {
		n, err := f.conn.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || n < header.ICMPv4MinimumSize || header.ICMPv4(buf).Type() != header.ICMPv4EchoReply {
			continue // unreachable: the next one may get through
		}
		p.net.link.sendEchoReply(f.key, buf[:n])
	}
}

// close ends all flows.
func (p *pinger) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range p.flows {
		_ = f.conn.Close()
	}
}

// sendEchoReply gives the guest the answer under the id it asked with.
func (l *link) sendEchoReply(key pingKey, msg []byte) {
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: lengthSize + etherSize + header.IPv4MinimumSize + len(msg),
	})
	defer pkt.DecRef()
	body := header.ICMPv4(pkt.TransportHeader().Push(len(msg)))
	copy(body, msg)
	body.SetIdent(key.id)
	binary.BigEndian.PutUint16(body[2:], 0)
	binary.BigEndian.PutUint16(body[2:], ^checksum.Checksum(body, 0))
	ip := header.IPv4(pkt.NetworkHeader().Push(header.IPv4MinimumSize))
	ip.Encode(&header.IPv4Fields{
		TotalLength: uint16(header.IPv4MinimumSize + len(msg)),
		TTL:         64,
		Protocol:    uint8(header.ICMPv4ProtocolNumber),
		SrcAddr:     tcpip.AddrFrom4(key.dst.As4()),
		DstAddr:     tcpip.AddrFrom4(guestIP.As4()),
	})
	ip.SetChecksum(^ip.CalculateChecksum())
	pkt.NetworkProtocolNumber = header.IPv4ProtocolNumber
	l.send(pkt)
}
