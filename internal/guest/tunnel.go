package guest

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"banger/internal/errdefs"
)

// TCP is one end of a TCP connection, as *net.TCPConn is.
type TCP interface {
	net.Conn
	CloseWrite() error
	SetLinger(sec int) error
}

// halfOpen is how long nothing may come for a client that has sent its end. Nobody can
// tell whether it still waits or is gone for good.
const halfOpen = 10 * time.Minute

// tunnelChunk is how much is read from a connection at once, in bytes.
const tunnelChunk = 64 << 10

var tunnelBuffers = sync.Pool{New: func() any { b := make([]byte, FrameHeader+tunnelChunk); return &b }}

// OpenTunnel waits for the answer to a dial request that was sent on conn: the guest
// has connected. It errors as the agent does, with class unavailable when nobody
// listens there. It closes conn when it fails.
func OpenTunnel(ctx context.Context, conn net.Conn) (*Tunnel, error) {
	t := &Tunnel{conn: conn, r: NewFrameReader(conn), w: NewFrameWriter(conn)}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(past) })
	err := t.begin()
	if !stop() {
		err = errors.Join(context.Cause(ctx), err)
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return t, nil
}

// Tunnel is a stream to a connection in the guest.
type Tunnel struct {
	conn  net.Conn
	r     *FrameReader
	w     *FrameWriter
	ended atomic.Bool // the client has sent its end
}

// limit bounds how long nothing may come.
func (t *Tunnel) limit() { _ = t.conn.SetReadDeadline(time.Now().Add(halfOpen)) }

func (t *Tunnel) begin() error {
	channel, payload, err := t.r.Next()
	if err == nil {
		_, err = agreed(channel, payload)
	}
	return err
}

// Join copies both ways between the tunnel and client until both directions have
// ended, or one side was reset, and closes both: a reset is passed on. It ends at once
// with ctx.
func (t *Tunnel) Join(ctx context.Context, client TCP) error {
	both := func() {
		_ = t.conn.Close()
		_ = t.conn.SetDeadline(past) // for readers of a closed stream whose peer keeps silent
		_ = client.Close()
	}
	stop := context.AfterFunc(ctx, func() {
		_ = client.SetLinger(0)
		both()
	})
	defer stop()
	sent := make(chan error, 1)
	go func() {
		err := SendTunnel(t.w, ChanStdin, client)
		if err != nil {
			both() // the client is gone: nobody waits for what still comes
		} else {
			t.ended.Store(true)
			t.limit()
		}
		sent <- err
	}()
	err := t.receive(client)
	if err != nil {
		_ = client.SetLinger(0)
	}
	both()
	return errors.Join(err, <-sent)
}

// receive writes what comes to client until the agent has said that all is done.
func (t *Tunnel) receive(client TCP) error {
	for over := false; ; {
		channel, payload, err := t.r.Next()
		if err != nil {
			return err
		}
		if t.ended.Load() {
			t.limit()
		}
		switch {
		case channel == ChanControl:
			c, err := DecodeControl(payload)
			if err != nil {
				return err
			}
			switch c.Type {
			case ControlDone:
				return nil
			case ControlError:
				return c.Err()
			}
			return unexpected(c)
		case channel != ChanStdout || over:
			return errdefs.Invalid("unexpected frame on channel %d from the VM", channel)
		case len(payload) == 0:
			over = true
			if err := client.CloseWrite(); err != nil {
				return err
			}
		default:
			if _, err := client.Write(payload); err != nil {
				return err
			}
		}
	}
}

// SendTunnel sends what comes from a connection as frames of one channel, and its end
// as an empty frame. It returns nil when the connection has ended in order.
func SendTunnel(w *FrameWriter, channel byte, from io.Reader) error {
	b := tunnelBuffers.Get().(*[]byte)
	defer tunnelBuffers.Put(b)
	for {
		n, err := from.Read((*b)[FrameHeader:])
		if n > 0 {
			if werr := w.WriteReserved(channel, (*b)[:FrameHeader+n]); werr != nil {
				return werr
			}
		}
		if errors.Is(err, io.EOF) {
			return w.Write(channel, nil)
		}
		if err != nil {
			return err
		}
	}
}
