package agent

import (
	"context"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"banger/internal/guest"
	"banger/internal/guest/agent/proc"
	"banger/internal/guest/agent/serve"
)

// hosts is a port to which one host after the other connects.
type hosts struct {
	next chan net.Conn

	mu   sync.Mutex
	conn net.Conn // nil: none
}

func (h *hosts) now() net.Conn {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.conn
}

func (h *hosts) Read(p []byte) (int, error) {
	if c := h.now(); c != nil {
		return c.Read(p)
	}
	return 0, io.EOF
}

func (h *hosts) Write(p []byte) (int, error) { return h.now().Write(p) }

func (h *hosts) SetDeadline(at time.Time) error {
	if c := h.now(); c != nil {
		return c.SetDeadline(at)
	}
	return nil
}

func (h *hosts) WaitConnected() error {
	c, ok := <-h.next
	if !ok {
		return io.ErrClosedPipe
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.conn = c
	return nil
}

// stuckMachine never finishes what it was told.
type stuckMachine struct{ entered, leave chan struct{} }

func (m *stuckMachine) Configure(context.Context, *guest.Configure) error {
	close(m.entered)
	<-m.leave
	return nil
}
func (m *stuckMachine) Shutdown(context.Context) (func(), error)   { return nil, nil }
func (m *stuckMachine) Grow(int64) error                           { return nil }
func (m *stuckMachine) WaitSystem(context.Context) (string, error) { return "", nil }

// A request that never ends does not keep the next host out.
func TestAcceptBehindAStuckRequest(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	m := &stuckMachine{make(chan struct{}), make(chan struct{})}
	s := serve.New(serve.Deps{
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Machine: m,
		Spawner: proc.NewSpawner(), Users: proc.NewUsers("/etc"),
	})
	if err := s.Open(); err != nil {
		t.Fatal(err)
	}
	port := &hosts{next: make(chan net.Conn)}
	var agent sync.WaitGroup
	agent.Go(func() {
		_ = accept(ctx, port, s, func() guest.Ready { return guest.Ready{Protocol: guest.ProtocolVersion, RootReady: true} })
	})
	defer func() {
		close(m.leave)
		close(port.next)
		agent.Wait()
		s.Close()
	}()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	connect := func() *guest.Session {
		host, err := net.Dial("unix", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		theirs, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		port.next <- theirs
		session, err := guest.Connect(ctx, host)
		if err != nil {
			t.Fatal(err)
		}
		return session
	}
	first := connect()
	conn, err := first.Open(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := guest.WriteRequest(ctx, conn, guest.Request{Kind: guest.KindConfigure, Configure: &guest.Configure{}}); err != nil {
		t.Fatal(err)
	}
	<-m.entered
	_ = first.Close()

	second := connect()
	defer func() { _ = second.Close() }()
	if conn, err = second.Open(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := guest.Call(ctx, conn, guest.Request{Kind: guest.KindPing}); err != nil {
		t.Fatal(err)
	}
}
