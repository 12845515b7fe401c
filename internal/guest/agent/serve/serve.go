// Package serve answers the requests that reach the agent, one stream each.
package serve

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"runtime/debug"
	"slices"
	"sync"

	"banger/internal/errdefs"
	"banger/internal/guest"
	"banger/internal/guest/agent/proc"
	"banger/internal/guest/agent/record"
)

// Machine is what the server needs of the machine it runs on, beyond starting
// commands and moving files.
type Machine interface {
	// Configure gives the machine its identity.
	Configure(ctx context.Context, c *guest.Configure) error
	// Shutdown makes an orderly power-off certain and returns what carries it out
	// after the answer was sent; nil when nothing is left to do.
	Shutdown(ctx context.Context) (func(), error)
	// Grow makes the root file system as large as its disk, which has so many bytes or
	// is about to.
	Grow(bytes int64) error
	// WaitSystem waits until the init system has settled and returns its state.
	WaitSystem(ctx context.Context) (string, error)
}

// Deps are what a Server works with.
type Deps struct {
	Log     *slog.Logger
	Machine Machine
	Spawner *proc.Spawner
	Users   *proc.Users
	Records record.Records // of what was put into workspaces
	// RootError is why the root is not ready; empty when it is. Commands and files
	// are then refused.
	RootError string
}

// Server answers requests.
type Server struct {
	Deps
	null *os.File // /dev/null, for all commands without input

	mu       sync.RWMutex // guards what follows
	defaults guest.Configure
	stopping map[*execution]stopping  // commands that have a stop signal
	mounts   map[string]chan struct{} // directories of the host, by where they are; closed when they are gone

	running sync.WaitGroup
}

// New makes a server.
func New(d Deps) *Server {
	return &Server{Deps: d, stopping: make(map[*execution]stopping), mounts: make(map[string]chan struct{})}
}

// Open prepares the server.
func (s *Server) Open() error {
	f, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return errdefs.Wrap(err, "open /dev/null")
	}
	s.null = f
	if s.RootError == "" {
		s.sealAll()
	}
	return nil
}

// Close waits for the commands that run and releases what Open took.
func (s *Server) Close() {
	s.running.Wait()
	_ = s.null.Close()
}

// Serve answers one stream and closes it. It returns when the host has closed
// its side.
func (s *Server) Serve(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	r, w := guest.NewFrameReader(conn), guest.NewFrameWriter(conn)
	err := s.answer(ctx, conn, r, w)
	if err == nil {
		return
	}
	var c *errdefs.Error
	if errors.As(err, &c) || errdefs.ClassOf(err) != errdefs.ClassInternal {
		_ = w.Control(guest.ErrorControl(err))
		return
	}
	_ = w.Control(guest.ErrorControl(errdefs.Wrap(err, "serve the request")))
}

// answer serves one request. A panic is the end of that request only.
func (s *Server) answer(ctx context.Context, conn net.Conn, r *guest.FrameReader, w *guest.FrameWriter) (err error) {
	defer func() {
		if p := recover(); p != nil {
			s.Log.Error("panic while serving a request", "panic", p, "stack", string(debug.Stack()))
			err = errdefs.Internal("the agent made a mistake: %v", p)
		}
	}()
	req, err := r.Request()
	if err != nil {
		return err
	}
	switch req.Kind {
	case guest.KindPing:
		return s.ping(r, w)
	case guest.KindShutdown:
		return s.shutdown(ctx, conn, w, req.Shutdown)
	}
	if s.RootError != "" {
		return errdefs.Precondition("the VM has no root file system: %s", s.RootError).
			WithHint("see the VM's console with `banger logs`")
	}
	switch req.Kind {
	case guest.KindExec:
		return s.exec(conn, r, w, req.Exec)
	case guest.KindConfigure:
		return s.configure(ctx, w, req.Configure)
	case guest.KindCopyIn:
		return s.copyIn(r, w, req.CopyIn)
	case guest.KindCopyOut:
		return s.copyOut(w, req.CopyOut)
	case guest.KindStat:
		return s.stat(w, req.Stat)
	case guest.KindWorkspacePut:
		return s.workspacePut(r, w, req.WorkspacePut)
	case guest.KindWorkspaceChanges:
		return WorkspaceChanges(s.Records, "/", r, w, req.WorkspaceChanges)
	case guest.KindWorkspaceForget:
		return s.workspaceForget(w, req.WorkspaceForget)
	case guest.KindDial:
		return s.dial(ctx, conn, r, w, req.Dial.Port)
	case guest.KindSSH:
		return s.ssh(ctx, conn, r, w, req.SSH)
	case guest.KindMount:
		return s.mount(ctx, conn, r, w, req.Mount)
	case guest.KindSync:
		syncDisks()
		return done(w, guest.Control{})
	case guest.KindGrow:
		if err := s.Machine.Grow(req.Grow.Bytes); err != nil {
			return err
		}
		return done(w, guest.Control{})
	case guest.KindWaitSystem:
		return s.waitSystem(ctx, r, w)
	case guest.KindBenchSpawn:
		return s.bench(ctx, r, w, req.BenchSpawn)
	}
	return errdefs.Unsupported("request of kind %s", req.Kind)
}

func done(w *guest.FrameWriter, c guest.Control) error {
	c.Type = guest.ControlDone
	return w.Control(c)
}

// ping answers the request and every ping control after it.
func (s *Server) ping(r *guest.FrameReader, w *guest.FrameWriter) error {
	for {
		if err := done(w, guest.Control{}); err != nil {
			return nil
		}
		channel, payload, err := r.Next()
		if err != nil {
			return nil
		}
		c, err := guest.DecodeControl(payload)
		if channel != guest.ChanControl || err != nil || c.Type != guest.ControlPing {
			return errdefs.Invalid("unexpected frame on a ping stream")
		}
	}
}

func (s *Server) configure(ctx context.Context, w *guest.FrameWriter, c *guest.Configure) error {
	if c.User != "" {
		if _, err := s.Users.Lookup(c.User); err != nil {
			return err
		}
	}
	if err := s.Machine.Configure(ctx, c); err != nil {
		return err
	}
	s.mu.Lock()
	s.defaults.User, s.defaults.Workdir = c.User, c.Workdir
	s.defaults.Env = slices.Clone(c.Env)
	s.mu.Unlock()
	return done(w, guest.Control{})
}

// configured is what Configure has said last.
func (s *Server) configured() guest.Configure {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.defaults
}

// waitSystem ends early when the host hangs up.
func (s *Server) waitSystem(ctx context.Context, r *guest.FrameReader, w *guest.FrameWriter) error {
	ctx, cancel := s.untilHangup(ctx, r)
	defer cancel()
	state, err := s.Machine.WaitSystem(ctx)
	if err != nil {
		return err
	}
	return done(w, guest.Control{State: state})
}

// untilHangup is a context that ends with the stream of a request to which the
// host adds nothing.
func (s *Server) untilHangup(ctx context.Context, r *guest.FrameReader) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	s.running.Go(func() {
		_, _, _ = r.Next()
		cancel()
	})
	return ctx, cancel
}
