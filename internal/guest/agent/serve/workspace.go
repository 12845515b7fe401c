package serve

import (
	"bufio"
	"io"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
	"banger/internal/guest"
	"banger/internal/guest/agent/record"
	"banger/internal/guest/agent/tree"
	"banger/internal/guest/manifest"
)

// WorkspacePut serves the request of that kind, whose stdin comes from r. owner is who
// gets the files; root is before every path.
func WorkspacePut(records record.Records, root string, r *guest.FrameReader, w *guest.FrameWriter, c *guest.WorkspacePut, owner *tree.Owner) (failed error) {
	dest := path.Join(root, c.Dest)
	made, err := mkdirs(dest, owner)
	defer func() {
		if failed != nil {
			for _, dir := range slices.Backward(made) {
				_ = unix.Rmdir(dir) // which leaves one in which something has arrived
			}
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
	return done(w, guest.Control{})
}

// ready answers a plan.
func ready(w *guest.FrameWriter, conflicts []manifest.Entry, force bool) error {
	if len(conflicts) > 0 {
		out := &stdoutWriter{w: w, buf: make([]byte, guest.FrameHeader, guest.FrameHeader+guest.MaxFrame)}
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
	out := &stdoutWriter{w: w, buf: make([]byte, guest.FrameHeader, guest.FrameHeader+guest.MaxFrame)}
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
	return WorkspacePut(s.Records, "/", r, w, c, ownerOf(user))
}
