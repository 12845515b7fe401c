package serve

import (
	"errors"
	"io"
	"os"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
	"banger/internal/guest"
	"banger/internal/guest/agent/proc"
	"banger/internal/guest/agent/tree"
)

// syncDisks writes all that is cached to the disks.
func syncDisks() { unix.Sync() }

// absolute resolves a path of a request against the default directory.
func (s *Server) absolute(p string) (string, error) {
	if path.IsAbs(p) {
		return path.Clean(p), nil
	}
	defaults := s.configured()
	user, err := s.Users.Lookup(defaults.User)
	if err != nil {
		return "", err
	}
	dir, err := workdir("", defaults.Workdir, &user)
	if err != nil {
		return "", err
	}
	return path.Join(dir, p), nil
}

func (s *Server) copyIn(r *guest.FrameReader, w *guest.FrameWriter, c *guest.CopyIn) (failed error) {
	trailing := c.Dest[len(c.Dest)-1] == '/'
	dest, err := s.absolute(c.Dest)
	if err != nil {
		return err
	}
	var owner *tree.Owner
	if c.User != "" {
		user, err := s.Users.Lookup(c.User)
		if err != nil {
			return err
		}
		owner = ownerOf(user)
	}
	single := ""
	if c.File && !trailing && !isDir(dest) {
		dest, single = path.Split(dest)
	}
	if c.Mkdir {
		made, err := mkdirs(path.Clean(dest), owner)
		defer func() {
			if failed != nil {
				unmake(made)
			}
		}()
		if err != nil {
			return fileError(err, dest)
		}
	}
	fd, err := unix.Open(dest, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fileError(err, dest)
	}
	defer unix.Close(fd)
	in := &stdinReader{r: r}
	if err := tree.In(fd, in, owner, single); err != nil {
		return in.better(err)
	}
	// What follows the end of the tar is padding.
	if _, err := io.Copy(io.Discard, in); err != nil {
		return err
	}
	return done(w, guest.Control{})
}

func ownerOf(u proc.User) *tree.Owner { return &tree.Owner{UID: int(u.UID), GID: int(u.GID)} }

func fileError(err error, p string) error {
	switch {
	case errors.Is(err, unix.ENOENT):
		return errdefs.NotFound("%s: no such directory in the VM", p)
	case errors.Is(err, unix.ENOTDIR):
		return errdefs.Invalid("%s is not a directory in the VM", p)
	case errors.Is(err, unix.ENOSPC):
		return errdefs.Exhausted("%s: no space left in the VM", p).WithHint("make the VM with a larger --disk")
	}
	return errdefs.Wrap(err, "open %s", p)
}

// mkdirs makes a directory and its parents; those it makes belong to owner. It returns
// them, the outer ones first, also when it fails.
func mkdirs(dir string, owner *tree.Owner) (made []string, err error) {
	if isDir(dir) {
		return nil, nil
	}
	if parent := path.Dir(dir); parent != dir {
		if made, err = mkdirs(parent, owner); err != nil {
			return made, err
		}
	}
	if err := unix.Mkdir(dir, 0o755); err != nil {
		if err == unix.EEXIST && isDir(dir) {
			return made, nil
		}
		return made, err
	}
	made = append(made, dir)
	if owner == nil {
		return made, nil
	}
	return made, os.Lchown(dir, owner.UID, owner.GID)
}

// unmake removes directories that mkdirs made, but for those in which something has arrived.
func unmake(made []string) {
	for _, dir := range slices.Backward(made) {
		_ = unix.Rmdir(dir)
	}
}

func (s *Server) copyOut(w *guest.FrameWriter, c *guest.CopyOut) error {
	p, err := s.absolute(c.Path)
	if err != nil {
		return err
	}
	out := newStdoutWriter(w)
	if err := tree.Out(p, out); err != nil {
		_ = out.flush()
		return err
	}
	if err := out.flush(); err != nil {
		return err
	}
	return done(w, guest.Control{})
}

func (s *Server) stat(w *guest.FrameWriter, q *guest.StatPath) error {
	p, err := s.absolute(q.Path)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat(p, &st); err != nil {
		if err == unix.ENOENT || err == unix.ENOTDIR {
			return errdefs.NotFound("%s: no such file in the VM", p)
		}
		return errdefs.Wrap(err, "look at %s", p)
	}
	return done(w, guest.Control{Stat: &guest.FileStat{
		Mode: st.Mode, Size: st.Size, IsDir: st.Mode&unix.S_IFMT == unix.S_IFDIR,
	}})
}

// stdinReader reads the stdin frames of a stream as one byte stream.
type stdinReader struct {
	r    *guest.FrameReader
	left []byte
	err  error
}

func (s *stdinReader) Read(p []byte) (int, error) {
	for len(s.left) == 0 {
		if s.err != nil {
			return 0, s.err
		}
		channel, payload, err := s.r.Next()
		switch {
		case errors.Is(err, io.EOF):
			s.err = errdefs.Unavailable("the host hung up before the end of the transfer")
		case err != nil:
			s.err = err
		case channel != guest.ChanStdin:
			s.err = errdefs.Invalid("unexpected frame on channel %d", channel)
		case len(payload) == 0:
			s.err = io.EOF
		}
		s.left = payload
	}
	n := copy(p, s.left)
	s.left = s.left[n:]
	return n, nil
}

// better prefers the stream's own error to what it led to.
func (s *stdinReader) better(err error) error {
	if s.err != nil && s.err != io.EOF {
		return s.err
	}
	return err
}

// stdoutWriter sends a byte stream as stdout frames of good size.
type stdoutWriter struct {
	w   *guest.FrameWriter
	buf []byte // FrameHeader free bytes, then what waits to be sent
}

func newStdoutWriter(w *guest.FrameWriter) *stdoutWriter {
	return &stdoutWriter{w: w, buf: make([]byte, guest.FrameHeader, guest.FrameHeader+guest.MaxFrame)}
}

func (s *stdoutWriter) Write(p []byte) (int, error) {
	total := len(p)
	for len(p) > 0 {
		n := min(len(p), cap(s.buf)-len(s.buf))
		s.buf = append(s.buf, p[:n]...)
		p = p[n:]
		if len(s.buf) == cap(s.buf) {
			if err := s.flush(); err != nil {
				return 0, err
			}
		}
	}
	return total, nil
}

func (s *stdoutWriter) flush() error {
	if len(s.buf) == guest.FrameHeader {
		return nil
	}
	err := s.w.WriteReserved(guest.ChanStdout, s.buf)
	s.buf = s.buf[:guest.FrameHeader]
	return err
}
