package serve

import (
	"net"
	"time"

	"banger/internal/errdefs"
	"banger/internal/guest"
	"banger/internal/guest/agent/mount"
)

// mount makes a directory of the host appear for as long as the stream lasts.
func (s *Server) mount(conn net.Conn, r *guest.FrameReader, w *guest.FrameWriter, q *guest.Mount) error {
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
