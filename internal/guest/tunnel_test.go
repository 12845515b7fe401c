package guest

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
)

// tcpPair is a TCP connection with both its ends.
func tcpPair(t *testing.T) (a, b *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	d, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); d.Close() })
	return c.(*net.TCPConn), d.(*net.TCPConn)
}

// dialed asks for port 80 of the guest at the other end.
func dialed(t *testing.T, conn net.Conn) (*Tunnel, error) {
	t.Helper()
	if err := WriteRequest(testContext(t), conn, Request{Kind: KindDial, Dial: &Dial{Port: 80}}); err != nil {
		t.Fatal(err)
	}
	return OpenTunnel(testContext(t), conn)
}

// A guest that breaks the rules, before or after it has connected, is left, and the
// client's connection is reset.
func TestTunnelAgainstBadPeers(t *testing.T) {
	for name, agent := range map[string]func(w *FrameWriter, conn net.Conn){
		"hang-up":         func(*FrameWriter, net.Conn) {},
		"done":            func(w *FrameWriter, _ net.Conn) { _ = w.Control(Control{Type: ControlDone}) },
		"not json":        func(w *FrameWriter, _ net.Conn) { _ = w.Write(ChanControl, []byte("{")) },
		"output at once":  func(w *FrameWriter, _ net.Conn) { _ = w.Write(ChanStdout, []byte("x")) },
		"unknown channel": func(_ *FrameWriter, c net.Conn) { _, _ = c.Write([]byte{9, 0, 0, 0, 0}) },
	} {
		conn := script(t, func(_ *FrameReader, w *FrameWriter, c net.Conn) { agent(w, c) })
		if _, err := dialed(t, conn); err == nil {
			t.Errorf("%s: connected", name)
		}
	}
	for name, agent := range map[string]func(w *FrameWriter, conn net.Conn){
		"hang-up":          func(*FrameWriter, net.Conn) {},
		"started again":    func(w *FrameWriter, _ net.Conn) { _ = w.Control(Control{Type: ControlStarted}) },
		"stderr":           func(w *FrameWriter, _ net.Conn) { _ = w.Write(ChanStderr, []byte("x")) },
		"after its end":    func(w *FrameWriter, _ net.Conn) { _ = w.Write(ChanStdout, nil); _ = w.Write(ChanStdout, []byte("x")) },
		"too large":        func(_ *FrameWriter, c net.Conn) { _, _ = c.Write([]byte{ChanStdout, 1, 0, 0, 0}) },
		"connection broke": func(w *FrameWriter, _ net.Conn) { _ = w.Control(ErrorControl(errdefs.Unavailable("broke"))) },
	} {
		conn := script(t, func(_ *FrameReader, w *FrameWriter, c net.Conn) {
			if w.Control(Control{Type: ControlStarted}) == nil {
				agent(w, c)
			}
		})
		tunnel, err := dialed(t, conn)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		client, host := tcpPair(t)
		if err := tunnel.Join(testContext(t), host); err == nil {
			t.Errorf("%s: ended in order", name)
		}
		// One that was told of the end has read it before the reset comes.
		if _, err := io.ReadAll(client); !errors.Is(err, unix.ECONNRESET) && name != "after its end" {
			t.Errorf("%s: the client reads %v", name, err)
		}
	}
}

// The end of the context ends all of it, whoever is waiting.
func TestTunnelEndsWithItsContext(t *testing.T) {
	conn := script(t, func(r *FrameReader, w *FrameWriter, _ net.Conn) {
		_ = w.Control(Control{Type: ControlStarted})
		_, _, _ = r.Next() // and says nothing more
	})
	tunnel, err := dialed(t, conn)
	if err != nil {
		t.Fatal(err)
	}
	client, host := tcpPair(t)
	ctx, cancel := context.WithCancel(testContext(t))
	ended := make(chan error, 1)
	go func() { ended <- tunnel.Join(ctx, host) }()
	cancel()
	<-ended
	if _, err := io.ReadAll(client); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("the client reads %v", err)
	}
}
