package guest

import (
	"context"
	"io"
	"net"
	"sync"
	"time"

	"banger/internal/errdefs"
)

// The functions below talk over one stream each, whatever carries it: a stream of
// a Session, or a connection to the daemon that was handed through. They own conn
// and have closed it when they return. Cancelling ctx ends them at once; what
// runs in the guest is then told by the end of the stream.

// Call sends a request that is answered by one frame, and returns that.
func Call(ctx context.Context, conn net.Conn, r Request) (Control, error) {
	defer guard(ctx, conn)()
	if err := NewFrameWriter(conn).Request(r); err != nil {
		return Control{}, lost(ctx, err)
	}
	return await(ctx, NewFrameReader(conn), nil)
}

// SendTar runs a copy-in request: pack writes the tar stream. An error of the
// guest ends pack's writer early and is the one that is returned.
func SendTar(ctx context.Context, conn net.Conn, r Request, pack func(io.Writer) error) error {
	defer guard(ctx, conn)()
	if err := NewFrameWriter(conn).Request(r); err != nil {
		return lost(ctx, err)
	}
	return FeedTar(ctx, conn, pack)
}

// FeedTar is SendTar where the request was sent already.
func FeedTar(ctx context.Context, conn net.Conn, pack func(io.Writer) error) error {
	defer guard(ctx, conn)()
	return feed(ctx, conn, NewFrameReader(conn), pack)
}

// feed writes the stream and waits for the answer, which r reads.
func feed(ctx context.Context, conn net.Conn, r *FrameReader, pack func(io.Writer) error) error {
	w := NewFrameWriter(conn)
	var answer sync.WaitGroup
	var answerErr error
	answered := make(chan struct{})
	answer.Go(func() {
		_, answerErr = await(ctx, r, nil)
		close(answered)
		if answerErr != nil {
			_ = conn.SetWriteDeadline(past) // pack has nothing to write to any more
		}
	})
	out := &stdinWriter{w: w, answered: answered}
	err := pack(out)
	if err == nil {
		err = out.end()
	}
	if err != nil && !out.failed {
		// Our own fault: closing without an end of file makes the guest give up.
		_ = conn.Close()
		answer.Wait()
		return err
	}
	answer.Wait()
	if err != nil && answerErr == nil {
		return errdefs.Invalid("the VM ended the transfer before its end")
	}
	return answerErr
}

// RecvTar runs a copy-out request and writes the tar stream to w.
func RecvTar(ctx context.Context, conn net.Conn, r Request, w io.Writer) error {
	defer guard(ctx, conn)()
	if err := NewFrameWriter(conn).Request(r); err != nil {
		return lost(ctx, err)
	}
	return FollowTar(ctx, conn, w)
}

// FollowTar is RecvTar where the request was sent already.
func FollowTar(ctx context.Context, conn net.Conn, w io.Writer) error {
	defer guard(ctx, conn)()
	_, err := await(ctx, NewFrameReader(conn), w)
	return err
}

// Pinger measures the round trip to the agent on one stream.
type Pinger struct {
	conn net.Conn
	r    *FrameReader
	w    *FrameWriter
}

// OpenPing makes conn a stream of pings, and sends the first.
func OpenPing(ctx context.Context, conn net.Conn) (*Pinger, error) {
	p := &Pinger{conn: conn, r: NewFrameReader(conn), w: NewFrameWriter(conn)}
	err := p.round(ctx, func() error { return p.w.Request(Request{Kind: KindPing}) })
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return p, nil
}

// Ping sends one ping and waits for its answer. After an error only Close is left.
func (p *Pinger) Ping(ctx context.Context) error {
	return p.round(ctx, func() error { return p.w.Control(Control{Type: ControlPing}) })
}

func (p *Pinger) round(ctx context.Context, send func() error) error {
	stop := context.AfterFunc(ctx, func() { _ = p.conn.SetDeadline(past) })
	err := send()
	if err == nil {
		_, err = await(ctx, p.r, nil)
	} else {
		err = lost(ctx, err)
	}
	if !stop() && err == nil {
		err = context.Cause(ctx) // the deadline hit just after the answer
	}
	return err
}

// Close ends the stream.
func (p *Pinger) Close() error { return p.conn.Close() }

// past is a deadline that has passed.
var past = time.Unix(1, 0)

// guard makes the end of ctx end all use of conn. The function it returns closes
// conn.
func guard(ctx context.Context, conn net.Conn) func() {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(past) })
	return func() {
		stop()
		_ = conn.Close()
	}
}

// await reads up to the frame that ends a request: done, or an error. Output goes
// to out; where none is expected it breaks the protocol.
func await(ctx context.Context, r *FrameReader, out io.Writer) (Control, error) {
	for {
		channel, payload, err := r.Next()
		if err != nil {
			return Control{}, lost(ctx, err)
		}
		switch {
		case channel == ChanStdout && out != nil:
			if _, err := out.Write(payload); err != nil {
				return Control{}, errdefs.Wrap(err, "write what came from the VM")
			}
		case channel == ChanControl:
			c, err := DecodeControl(payload)
			if err != nil {
				return Control{}, err
			}
			switch c.Type {
			case ControlDone:
				c.State = cleanText(c.State, maxName)
				return c, nil
			case ControlError:
				return Control{}, c.Err()
			}
			return Control{}, unexpected(c)
		default:
			return Control{}, errdefs.Invalid("unexpected frame on channel %d from the VM", channel)
		}
	}
}

// agreed reads the frame by which an agent begins to serve a request, or says why not.
func agreed(channel byte, payload []byte) (Control, error) {
	if channel != ChanControl {
		return Control{}, errdefs.Invalid("unexpected frame on channel %d from the VM", channel)
	}
	c, err := DecodeControl(payload)
	switch {
	case err != nil:
		return c, err
	case c.Type == ControlStarted:
		return c, nil
	case c.Type == ControlError:
		return c, c.Err()
	}
	return c, unexpected(c)
}

func unexpected(c Control) error {
	return errdefs.Invalid("unexpected %q frame from the VM", cleanText(string(c.Type), 40))
}

// stdinWriter sends what is written as stdin frames of good size.
type stdinWriter struct {
	w        *FrameWriter
	buf      []byte // FrameHeader free bytes, then what waits to be sent
	answered <-chan struct{}
	failed   bool // the stream did, not the producer
}

func (s *stdinWriter) Write(p []byte) (int, error) {
	written := 0
	for len(p) > 0 {
		if s.buf == nil {
			s.buf = make([]byte, FrameHeader, FrameHeader+MaxFrame)
		}
		n := min(len(p), cap(s.buf)-len(s.buf))
		s.buf = append(s.buf, p[:n]...)
		p = p[n:]
		if len(s.buf) == cap(s.buf) {
			if err := s.flush(); err != nil {
				return written, err
			}
		}
		written += n
	}
	return written, nil
}

func (s *stdinWriter) flush() error {
	if len(s.buf) <= FrameHeader {
		return nil
	}
	select {
	case <-s.answered:
		s.failed = true
		return io.ErrClosedPipe
	default:
	}
	err := s.w.WriteReserved(ChanStdin, s.buf)
	s.buf = s.buf[:FrameHeader]
	s.failed = s.failed || err != nil
	return err
}

// end sends the rest and the end of file.
func (s *stdinWriter) end() error {
	if err := s.flush(); err != nil {
		return err
	}
	err := s.w.Write(ChanStdin, nil)
	s.failed = s.failed || err != nil
	return err
}
