package usernet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const (
	lengthSize = 4 // big-endian length before each frame
	etherSize  = header.EthernetMinimumSize
	// maxFrame is the largest frame a card can send: an IP packet of 64 KiB with
	// an Ethernet header and a VLAN tag. More means that the peer lost step.
	maxFrame   = 65535 + etherSize + 4
	readBuffer = 128 << 10

	// sendQueue is how many bytes may wait for QEMU. Senders of data then wait;
	// other packets are dropped at twice that, so that the goroutine that reads
	// never waits for the one that writes.
	sendQueue  = 512 << 10
	writeBatch = 64 // frames a system call
)

var readBuffers = sync.Pool{New: func() any { b := make([]byte, readBuffer); return &b }}

// errFrame is a peer that does not speak the protocol.
var errFrame = errors.New("frame of an impossible length")

// link is the wire between one guest and its stack: frames over a stream socket.
// It answers ARP itself, keeps what the guest may not send from the stack, and
// is without a connection while QEMU is away.
type link struct {
	ping func(packet []byte) // an echo request to the outside; may be nil

	dispatcher atomic.Pointer[stack.NetworkDispatcher]
	guestMAC   atomic.Uint64 // of the guest's last frame

	// mu guards what the senders and the writer share; room and ready are on it.
	mu      sync.Mutex
	room    sync.Cond // queued fell, or nothing will be sent any more
	ready   sync.Cond // queue has something, or up changed
	queue   []*stack.PacketBuffer
	queued  int // bytes
	up      bool
	waiting int // senders in room
}

func newLink() *link {
	l := &link{}
	l.room.L, l.ready.L = &l.mu, &l.mu
	return l
}

// run carries frames over conn until either side closes it, and returns why. It
// closes conn. One run at a time.
func (l *link) run(conn *net.UnixConn) error {
	l.mu.Lock()
	l.up = true
	l.mu.Unlock()
	writer := make(chan struct{})
	go func() {
		defer close(writer)
		l.write(conn)
	}()
	err := l.read(conn)
	_ = conn.Close()
	l.mu.Lock()
	l.up = false
	l.ready.Broadcast()
	l.room.Broadcast()
	l.mu.Unlock()
	<-writer
	return err
}

// read takes frames from conn. It holds a buffer only while there is something to read.
func (l *link) read(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var (
		buf        *[]byte
		start, end int
		n          int
		readErr    error
	)
	defer func() {
		if buf != nil {
			readBuffers.Put(buf)
		}
	}()
	receive := func(fd uintptr) bool {
		if buf == nil {
			buf = readBuffers.Get().(*[]byte)
		}
		for {
			n, readErr = unix.Read(int(fd), (*buf)[end:])
			if !errors.Is(readErr, unix.EINTR) {
				break
			}
		}
		if errors.Is(readErr, unix.EAGAIN) {
			if end == 0 {
				readBuffers.Put(buf)
				buf = nil
			}
			return false
		}
		return true
	}
	for {
		if err := raw.Read(receive); err != nil {
			return err
		}
		if readErr != nil {
			return readErr
		}
		if n == 0 {
			return io.EOF
		}
		end += n
		for end-start >= lengthSize {
			size := int(binary.BigEndian.Uint32((*buf)[start:]))
			if size < 0 || size > maxFrame {
				return fmt.Errorf("%w: %d bytes", errFrame, uint32(size))
			}
			if end-start < lengthSize+size {
				break
			}
			start += lengthSize
			l.receive((*buf)[start : start+size])
			start += size
		}
		copy(*buf, (*buf)[start:end])
		start, end = 0, end-start
	}
}

// receive handles one frame from the guest. Whatever does not come from the
// guest's own address, or is for a group, is dropped.
func (l *link) receive(frame []byte) {
	if len(frame) < etherSize {
		return
	}
	eth := header.Ethernet(frame)
	if frame[6]&1 == 0 {
		var mac [8]byte
		copy(mac[2:], frame[6:12])
		l.guestMAC.Store(binary.BigEndian.Uint64(mac[:]))
	}
	payload := frame[etherSize:]
	switch eth.Type() {
	case header.ARPProtocolNumber:
		l.answerARP(payload)
	case header.IPv4ProtocolNumber:
		ip := header.IPv4(payload)
		if len(payload) < header.IPv4MinimumSize || netip.AddrFrom4(ip.SourceAddress().As4()) != guestIP {
			return
		}
		dst := netip.AddrFrom4(ip.DestinationAddress().As4())
		if dst.IsMulticast() || reservedNet.Contains(dst) {
			return
		}
		switch ip.TransportProtocol() {
		case header.TCPProtocolNumber, header.UDPProtocolNumber:
		case header.ICMPv4ProtocolNumber:
			// The stack takes all addresses for its own; left to itself it would
			// answer for the whole world.
			if dst != gatewayIP {
				if l.ping != nil {
					l.ping(payload)
				}
				return
			}
		default:
			return
		}
		d := l.dispatcher.Load()
		if d == nil {
			return
		}
		pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{
			Payload: buffer.MakeWithView(buffer.NewViewWithData(payload)),
		})
		(*d).DeliverNetworkPacket(header.IPv4ProtocolNumber, pkt)
		pkt.DecRef()
	}
}

// answerARP tells the guest where the gateway is; nobody else is on this wire.
func (l *link) answerARP(payload []byte) {
	req := header.ARP(payload)
	if !req.IsValid() || req.Op() != header.ARPRequest || [4]byte(req.ProtocolAddressTarget()) != gatewayIP.As4() {
		return
	}
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: lengthSize + etherSize + header.ARPSize,
	})
	rep := header.ARP(pkt.NetworkHeader().Push(header.ARPSize))
	rep.SetIPv4OverEthernet()
	rep.SetOp(header.ARPReply)
	copy(rep.HardwareAddressSender(), gatewayMAC[:])
	copy(rep.ProtocolAddressSender(), req.ProtocolAddressTarget())
	copy(rep.HardwareAddressTarget(), req.HardwareAddressSender())
	copy(rep.ProtocolAddressTarget(), req.ProtocolAddressSender())
	pkt.NetworkProtocolNumber = header.ARPProtocolNumber
	l.send(pkt)
	pkt.DecRef()
}

// send puts length and Ethernet header before a packet made here and queues it.
func (l *link) send(pkt *stack.PacketBuffer) {
	l.AddHeader(pkt)
	l.mu.Lock()
	l.enqueueLocked(pkt)
	l.mu.Unlock()
}

// WritePackets queues packets for the guest.
func (l *link) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	l.mu.Lock()
	for _, pkt := range pkts.AsSlice() {
		l.enqueueLocked(pkt)
	}
	l.mu.Unlock()
	// A lost packet is no error: the protocols above know how to live with it.
	return pkts.Len(), nil
}

func (l *link) enqueueLocked(pkt *stack.PacketBuffer) {
	size := pkt.Size()
	if carriesData(pkt) {
		for l.up && l.queued > sendQueue {
			l.waiting++
			l.room.Wait()
			l.waiting--
		}
	}
	if !l.up || l.queued > 2*sendQueue {
		return
	}
	l.queue = append(l.queue, pkt.IncRef())
	l.queued += size
	if len(l.queue) == 1 {
		l.ready.Signal()
	}
}

// carriesData reports whether the sender of pkt may wait: data of a connection
// or flow is sent by goroutines of their own, everything else perhaps by the
// one that reads.
func carriesData(pkt *stack.PacketBuffer) bool {
	switch pkt.TransportProtocolNumber {
	case header.TCPProtocolNumber, header.UDPProtocolNumber:
		return pkt.Data().Size() > 0
	}
	return false
}

// write sends what is queued until the link goes down.
func (l *link) write(conn *net.UnixConn) {
	var (
		batch []*stack.PacketBuffer
		parts = make([][]byte, 0, 3*writeBatch)
	)
	for {
		l.mu.Lock()
		for l.up && len(l.queue) == 0 {
			l.ready.Wait()
		}
		batch, l.queue = l.queue, batch[:0]
		up := l.up
		l.mu.Unlock()

		for i := 0; i < len(batch); i += writeBatch {
			part := batch[i:min(i+writeBatch, len(batch))]
			if up {
				parts = parts[:0]
				for _, pkt := range part {
					parts = appendParts(parts, pkt)
				}
				bufs := net.Buffers(parts)
				if _, err := bufs.WriteTo(conn); err != nil {
					// The reader sees it too and ends the run.
					_ = conn.Close()
					up = false
				}
			}
			sent := 0
			for _, pkt := range part {
				sent += pkt.Size()
				pkt.DecRef()
			}
			l.mu.Lock()
			l.queued -= sent
			if l.waiting > 0 {
				l.room.Broadcast()
			}
			l.mu.Unlock()
		}
		clear(batch)
		clear(parts[:cap(parts)])
		if !up {
			l.drop()
			return
		}
	}
}

// drop empties the queue of a link that is down.
func (l *link) drop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.up = false
	for _, pkt := range l.queue {
		pkt.DecRef()
	}
	clear(l.queue)
	l.queue, l.queued = nil, 0
	l.room.Broadcast()
}

func appendParts(parts [][]byte, pkt *stack.PacketBuffer) [][]byte {
	views, skip := pkt.AsViewList()
	for v := views.Front(); v != nil; v = v.Next() {
		b := v.AsSlice()
		if skip >= len(b) {
			skip -= len(b)
			continue
		}
		parts = append(parts, b[skip:])
		skip = 0
	}
	return parts
}

// AddHeader puts the frame's length and Ethernet header before the packet.
func (l *link) AddHeader(pkt *stack.PacketBuffer) {
	size := pkt.Size()
	h := pkt.LinkHeader().Push(lengthSize + etherSize)
	binary.BigEndian.PutUint32(h, uint32(etherSize+size))
	var mac [8]byte
	binary.BigEndian.PutUint64(mac[:], l.guestMAC.Load())
	copy(h[4:], mac[2:])
	copy(h[10:], gatewayMAC[:])
	binary.BigEndian.PutUint16(h[16:], uint16(pkt.NetworkProtocolNumber))
}

// The rest of stack.LinkEndpoint. The stack needs no addresses of the link
// layer: there is one guest.

func (l *link) Attach(d stack.NetworkDispatcher) {
	if d == nil {
		l.dispatcher.Store(nil)
		return
	}
	l.dispatcher.Store(&d)
}
func (l *link) IsAttached() bool                        { return l.dispatcher.Load() != nil }
func (l *link) MTU() uint32                             { return MTU }
func (l *link) SetMTU(uint32)                           {}
func (l *link) MaxHeaderLength() uint16                 { return lengthSize + etherSize }
func (l *link) LinkAddress() tcpip.LinkAddress          { return tcpip.LinkAddress(gatewayMAC[:]) }
func (l *link) SetLinkAddress(tcpip.LinkAddress)        {}
func (l *link) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareEther }
func (l *link) ParseHeader(*stack.PacketBuffer) bool    { return true }
func (l *link) Wait()                                   {}
func (l *link) Close()                                  {}
func (l *link) SetOnCloseAction(func())                 {}

// Capabilities: what comes over a local socket needs no checksum to be trusted.
func (l *link) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityRXChecksumOffload
}
