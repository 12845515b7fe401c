package guest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"banger/internal/errdefs"
)

// pair returns both ends of a unix stream connection.
func pair(t testing.TB) (a, b net.Conn) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err = net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if b, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close(); _ = b.Close() })
	return a, b
}

// cable is a Port like a virtio-serial port: hosts come and go, bytes stay.
// Written bytes wait without bound, as they do in a VMM's socket.
type cable struct {
	in, out *pipeBuf
}

func newCable() *cable { return &cable{in: newPipeBuf(), out: newPipeBuf()} }

func (c *cable) Read(p []byte) (int, error)  { return c.in.Read(p) }
func (c *cable) Write(p []byte) (int, error) { return c.out.Write(p) }
func (c *cable) SetDeadline(t time.Time) error {
	c.in.deadline(t)
	return nil
}

// hostEnd is one connection of a host to a cable.
type hostEnd struct {
	net.Conn // only for the methods that nobody calls
	c        *cable
}

func (h hostEnd) Read(p []byte) (int, error)  { return h.c.out.Read(p) }
func (h hostEnd) Write(p []byte) (int, error) { return h.c.in.Write(p) }
func (h hostEnd) Close() error                { h.c.out.deadline(past); return nil }
func (h hostEnd) SetDeadline(t time.Time) error {
	h.c.out.deadline(t)
	return nil
}
func (h hostEnd) SetReadDeadline(t time.Time) error { return h.SetDeadline(t) }

// plug connects a new host.
func (c *cable) plug() net.Conn {
	c.out.deadline(time.Time{})
	return hostEnd{c: c}
}

// pipeBuf is an unbounded pipe whose reader can be interrupted.
type pipeBuf struct {
	mu   sync.Mutex
	cond *sync.Cond
	buf  bytes.Buffer
	late bool
	eof  bool
}

func newPipeBuf() *pipeBuf {
	p := &pipeBuf{}
	p.cond = sync.NewCond(&p.mu)
	return p
}

func (p *pipeBuf) Read(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		switch {
		case p.late:
			return 0, os.ErrDeadlineExceeded
		case p.buf.Len() > 0:
			return p.buf.Read(b)
		case p.eof:
			return 0, io.EOF
		}
		p.cond.Wait()
	}
}

func (p *pipeBuf) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cond.Broadcast()
	return p.buf.Write(b)
}

func (p *pipeBuf) deadline(t time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.late = !t.IsZero()
	p.cond.Broadcast()
}

func (p *pipeBuf) hangup() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.eof = true
	p.cond.Broadcast()
}

// echoAgent accepts sessions on port until it hangs up; each stream answers every
// frame with the same frame.
func echoAgent(t testing.TB, port Port) {
	t.Helper()
	var all sync.WaitGroup
	all.Go(func() {
		ch := NewChannel(port)
		for {
			in, err := ch.Accept(func() Ready {
				return Ready{Protocol: ProtocolVersion, AgentVersion: "test\x1b[2J", RootReady: true}
			})
			if err != nil {
				return
			}
			var streams sync.WaitGroup
			for {
				conn, err := in.Accept()
				if err != nil {
					break
				}
				streams.Go(func() {
					defer conn.Close()
					_, _ = io.Copy(conn, conn)
				})
			}
			in.Close()
			streams.Wait()
		}
	})
	t.Cleanup(all.Wait)
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// echoes proves that a session works.
func echoes(t testing.TB, s *Session) {
	t.Helper()
	conn, err := s.Open(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	want := bytes.Repeat([]byte("0123456789abcdef"), 50<<10)
	var sent sync.WaitGroup
	sent.Go(func() { _, _ = conn.Write(want) })
	got := make([]byte, len(want))
	if _, err := io.ReadFull(conn, got); err != nil {
		t.Fatal(err)
	}
	sent.Wait()
	if !bytes.Equal(got, want) {
		t.Fatal("the echo differs")
	}
}

func TestHandshakeOverFreshChannel(t *testing.T) {
	a, b := pair(t)
	echoAgent(t, b)
	s, err := Connect(testContext(t), a)
	if err != nil {
		t.Fatal(err)
	}
	if r := s.Ready(); !r.RootReady || strings.ContainsRune(r.AgentVersion, 0x1b) {
		t.Errorf("ready = %+v", r)
	}
	echoes(t, s)
	_ = s.Close()
	<-s.Done()
	if _, err := s.Open(testContext(t)); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("open on a closed session: %v", err)
	}
}

// slowWriter is a connection whose Write returns when it is told to.
type slowWriter struct {
	net.Conn
	wrote chan []byte
}

func (w slowWriter) Write(p []byte) (int, error) {
	w.wrote <- p
	<-w.wrote
	return len(p), nil
}

// A quick agent answers before the write of the hello has returned.
func TestAckDuringTheWriteOfItsHello(t *testing.T) {
	conn := slowWriter{wrote: make(chan []byte)}
	g := &greeter{conn: conn, retry: time.Hour, again: make(chan struct{}, 1), over: make(chan struct{})}
	sent := make(chan error)
	go func() { sent <- g.send() }()
	hello := <-conn.wrote
	if !g.matches(hello[len(hello)-NonceSize:]) {
		t.Error("the ack was not taken")
	}
	conn.wrote <- nil
	g.finish()
	if err := <-sent; err != nil {
		t.Error(err)
	}
}

func TestCloseWhileStreamsAreOpened(t *testing.T) {
	for range 20 {
		a, b := pair(t)
		echoAgent(t, b)
		s, err := Connect(testContext(t), a)
		if err != nil {
			t.Fatal(err)
		}
		var openers sync.WaitGroup
		first := make(chan struct{}, 4)
		for range cap(first) {
			openers.Go(func() {
				for {
					conn, err := s.Open(testContext(t))
					if err != nil {
						return
					}
					_ = conn.Close()
					select {
					case first <- struct{}{}:
					default:
					}
				}
			})
		}
		<-first
		_ = s.Close()
		openers.Wait()
	}
}

func TestHandshakeSkipsStaleData(t *testing.T) {
	c := newCable()
	// 48 MB of a dropped stream, with acks of other connections and a cut magic in it.
	stale := bytes.Repeat([]byte("\x00banger-old data "), 3<<20)
	copy(stale[1<<20:], AckMagic+"0123456789abcdef\x00\x00\x00\x02{}")
	copy(stale[40<<20:], NakMagic)
	copy(stale[len(stale)-5:], AckMagic)
	_, _ = c.out.Write(stale)
	_, _ = c.in.Write(stale[:5<<20])
	echoAgent(t, c)
	t.Cleanup(c.in.hangup)
	s, err := Connect(testContext(t), c.plug())
	if err != nil {
		t.Fatal(err)
	}
	echoes(t, s)
	_ = s.Close()
}

func TestReconnectThatWasNotNoticed(t *testing.T) {
	for name, cut := range map[string]func(c *cable){
		"between frames": func(*cable) {},
		// A data frame for a stream that nobody knows, cut off in its body.
		"within a frame": func(c *cable) {
			_, _ = c.in.Write([]byte{0, muxData, 0, 0, 0, 0, 0, 9, 0, 4, 0, 0, 'x'})
		},
		"within a header": func(c *cable) { _, _ = c.in.Write([]byte{0, muxData, 0, 0}) },
		"garbage":         func(c *cable) { _, _ = c.in.Write(bytes.Repeat([]byte("?!"), 9000)) },
	} {
		t.Run(name, func(t *testing.T) {
			c := newCable()
			echoAgent(t, c)
			t.Cleanup(c.in.hangup)
			for range 3 {
				s, err := connect(testContext(t), c.plug(), 20*time.Millisecond)
				if err != nil {
					t.Fatal(err)
				}
				echoes(t, s)
				_ = s.Close()
				cut(c)
			}
		})
	}
}

func TestConnectGivesUp(t *testing.T) {
	t.Run("cancelled", func(t *testing.T) {
		a, b := pair(t)
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			_, _ = io.ReadFull(b, make([]byte, len(HelloMagic)+NonceSize))
			cancel()
		}()
		if _, err := Connect(ctx, a); !errors.Is(err, errdefs.ErrCanceled) {
			t.Errorf("error = %v", err)
		}
	})
	t.Run("hang-up", func(t *testing.T) {
		a, b := pair(t)
		_ = b.Close()
		if _, err := Connect(testContext(t), a); !errors.Is(err, errdefs.ErrUnavailable) {
			t.Errorf("error = %v", err)
		}
	})
	t.Run("flood", func(t *testing.T) {
		a, b := pair(t)
		go func() {
			junk := make([]byte, 1<<20)
			for {
				if _, err := b.Write(junk); err != nil {
					return
				}
			}
		}()
		go func() { _, _ = io.Copy(io.Discard, b) }()
		if _, err := Connect(testContext(t), a); !errors.Is(err, errdefs.ErrExhausted) {
			t.Errorf("error = %v", err)
		}
	})
	t.Run("endless naks", func(t *testing.T) {
		a, b := pair(t)
		go func() {
			for {
				if _, err := io.ReadFull(b, make([]byte, len(HelloMagic)+NonceSize)); err != nil {
					return
				}
				_, _ = b.Write([]byte(NakMagic))
			}
		}()
		if _, err := Connect(testContext(t), a); !errors.Is(err, errdefs.ErrUnavailable) {
			t.Errorf("error = %v", err)
		}
	})
}

func TestHostRefusesWhatAGuestMayNotSend(t *testing.T) {
	for name, frame := range map[string][]byte{
		"ping":   {0, muxPing, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1},
		"stream": {0, muxData, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCable()
			echoAgent(t, c)
			t.Cleanup(c.in.hangup)
			s, err := Connect(testContext(t), c.plug())
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			_, _ = c.out.Write(frame)
			select {
			case <-s.Done():
			case <-testContext(t).Done():
				t.Error("the session goes on")
			}
		})
	}
}
