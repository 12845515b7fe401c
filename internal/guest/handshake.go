package guest

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/yamux"
	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
)

// Bounds of the handshake, host side.
const (
	maxStale   = 256 << 20        // bytes of old data discarded before giving up
	maxHellos  = 64               // hellos sent before giving up
	retryAfter = 2 * time.Second  // first resynchronisation; later ones wait twice as long each
	retryMost  = 16 * time.Second // longest wait between two
	scanBuffer = 64 << 10
)

// flushSize is the length of the padding that makes an agent lose step for sure:
// the longest multiplexer frame it can be in the middle of, and one header more.
const flushSize = muxMost + 2*muxHeader

var magicPrefix = []byte(AckMagic[:8]) // common to all magics

// Connect makes a session over a fresh connection to the guest's channel. It
// waits, as long as ctx allows, for an agent that may still be booting. It owns
// conn: the session closes it, and so does a failed Connect.
//
// An agent that was cut off in the middle of a frame by the connection before,
// and has not noticed, takes the hello for the rest of that frame. For that case
// a hello that stays unanswered is followed by padding that ends any such frame
// and by another hello; only the answer to the newest hello counts.
func Connect(ctx context.Context, conn net.Conn) (*Session, error) {
	return connect(ctx, conn, retryAfter)
}

func connect(ctx context.Context, conn net.Conn, retry time.Duration) (*Session, error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	g := &greeter{conn: conn, retry: retry, again: make(chan struct{}, 1), over: make(chan struct{})}
	var sender sync.WaitGroup
	var sendErr error
	sender.Go(func() {
		if sendErr = g.send(); sendErr != nil {
			// Wake the receiver, which would wait for an answer for ever.
			_ = conn.SetReadDeadline(time.Unix(1, 0))
		}
	})
	ready, ahead, err := g.receive()
	g.finish()
	if err != nil {
		_ = conn.Close()
	}
	sender.Wait()
	if !stop() && ctx.Err() != nil {
		_ = conn.Close()
		return nil, errdefs.Wrap(context.Cause(ctx), "wait for the agent in the VM")
	}
	if err != nil {
		if sendErr != nil {
			err = sendErr
		}
		return nil, lost(ctx, err)
	}
	return newSession(conn, ahead, ready)
}

// greeter is one handshake, host side: a sender of hellos and a receiver of the
// ack, which agree on what the newest hello is.
type greeter struct {
	conn  net.Conn
	retry time.Duration
	again chan struct{} // the agent asked for a hello
	over  chan struct{} // closed by finish

	mu     sync.Mutex // guards what follows; without it an ack could race with the next hello
	nonce  [NonceSize]byte
	done   bool
	hellos int
}

// finish ends the sender.
func (g *greeter) finish() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.done {
		g.done = true
		close(g.over)
	}
}

// matches reports whether nonce answers the newest hello, and if so stops the
// sender. The write of that hello need not have returned: the nonce is its end.
func (g *greeter) matches(nonce []byte) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.done || !bytes.Equal(nonce, g.nonce[:]) {
		return false
	}
	g.done = true
	close(g.over)
	return true
}

// send writes hellos until finish or matches.
func (g *greeter) send() error {
	wait := g.retry
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for pad := false; ; {
		if more, err := g.hello(pad); err != nil || !more {
			return err
		}
		select {
		case <-g.over:
			return nil
		case <-g.again:
			pad = false
		case <-timer.C:
			pad = true
			wait = min(2*wait, retryMost)
			timer.Reset(wait)
		}
	}
}

func (g *greeter) hello(pad bool) (more bool, err error) {
	g.mu.Lock()
	if g.done {
		g.mu.Unlock()
		return false, nil
	}
	if g.hellos++; g.hellos > maxHellos {
		g.mu.Unlock()
		return false, errdefs.Unavailable("the agent in the VM refused %d handshakes", maxHellos).
			WithHint("stop and start the VM")
	}
	// Straight from the kernel: package crypto/rand would be most of what the agent,
	// which shares this package, has to initialise.
	if _, err := unix.Getrandom(g.nonce[:], 0); err != nil {
		g.mu.Unlock()
		return false, errdefs.Internal("make a nonce: %w", err)
	}
	msg := make([]byte, 0, flushSize+len(HelloMagic)+NonceSize)
	if pad {
		msg = append(msg, bytes.Repeat([]byte{0xff}, flushSize)...)
	}
	msg = append(append(msg, HelloMagic...), g.nonce[:]...)
	g.mu.Unlock()

	_, err = g.conn.Write(msg)
	return err == nil, err
}

// receive discards input until the ack of the newest hello, and returns the
// agent's record and what was read beyond it.
func (g *greeter) receive() (Ready, []byte, error) {
	s := scanner{r: g.conn, limit: maxStale}
	for {
		magic, err := s.magic()
		if err != nil {
			return Ready{}, nil, err
		}
		switch string(magic) {
		case NakMagic:
			select {
			case g.again <- struct{}{}:
			default:
			}
		case AckMagic:
			nonce, err := s.peek(NonceSize)
			if err != nil {
				return Ready{}, nil, err
			}
			if !g.matches(nonce) {
				continue
			}
			s.skip(NonceSize)
			return s.ready()
		}
	}
}

func (s *scanner) ready() (Ready, []byte, error) {
	head, err := s.peek(4)
	if err != nil {
		return Ready{}, nil, err
	}
	size := binary.BigEndian.Uint32(head)
	if size > MaxControl {
		return Ready{}, nil, errdefs.Invalid("the agent's greeting has %d bytes, at most %d are allowed", size, MaxControl)
	}
	s.skip(4)
	record, err := s.peek(int(size))
	if err != nil {
		return Ready{}, nil, err
	}
	var ready Ready
	if err := json.Unmarshal(record, &ready); err != nil {
		return Ready{}, nil, errdefs.Invalid("decode the agent's greeting: %w", err)
	}
	s.skip(int(size))
	ready.AgentVersion = cleanText(ready.AgentVersion, maxName)
	ready.Release = cleanText(ready.Release, maxName)
	ready.InitSystem = cleanText(ready.InitSystem, maxName)
	ready.Error = cleanText(ready.Error, maxMessage)
	if ready.Protocol != ProtocolVersion {
		return Ready{}, nil, errdefs.Unsupported("the agent in the VM speaks protocol %d, this banger speaks %d", ready.Protocol, ProtocolVersion).
			WithHint("restart the VM: it then boots with the agent of this version")
	}
	return ready, s.rest(), nil
}

// Session is the host's end of a guest's channel.
type Session struct {
	ready Ready
	mux   *yamux.Session

	mu      sync.Mutex // guards closed; without it Close could wait while Open begins
	closed  bool
	opening sync.WaitGroup
}

func newSession(conn net.Conn, ahead []byte, ready Ready) (*Session, error) {
	mc := &muxConn{r: conn, w: conn, close: conn.Close, ahead: ahead}
	mux, err := yamux.Client(mc, muxConfig(hostWindow, hostTimeout))
	if err != nil {
		_ = conn.Close()
		return nil, errdefs.Internal("start the multiplexer: %w", err)
	}
	return &Session{ready: ready, mux: mux}, nil
}

// Ready is what the agent said of itself when the session began.
func (s *Session) Ready() Ready { return s.ready }

// Done is closed when the session has ended, from either side.
func (s *Session) Done() <-chan struct{} { return s.mux.CloseChan() }

// Close ends the session, its streams and the connection, and waits for all.
func (s *Session) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	err := s.mux.Close()
	s.opening.Wait()
	return err
}

// Open opens a stream. A guest that does not take it in is left by ctx; the
// stream is then closed as soon as it comes.
func (s *Session) Open(ctx context.Context) (net.Conn, error) {
	type result struct {
		stream *yamux.Stream
		err    error
	}
	opened := make(chan result)
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil, lost(ctx, nil)
	}
	s.opening.Add(1)
	s.mu.Unlock()
	go func() {
		defer s.opening.Done()
		stream, err := s.mux.OpenStream()
		select {
		case opened <- result{stream, err}:
		case <-ctx.Done():
			if err == nil {
				_ = stream.Close()
			}
		}
	}()
	select {
	case r := <-opened:
		if r.err != nil {
			return nil, lost(ctx, r.err)
		}
		return &stream{Stream: r.stream, mux: s.mux}, nil
	case <-ctx.Done():
		return nil, lost(ctx, nil)
	}
}

// stream keeps what is written within the size of a multiplexer frame. It ends
// the whole session when the guest has not taken a frame for so long that yamux
// gave up on it: the frame's fate is unknown then.
type stream struct {
	*yamux.Stream
	mux *yamux.Session
}

func (s *stream) Write(p []byte) (int, error) {
	written := 0
	for {
		n, err := s.Stream.Write(p[written:min(len(p), written+muxMost)])
		written += n
		if errors.Is(err, yamux.ErrConnectionWriteTimeout) {
			_ = s.mux.Close()
		}
		if err != nil || written == len(p) {
			return written, err
		}
	}
}
