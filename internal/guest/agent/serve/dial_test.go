package serve

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
	"banger/internal/guest"
)

// listen is a program of the guest; it handles each connection and closes it.
func listen(t *testing.T, addr string, handle func(*net.TCPConn)) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Skip(err) // no IPv6 here
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				handle(c.(*net.TCPConn))
			}()
		}
	}()
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

func (w *world) tunnel(ctx context.Context, port uint16) (*guest.Tunnel, error) {
	w.t.Helper()
	conn := w.dial()
	if err := guest.WriteRequest(ctx, conn, guest.Request{Kind: guest.KindDial, Dial: &guest.Dial{Port: port}}); err != nil {
		w.t.Fatal(err)
	}
	return guest.OpenTunnel(ctx, conn)
}

// forward connects through a tunnel and returns the client's end of it, and how the
// tunnel ended.
func (w *world) forward(port uint16) (client *net.TCPConn, ended <-chan error) {
	w.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Close() })
	host, err := l.Accept()
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	w.t.Cleanup(cancel)
	tunnel, err := w.tunnel(ctx, port)
	if err != nil {
		w.t.Fatal(err)
	}
	out := make(chan error, 1)
	go func() { out <- tunnel.Join(ctx, host.(*net.TCPConn)) }()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	return c.(*net.TCPConn), out
}

// A connection carries bytes both ways; the end of one direction leaves the other.
func TestDialHalfClose(t *testing.T) {
	for name, addr := range map[string]string{"IPv4": "127.0.0.1:0", "IPv6": "[::1]:0"} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			port := listen(t, addr, func(c *net.TCPConn) {
				all, err := io.ReadAll(c) // to the client's end
				if err != nil {
					t.Error(err)
				}
				_, _ = c.Write(bytes.ToUpper(all))
			})
			c, ended := w.forward(port)
			payload := bytes.Repeat([]byte("some bytes. "), 100_000)
			if _, err := c.Write(payload); err != nil {
				t.Fatal(err)
			}
			if err := c.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(c)
			if err != nil || !bytes.Equal(got, bytes.ToUpper(payload)) {
				t.Errorf("%d bytes came back, %v", len(got), err)
			}
			if err := <-ended; err != nil {
				t.Errorf("the tunnel ended with %v", err)
			}
		})
	}
}

// A program that closes first ends its direction; what the client still sends is reset.
func TestDialProgramClosesFirst(t *testing.T) {
	w := newWorld(t)
	port := listen(t, "127.0.0.1:0", func(c *net.TCPConn) { _, _ = c.Write([]byte("bye")) })
	c, ended := w.forward(port)
	if got, err := io.ReadAll(c); string(got) != "bye" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := <-ended; err != nil {
		t.Errorf("the tunnel ended with %v", err)
	}
}

// A reset on one side is one on the other.
func TestDialReset(t *testing.T) {
	w := newWorld(t)
	port := listen(t, "127.0.0.1:0", func(c *net.TCPConn) {
		_, _ = c.Read(make([]byte, 1))
		_ = c.SetLinger(0)
	})
	c, ended := w.forward(port)
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(c); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("the client reads %v", err)
	}
	if err := <-ended; err == nil {
		t.Error("the tunnel says nothing of it")
	}

	seen := make(chan error, 1)
	port = listen(t, "127.0.0.1:0", func(c *net.TCPConn) {
		_, err := io.ReadAll(c)
		seen <- err
	})
	c, ended = w.forward(port)
	_ = c.SetLinger(0)
	_ = c.Close()
	if err := <-seen; !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("the program reads %v", err)
	}
	if err := <-ended; err == nil {
		t.Error("the tunnel says nothing of it")
	}
}

// Nobody buffers for a program that reads nothing: the client is held up.
func TestDialHoldsTheClientUp(t *testing.T) {
	w := newWorld(t)
	release := make(chan struct{})
	port := listen(t, "127.0.0.1:0", func(*net.TCPConn) { <-release })
	c, ended := w.forward(port)
	_ = c.SetWriteDeadline(time.Now().Add(2 * time.Second))
	sent, err := c.Write(make([]byte, 256<<20))
	var timeout net.Error
	if !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("all of %d bytes were taken: %v", sent, err)
	}
	close(release)
	_ = c.Close()
	<-ended
}

func TestDialRefused(t *testing.T) {
	w := newWorld(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := uint16(l.Addr().(*net.TCPAddr).Port)
	_ = l.Close()
	_, err = w.tunnel(context.Background(), port)
	if !errors.Is(err, errdefs.ErrUnavailable) || !strings.Contains(err.Error(), "nothing listens") || errdefs.HintOf(err) == "" {
		t.Errorf("got %v", err)
	}
	if _, err = w.tunnel(context.Background(), 0); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("port 0: %v", err)
	}
}
