package usernet

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"banger/internal/logkey"
)

// acceptTCP handles the first segment of a connection, on a goroutine of its
// own. The guest's handshake is completed only once the other side is there, so
// that the guest sees what really happened.
func (n *network) acceptTCP(r *tcp.ForwarderRequest) {
	if !n.enter() {
		r.Complete(false)
		return
	}
	defer n.flows.Done()
	f := n.flow(TCP, r.ID())
	if !n.admit(f) || !n.tcpFlows.take() {
		r.Complete(true)
		return
	}
	defer n.tcpFlows.give()
	if f.Dst.Addr() == gatewayIP {
		if g := n.openGuest(r); g != nil {
			n.serveDNSConn(g)
		}
		return
	}
	conn, err := n.dial(f)
	if err != nil {
		n.log.Debug("connection refused", logkey.Dst, f.Dst, logkey.Err, err)
		r.Complete(true)
		return
	}
	defer n.files.give()
	defer func() { _ = conn.Close() }()
	g := n.openGuest(r)
	if g == nil {
		_ = conn.(*net.TCPConn).SetLinger(0)
		return
	}
	splice(n.ctx, g, conn.(*net.TCPConn))
}

// openGuest completes the guest's handshake; nil when the guest went away.
func (n *network) openGuest(r *tcp.ForwarderRequest) *guestConn {
	g := &guestConn{}
	ep, err := r.CreateEndpoint(&g.wq)
	r.Complete(false)
	if err != nil {
		return nil
	}
	g.ep = ep
	ep.SocketOptions().SetDelayOption(false)
	return g
}

// guestConn is the guest's end of a connection.
type guestConn struct {
	wq waiter.Queue
	ep tcpip.Endpoint
}

// errGuest is a connection that the guest reset, or that is no more.
var errGuest = errors.New("connection reset by guest")

// read takes what has arrived, without waiting: 0 and nil when that is nothing,
// io.EOF after the guest's FIN.
func (g *guestConn) read(w *tcpip.SliceWriter) (int, error) {
	res, err := g.ep.Read(w, tcpip.ReadOptions{})
	switch err.(type) {
	case nil:
		g.ep.(*tcp.Endpoint).ModerateRecvBuf(res.Count)
		return res.Count, nil
	case *tcpip.ErrWouldBlock:
		return 0, nil
	case *tcpip.ErrClosedForReceive:
		return 0, io.EOF
	}
	return 0, errGuest
}

// write sends all of b, waiting on room for space.
func (g *guestConn) write(b *payload, room, stop <-chan struct{}) error {
	for b.Len() > 0 {
		_, err := g.ep.Write(b, tcpip.WriteOptions{})
		switch err.(type) {
		case nil:
		case *tcpip.ErrWouldBlock:
			select {
			case <-room:
			case <-stop:
				return errGuest
			}
		default:
			return errGuest
		}
	}
	return nil
}

// dead reports whether the connection ended other than by the FINs of both.
func (g *guestConn) dead() bool {
	s := tcp.EndpointState(g.ep.State())
	return s == tcp.StateError || s == tcp.StateClose
}

// payload is a tcpip.Payloader over a slice.
type payload struct{ b []byte }

func (p *payload) Read(dst []byte) (int, error) {
	if len(p.b) == 0 {
		return 0, io.EOF
	}
	n := copy(dst, p.b)
	p.b = p.b[n:]
	return n, nil
}

func (p *payload) Len() int { return len(p.b) }

// relay carries one connection. Each direction ends on its own with a FIN; an
// error of either side resets both.
type relay struct {
	guest *guestConn
	conn  *net.TCPConn
	reset sync.Once
	dead  chan struct{} // closed by fail
}

// splice carries bytes both ways until both directions have ended or ctx is
// done, and closes the guest's end.
func splice(ctx context.Context, g *guestConn, conn *net.TCPConn) {
	r := &relay{guest: g, conn: conn, dead: make(chan struct{})}
	stop := context.AfterFunc(ctx, r.fail)
	in := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(in)
		if r.toGuest() != nil {
			r.fail()
		}
	})
	if r.toHost(in) != nil {
		r.fail()
	}
	wg.Wait()
	stop()
	// If fail is on its way, let it finish first; if it is not, it comes too late.
	r.reset.Do(func() {})
	g.ep.Close()
}

// fail resets both ends.
func (r *relay) fail() {
	r.reset.Do(func() {
		close(r.dead)
		r.guest.ep.Abort()
		_ = r.conn.SetLinger(0)
		_ = r.conn.Close()
	})
}

// toHost copies what the guest sends. After the guest's FIN it goes on watching
// for a reset until the other direction has ended.
func (r *relay) toHost(otherEnded <-chan struct{}) error {
	entry, event := waiter.NewChannelEntry(waiter.ReadableEvents | waiter.EventErr | waiter.EventHUp)
	r.guest.wq.EventRegister(&entry)
	defer r.guest.wq.EventUnregister(&entry)
	for {
		buf := copyBuffers.Get().(*[]byte)
		n, err := r.fromGuest(buf)
		if n > 0 {
			_, err = r.conn.Write((*buf)[:n])
		}
		copyBuffers.Put(buf)
		switch {
		case errors.Is(err, io.EOF):
			if err := r.conn.CloseWrite(); err != nil {
				return err
			}
			for !r.guest.dead() {
				select {
				case <-event:
				case <-otherEnded:
					return nil
				}
			}
			select {
			case <-otherEnded:
				return nil
			default:
				return errGuest
			}
		case err != nil:
			return err
		case n > 0:
			continue
		}
		select {
		case <-event:
		case <-r.dead:
			return errGuest
		}
	}
}

func (r *relay) fromGuest(buf *[]byte) (int, error) {
	w := tcpip.SliceWriter(*buf)
	return r.guest.read(&w)
}

// toGuest copies what the other side sends.
func (r *relay) toGuest() error {
	entry, room := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventErr | waiter.EventHUp)
	r.guest.wq.EventRegister(&entry)
	defer r.guest.wq.EventUnregister(&entry)
	in, err := newWaitingReader(r.conn)
	if err != nil {
		return err
	}
	for {
		buf, n, err := in.read()
		if n > 0 {
			err = r.guest.write(&payload{b: (*buf)[:n]}, room, r.dead)
		}
		if buf != nil {
			copyBuffers.Put(buf)
		}
		if errors.Is(err, io.EOF) {
			// A guest that is gone already has closed both ways.
			_ = r.guest.ep.Shutdown(tcpip.ShutdownWrite)
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// waitingReader reads from a socket with a buffer that it takes only when there
// is something to read: most flows wait most of the time.
type waitingReader struct {
	raw    syscall.RawConn
	buf    *[]byte
	n      int
	err    error
	packet bool
	try    func(uintptr) bool
}

func newWaitingReader(c interface {
	SyscallConn() (syscall.RawConn, error)
}) (*waitingReader, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	w := &waitingReader{raw: raw}
	w.try = w.receive
	return w, nil
}

func (w *waitingReader) receive(fd uintptr) bool {
	buf := copyBuffers.Get().(*[]byte)
	for {
		w.n, w.err = unix.Read(int(fd), *buf)
		if !errors.Is(w.err, unix.EINTR) {
			break
		}
	}
	if errors.Is(w.err, unix.EAGAIN) {
		copyBuffers.Put(buf)
		return false
	}
	w.buf = buf
	return true
}

// read returns a buffer to put back and how much is in it. On a stream the end
// is io.EOF; a packet may be empty.
func (w *waitingReader) read() (*[]byte, int, error) {
	w.buf, w.n, w.err = nil, 0, nil
	if err := w.raw.Read(w.try); err != nil {
		return nil, 0, err
	}
	if w.err == nil && w.n == 0 && !w.packet {
		w.err = io.EOF
	}
	return w.buf, max(w.n, 0), w.err
}
