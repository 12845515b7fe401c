package serve

import (
	"context"
	"errors"
	"net"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
	"banger/internal/guest"
)

// dialTimeout bounds one attempt: on the loopback, only a listener whose queue is full
// keeps anybody waiting.
const dialTimeout = 5 * time.Second

// loopbacks are where programs of the guest listen for each other.
var loopbacks = []string{"127.0.0.1", "::1"}

// dial joins the stream to a TCP port of the guest.
func (s *Server) dial(ctx context.Context, stream net.Conn, r *guest.FrameReader, w *guest.FrameWriter, port uint16) error {
	conn, err := dialLoopback(ctx, port)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := w.Control(guest.Control{Type: guest.ControlStarted}); err != nil {
		return err
	}
	sent := make(chan error, 1)
	s.running.Go(func() {
		err := guest.SendTunnel(w, guest.ChanStdout, conn)
		if err != nil {
			_ = w.Control(guest.ErrorControl(broken(err)))
			_ = stream.Close()
			_ = stream.SetReadDeadline(time.Unix(1, 0))
		}
		sent <- err
	})
	if err := receiveTunnel(r, conn); err != nil {
		_ = conn.SetLinger(0) // the host is gone, or the program: the other is to know
		_ = conn.Close()
		_ = stream.SetWriteDeadline(time.Now().Add(dialTimeout)) // for what waits for a host that is gone
		<-sent
		return broken(err)
	}
	if err := <-sent; err != nil {
		return broken(err)
	}
	return done(w, guest.Control{})
}

// dialLoopback returns the error that says most: that nobody listens.
func dialLoopback(ctx context.Context, port uint16) (*net.TCPConn, error) {
	var errs []error
	for _, host := range loopbacks {
		d := net.Dialer{Timeout: dialTimeout}
		conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(int(port))))
		if err == nil {
			return conn.(*net.TCPConn), nil
		}
		errs = append(errs, err)
	}
	err := errors.Join(errs...)
	if errors.Is(err, unix.ECONNREFUSED) {
		return nil, errdefs.Unavailable("nothing listens on port %d of the VM", port).
			WithHint("start the program that is to answer there; it must listen on 127.0.0.1, on ::1 or on all addresses")
	}
	return nil, errdefs.Unavailable("connect to port %d of the VM: %w", port, err)
}

// receiveTunnel writes what the host sends to conn, up to its end.
func receiveTunnel(r *guest.FrameReader, conn *net.TCPConn) error {
	for {
		channel, payload, err := r.Next()
		switch {
		case err != nil:
			return err
		case channel != guest.ChanStdin:
			return errdefs.Invalid("unexpected frame on channel %d", channel)
		case len(payload) == 0:
			return conn.CloseWrite()
		}
		if _, err := conn.Write(payload); err != nil {
			return err
		}
	}
}

// broken is a connection that was reset, for the host.
func broken(err error) error {
	return errdefs.Unavailable("the connection in the VM broke: %w", err)
}
