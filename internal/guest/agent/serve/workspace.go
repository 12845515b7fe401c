package serve

import (
	"bufio"
	"io"
	"path"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
	"banger/internal/guest"
	"banger/internal/guest/agent/record"
	"banger/internal/guest/agent/tree"
	"banger/internal/guest/manifest"
)

// Seal keeps everybody from writing below a directory, or lets them again. One that was
// never sealed is left as it is by the latter.
type Seal func(dir string, readOnly bool) error

// WorkspacePut serves the request of that kind, whose stdin comes from r. owner is who
// gets the files; root is before every path. seal may be nil, where nothing can be sealed.
func WorkspacePut(records record.Records, root string, r *guest.FrameReader, w *guest.FrameWriter, c *guest.WorkspacePut, owner *tree.Owner, seal Seal) (failed error) {
	dest := path.Join(root, c.Dest)
	if was := records.ReadOnlyDir(c.ID); was != "" && seal != nil {
		if err := seal(was, false); err != nil {
			return err
		}
		defer func() {
			if failed != nil {
				_ = seal(was, true) // as it was
			}
		}()
	}
	made, err := mkdirs(dest, owner)
	defer func() {
		if failed != nil {
			unmake(made)
		}
	}()
	if err != nil {
		return fileError(err, c.Dest)
	}
	fd, err := unix.Open(dest, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fileError(err, c.Dest)
	}
	defer unix.Close(fd)
	in := &stdinReader{r: r}
	stream := bufio.NewReaderSize(in, 64<<10)
	err = records.Put(record.Put{
		ID: c.ID, Dest: fd, DestName: c.Dest, Owner: owner, Fresh: c.Fresh, ReadOnly: c.ReadOnly,
		Plan: stream, Tar: stream,
		Ready: func(conflicts []manifest.Entry) error { return ready(w, conflicts, c.Force) },
	})
	if err != nil {
		return in.better(err)
	}
	// What follows the end of the tar is padding.
	if _, err := io.Copy(io.Discard, stream); err != nil {
		return err
	}
	if c.ReadOnly && seal != nil {
		if err := seal(dest, true); err != nil {
			return err
		}
	}
	return done(w, guest.Control{})
}

// SealMount seals by mounts: the directory is mounted on itself, so that it can be made
// read-only, for root as well.
func SealMount(dir string, readOnly bool) error {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, dir, 0, unix.STATX_BASIC_STATS, &st); err != nil {
		return errdefs.Wrap(err, "look at %s", dir)
	}
	mounted := st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
	flags := uintptr(unix.MS_REMOUNT | unix.MS_BIND)
	switch {
	case !mounted && !readOnly:
		return nil
	case !mounted:
		if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
			return errdefs.Wrap(err, "mount %s on itself", dir)
		}
	}
	if readOnly {
		flags |= unix.MS_RDONLY
	}
	return errdefs.Wrap(unix.Mount("", dir, "", flags, ""), "mount %s anew", dir)
}

// sealAll seals what was sealed before the machine was started again.
func (s *Server) sealAll() {
	for _, dir := range s.Records.ReadOnly() {
		if err := SealMount(dir, true); err != nil {
			s.Log.Warn("a workspace can be written to, and should not", "dir", dir, "err", err)
		}
	}
}

func (s *Server) workspaceForget(w *guest.FrameWriter, c *guest.WorkspaceForget) error {
	if dir := s.Records.ReadOnlyDir(c.ID); dir != "" {
		if err := SealMount(dir, false); err != nil {
			s.Log.Warn("a workspace that is forgotten cannot be written to", "dir", dir, "err", err)
		}
	}
	if err := s.Records.Forget(c.ID); err != nil {
		return err
	}
	return done(w, guest.Control{})
}

// ready answers a plan.
func ready(w *guest.FrameWriter, conflicts []manifest.Entry, force bool) error {
	if len(conflicts) > 0 {
		out := newStdoutWriter(w)
		list := manifest.NewWriter(out)
		for i := range conflicts {
			if err := list.Add(&conflicts[i]); err != nil {
				return err
			}
		}
		if err := list.End(); err != nil {
			return err
		}
		if err := out.flush(); err != nil {
			return err
		}
		if !force {
			return errdefs.Precondition("%d of the files to be changed were changed in the VM", len(conflicts))
		}
	}
	return w.Control(guest.Control{Type: guest.ControlStarted})
}

// WorkspaceChanges serves the request of that kind; see WorkspacePut.
func WorkspaceChanges(records record.Records, root string, r *guest.FrameReader, w *guest.FrameWriter, c *guest.WorkspaceChanges) error {
	fd, err := unix.Open(path.Join(root, c.Dest), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fileError(err, c.Dest)
	}
	defer unix.Close(fd)
	out := newStdoutWriter(w)
	in := &stdinReader{r: r}
	err = records.Changes(record.Changes{
		ID: c.ID, Dest: fd, Content: c.Content, Git: c.Git, All: c.All, Plain: c.Plain, Ignore: c.Ignore,
		Also: bufio.NewReader(in),
	}, out)
	if flushErr := out.flush(); err == nil {
		err = flushErr
	}
	if err != nil {
		return in.better(err)
	}
	return done(w, guest.Control{})
}

func (s *Server) workspacePut(r *guest.FrameReader, w *guest.FrameWriter, c *guest.WorkspacePut) error {
	user, err := s.Users.Lookup(c.User)
	if err != nil {
		return err
	}
	return WorkspacePut(s.Records, "/", r, w, c, ownerOf(user), SealMount)
}
