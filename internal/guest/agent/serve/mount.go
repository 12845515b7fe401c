package serve

import (
	"context"
	"net"
	"time"

	"banger/internal/errdefs"
	"banger/internal/guest"
	"banger/internal/guest/agent/mount"
)

// mount makes a directory of the host appear for as long as the stream lasts.
func (s *Server) mount(ctx context.Context, conn net.Conn, r *guest.FrameReader, w *guest.FrameWriter, q *guest.Mount) error {
	target, err := s.absolute(q.Target)
	if err != nil {
		return err
	}
	if target == "/" {
		return errdefs.Invalid("%s cannot be mounted on", target).WithHint("give another directory")
	}
	if q.User == "" {
		q.User = s.configured().User
	}
	user, err := s.Users.Lookup(q.User)
	if err != nil {
		return err
	}
	release, err := s.takeTarget(ctx, target, mountWait)
	if err != nil {
		return err
	}
	defer release()
	made, err := mkdirs(target, ownerOf(user))
	defer func() { unmake(made) }()
	if err != nil {
		return fileError(err, target)
	}
	m, err := mount.Open(target, q.ReadOnly)
	if err != nil {
		return err
	}
	defer m.Close()
	started := func(thread int) error {
		return w.Control(guest.Control{Type: guest.ControlStarted, PID: thread, UID: user.UID, GID: user.GID})
	}
	if err := m.Serve(r, w, started, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) }); err != nil {
		return err
	}
	return done(w, guest.Control{})
}

// mountWait is how long a mount may take to end whose host is gone.
const mountWait = 5 * time.Second

// takeTarget sets a directory aside for one mount, until release. The one before may still
// be on its way out: it unmounts what is on top there, and removes the directory if it has
// made it, so nothing new comes before that is done.
func (s *Server) takeTarget(ctx context.Context, target string, patience time.Duration) (release func(), err error) {
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	for {
		s.mu.Lock()
		gone, taken := s.mounts[target]
		if !taken {
			gone = make(chan struct{})
			s.mounts[target] = gone
		}
		s.mu.Unlock()
		if !taken {
			return func() {
				s.mu.Lock()
				delete(s.mounts, target)
				s.mu.Unlock()
				close(gone)
			}, nil
		}
		select {
		case <-gone:
		case <-timeout.C:
			return nil, errdefs.AlreadyExists("a directory of the host is at %s of the VM already", target).
				WithHint("end that mount first, or give another directory")
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}
