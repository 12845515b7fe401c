package fakevm

import (
	"archive/tar"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"syscall"
	"time"

	"banger/internal/errdefs"
	"banger/internal/guest"
	"banger/internal/guest/agent/record"
	"banger/internal/guest/agent/serve"
	"banger/internal/guest/agent/tree"
	"banger/internal/paths"
)

// home is the default directory of commands and of relative paths.
func (v *vm) home() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case v.conf.Workdir != "":
		return v.conf.Workdir
	case v.conf.User != "" && v.conf.User != "root":
		return "/home/" + v.conf.User
	}
	return "/root"
}

func (v *vm) write(name string, data []byte) error {
	v.space()
	f, err := v.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}

func (v *vm) stat(p string) (*guest.FileStat, error) {
	st, err := v.root.Stat(inRoot(v.home(), p))
	if err != nil {
		return nil, notFound(p, err)
	}
	return &guest.FileStat{Mode: rawMode(st), Size: st.Size(), IsDir: st.IsDir()}, nil
}

func notFound(p string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return errdefs.NotFound("%s does not exist in the VM", p)
	}
	return errdefs.Invalid("read %s in the VM: %w", p, err)
}

func rawMode(st fs.FileInfo) uint32 {
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		return sys.Mode
	}
	return uint32(st.Mode().Perm())
}

// copyIn unpacks a tar stream. Owners are not kept: there is one user here.
func (v *vm) copyIn(c guest.CopyIn, in io.Reader) (failed error) {
	dest := inRoot(v.home(), c.Dest)
	st, err := v.root.Stat(dest)
	isDir := err == nil && st.IsDir()
	switch {
	case c.File:
	case isDir:
	case err == nil:
		return errdefs.Invalid("%s is not a directory in the VM", c.Dest)
	case c.Mkdir:
		if err := v.root.MkdirAll(dest, 0o755); err != nil {
			return errdefs.Invalid("make %s in the VM: %w", c.Dest, err)
		}
		defer func() {
			if failed != nil {
				_ = v.root.Remove(dest) // as the agent does: unless something is in it
			}
		}()
	default:
		return notFound(c.Dest, err)
	}
	times := map[string]time.Time{} // of directories, set when nothing is added any more
	for t := tar.NewReader(in); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return errdefs.Invalid("read the archive: %w", err)
		}
		name := path.Join(dest, path.Clean("/" + h.Name)[1:])
		if c.File && !isDir {
			name = dest
		}
		if err := v.unpack(h, name, t); err != nil {
			return errdefs.Invalid("unpack %s: %w", h.Name, err)
		}
		if h.Typeflag == tar.TypeDir {
			times[name] = h.ModTime
		}
	}
	if _, err := io.Copy(io.Discard, in); err != nil { // padding, up to the end of file
		return errdefs.Invalid("read the archive: %w", err)
	}
	for name, at := range times {
		_ = v.root.Chtimes(name, at, at)
	}
	return nil
}

// serveWorkspace does what the agent does, with the agent's own code. Everything belongs
// to the one user here.
func (v *vm) serveWorkspace(req *guest.Request, r *guest.FrameReader, w *guest.FrameWriter) error {
	v.space()
	records := record.Records{Dir: path.Join(paths.FakeRoot, record.Dir)}
	switch req.Kind {
	case guest.KindWorkspacePut:
		return serve.WorkspacePut(records, paths.FakeRoot, r, w, req.WorkspacePut, &tree.Owner{UID: os.Geteuid(), GID: os.Getegid()}, nil)
	case guest.KindWorkspaceChanges:
		return serve.WorkspaceChanges(records, paths.FakeRoot, r, w, req.WorkspaceChanges)
	}
	if err := records.Forget(req.WorkspaceForget.ID); err != nil {
		return err
	}
	return w.Control(guest.Control{Type: guest.ControlDone})
}

func (v *vm) unpack(h *tar.Header, name string, data io.Reader) error {
	v.space()
	mode := h.FileInfo().Mode().Perm()
	if dir := path.Dir(name); dir != "." {
		if err := v.root.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	switch h.Typeflag {
	case tar.TypeDir:
		if err := v.root.MkdirAll(name, 0o755); err != nil {
			return err
		}
		return v.root.Chmod(name, mode|0o700)
	case tar.TypeSymlink:
		_ = v.root.Remove(name)
		return v.root.Symlink(h.Linkname, name)
	case tar.TypeLink:
		_ = v.root.Remove(name)
		return v.root.Link(path.Join(path.Dir(name), path.Base(h.Linkname)), name)
	case tar.TypeReg:
		_ = v.root.Remove(name)
		f, err := v.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, data)
		if err = errors.Join(err, f.Chmod(mode), f.Close()); err != nil {
			return err
		}
		return v.root.Chtimes(name, h.ModTime, h.ModTime)
	}
	return nil // devices and the like have no place here
}

// target is what the links that may be at name lead to in the end.
func (v *vm) target(name string) (string, error) {
	for range 40 {
		st, err := v.root.Lstat(name)
		if err != nil || st.Mode().Type() != fs.ModeSymlink {
			return name, err
		}
		link, err := v.root.Readlink(name)
		if err != nil {
			return "", err
		}
		name = inRoot(path.Dir(name), link)
	}
	return "", syscall.ELOOP
}

// copyOut packs a file or a tree under the base name of its path, whatever that
// leads to.
func (v *vm) copyOut(c guest.CopyOut, out io.Writer) error {
	asked := inRoot(v.home(), c.Path)
	start, err := v.target(asked)
	if err != nil {
		return notFound(c.Path, err)
	}
	t := tar.NewWriter(out)
	err = fs.WalkDir(v.root.FS(), start, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		link := ""
		if st.Mode().Type() == fs.ModeSymlink {
			if link, err = v.root.Readlink(name); err != nil {
				return err
			}
		}
		h, err := tar.FileInfoHeader(st, link)
		if err != nil {
			return err
		}
		if h.Name = name; start != "." {
			h.Name = path.Base(asked) + name[len(start):]
		}
		h.Uid, h.Gid, h.Uname, h.Gname = 0, 0, "", ""
		if !st.Mode().IsRegular() {
			return t.WriteHeader(h)
		}
		f, err := v.root.Open(name) // as the agent does: nothing is said of a file that cannot be read
		if err != nil {
			return err
		}
		defer f.Close()
		if err := t.WriteHeader(h); err != nil {
			return err
		}
		_, err = io.CopyN(t, f, st.Size())
		return err
	})
	if err = errors.Join(err, t.Close()); err != nil {
		return errdefs.Invalid("pack %s: %w", c.Path, err)
	}
	return nil
}
