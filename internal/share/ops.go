package share

import (
	"strings"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// The requests that are about names and attributes. Each may come at any time and with
// any numbers.

const (
	stale    = fuse.Status(syscall.ESTALE)
	readOnly = fuse.Status(syscall.EROFS)
)

// Lookup finds a name.
func (t *tree) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if !plain(name) {
		return fuse.EINVAL
	}
	dir := t.holdDir(h.NodeId)
	if dir == nil {
		return stale
	}
	defer t.drop(dir)
	code := t.lookup(dir, name, out)
	if code == fuse.ENOENT && t.watched(dir) {
		*out = fuse.EntryOut{EntryValid: keepWatched} // that there is none
		return fuse.OK
	}
	return code
}

// GetAttr describes a node.
func (t *tree) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	n := t.hold(in.NodeId)
	if n == nil {
		return stale
	}
	defer t.drop(n)
	return t.answerAttr(n, out)
}

// SetAttr changes mode, owners, size and times, as far as it is asked to.
func (t *tree) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	n := t.hold(in.NodeId)
	if n == nil {
		return stale
	}
	defer t.drop(n)
	if t.ofAgent(&in.Caller) {
		return t.answerAttr(n, out) // it is so already
	}
	if t.opts.ReadOnly {
		return readOnly
	}
	err := t.setAttr(n, in)
	t.note(n)
	if err != nil {
		return errno(err)
	}
	return t.answerAttr(n, out)
}

// ofAgent reports whether it is the agent who asks.
func (t *tree) ofAgent(c *fuse.Caller) bool {
	return t.guest.Thread != 0 && c.Pid == uint32(t.guest.Thread)
}

func (t *tree) setAttr(n *node, in *fuse.SetAttrIn) error {
	path := procPath(n.fd)
	if uid, gid, ok := t.owners(in); ok {
		if err := unix.Fchownat(n.fd, "", uid, gid, unix.AT_EMPTY_PATH); err != nil {
			return err
		}
	}
	if mode, ok := in.GetMode(); ok {
		if n.kind == syscall.S_IFLNK {
			return syscall.EOPNOTSUPP
		}
		if err := unix.Chmod(path, permissions(mode, n.kind)); err != nil {
			return err
		}
	}
	if size, ok := in.GetSize(); ok {
		if n.kind != syscall.S_IFREG || int64(size) < 0 {
			return syscall.EINVAL
		}
		if err := t.truncate(n, in, int64(size)); err != nil {
			return err
		}
	}
	if in.Valid&(fuse.FATTR_ATIME|fuse.FATTR_MTIME) == 0 {
		return nil
	}
	times := []unix.Timespec{
		timeOf(in.Valid, fuse.FATTR_ATIME, fuse.FATTR_ATIME_NOW, in.Atime, in.Atimensec),
		timeOf(in.Valid, fuse.FATTR_MTIME, fuse.FATTR_MTIME_NOW, in.Mtime, in.Mtimensec),
	}
	return unix.UtimesNanoAt(n.fd, "", times, unix.AT_EMPTY_PATH)
}

// truncate goes by the handle, if there is one, whose right to write outlives a change of
// the mode.
func (t *tree) truncate(n *node, in *fuse.SetAttrIn, size int64) error {
	fh, open := in.GetFh()
	if !open {
		return unix.Truncate(procPath(n.fd), size)
	}
	h := t.file(fh, n)
	if h == nil {
		return syscall.EBADF
	}
	defer t.put(h)
	return unix.Ftruncate(h.fd, size)
}

func timeOf(valid, set, now uint32, sec uint64, nsec uint32) unix.Timespec {
	switch {
	case valid&set == 0:
		return unix.Timespec{Nsec: unix.UTIME_OMIT}
	case valid&now != 0:
		return unix.Timespec{Nsec: unix.UTIME_NOW}
	}
	return unix.Timespec{Sec: int64(sec), Nsec: int64(min(nsec, 999_999_999))}
}

// permissions are those of a mode that a guest may give: no set-id bits on files, which
// would be somebody's here.
func permissions(mode, kind uint32) uint32 {
	if kind == syscall.S_IFDIR {
		return mode & 0o3777
	}
	return mode & 0o1777
}

// owners are what an owner and a group are to become, -1 what stays; false: nothing.
func (t *tree) owners(in *fuse.SetAttrIn) (uid, gid int, ok bool) {
	uid, gid = -1, -1
	if id, set := in.GetUID(); set {
		uid, ok = int(t.hostUID(id)), true
	}
	if id, set := in.GetGID(); set {
		gid, ok = int(t.hostGID(id)), true
	}
	return uid, gid, ok
}

func (t *tree) hostUID(id uint32) uint32 { return toHost(id, t.uid, t.guest.UID) }
func (t *tree) hostGID(id uint32) uint32 { return toHost(id, t.gid, t.guest.GID) }

// Readlink reads a symbolic link.
func (t *tree) Readlink(_ <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	n := t.hold(h.NodeId)
	if n == nil {
		return nil, stale
	}
	defer t.drop(n)
	if n.kind != syscall.S_IFLNK {
		return nil, fuse.EINVAL
	}
	buf := make([]byte, unix.PathMax)
	size, err := unix.Readlinkat(n.fd, "", buf)
	if err != nil {
		return nil, errno(err)
	}
	return buf[:size], fuse.OK
}

// Access is left to the guest's kernel, which knows mode and owners.
func (t *tree) Access(<-chan struct{}, *fuse.AccessIn) fuse.Status { return fuse.ENOSYS }

// made gives what was just made its owner, if this process may, and finds it.
func (t *tree) made(dir *node, name string, caller *fuse.Caller, out *fuse.EntryOut) fuse.Status {
	if t.opts.Chown {
		if err := unix.Fchownat(dir.fd, name, int(t.hostUID(caller.Uid)), int(t.hostGID(caller.Gid)), unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return errno(err)
		}
	}
	return t.lookup(dir, name, out)
}

// inDir runs what changes a directory, which has to be one, and a plain name in it.
func (t *tree) inDir(id uint64, name string, do func(dir *node) fuse.Status) fuse.Status {
	if !plain(name) {
		return fuse.EINVAL
	}
	if t.opts.ReadOnly {
		return readOnly
	}
	dir := t.holdDir(id)
	if dir == nil {
		return stale
	}
	defer t.drop(dir)
	code := do(dir)
	t.note(dir)
	return code
}

// Mknod makes files, pipes and sockets; devices are refused.
func (t *tree) Mknod(_ <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	kind := in.Mode & syscall.S_IFMT
	switch kind {
	case 0, syscall.S_IFREG, syscall.S_IFIFO, syscall.S_IFSOCK:
	default:
		return fuse.EPERM
	}
	return t.inDir(in.NodeId, name, func(dir *node) fuse.Status {
		if err := unix.Mknodat(dir.fd, name, kind|permissions(in.Mode, kind), 0); err != nil {
			return errno(err)
		}
		return t.made(dir, name, &in.Caller, out)
	})
}

// Mkdir makes a directory.
func (t *tree) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	return t.inDir(in.NodeId, name, func(dir *node) fuse.Status {
		if err := unix.Mkdirat(dir.fd, name, permissions(in.Mode, syscall.S_IFDIR)); err != nil {
			return errno(err)
		}
		return t.made(dir, name, &in.Caller, out)
	})
}

// Symlink makes a symbolic link; where it leads matters in the guest alone.
func (t *tree) Symlink(_ <-chan struct{}, h *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	if strings.IndexByte(target, 0) >= 0 {
		return fuse.EINVAL
	}
	return t.inDir(h.NodeId, name, func(dir *node) fuse.Status {
		if err := unix.Symlinkat(target, dir.fd, name); err != nil {
			return errno(err)
		}
		return t.made(dir, name, &h.Caller, out)
	})
}

// Link gives a file another name.
func (t *tree) Link(_ <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	n := t.hold(in.Oldnodeid)
	if n == nil {
		return stale
	}
	defer t.drop(n)
	if n.kind == syscall.S_IFDIR {
		return fuse.EPERM
	}
	return t.inDir(in.NodeId, name, func(dir *node) fuse.Status {
		if err := unix.Linkat(unix.AT_FDCWD, procPath(n.fd), dir.fd, name, unix.AT_SYMLINK_FOLLOW); err != nil {
			return errno(err)
		}
		t.note(n)
		return t.lookup(dir, name, out)
	})
}

// Unlink removes a name that is not a directory's.
func (t *tree) Unlink(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return t.remove(h, name, 0)
}

// Rmdir removes an empty directory.
func (t *tree) Rmdir(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return t.remove(h, name, unix.AT_REMOVEDIR)
}

func (t *tree) remove(h *fuse.InHeader, name string, flags int) fuse.Status {
	if t.ofAgent(&h.Caller) {
		return t.wasRemoved(h.NodeId, name)
	}
	return t.inDir(h.NodeId, name, func(dir *node) fuse.Status {
		n := t.child(dir, name)
		defer t.drop(n)
		if err := unix.Unlinkat(dir.fd, name, flags); err != nil {
			return errno(err)
		}
		t.note(n) // it has a link less
		t.unplace(dir, name)
		return fuse.OK
	})
}

// wasRemoved reports to the agent, and by it to the guest's kernel, that a name is gone.
func (t *tree) wasRemoved(id uint64, name string) fuse.Status {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.nodes[id]
	if n == nil || !n.gone[name] {
		return fuse.ENOENT // it is there again
	}
	delete(n.gone, name)
	return fuse.OK
}

// child is what the guest knows by a name, held; nil when it does not.
func (t *tree) child(dir *node, name string) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := dir.known[name]
	if n != nil {
		n.users++
	}
	return n
}

// unplace notes that a name is gone.
func (t *tree) unplace(dir *node, name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(dir.known, name)
}

// Rename moves a name, without replacing another or changing places with it if the flags
// say so.
func (t *tree) Rename(_ <-chan struct{}, in *fuse.RenameIn, from, to string) fuse.Status {
	if !plain(to) || in.Flags&^uint32(unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE) != 0 {
		return fuse.EINVAL
	}
	target := t.holdDir(in.Newdir)
	if target == nil {
		return stale
	}
	defer t.drop(target)
	return t.inDir(in.NodeId, from, func(dir *node) fuse.Status {
		moved, replaced := t.child(dir, from), t.child(target, to)
		defer t.drop(moved)
		defer t.drop(replaced)
		if err := unix.Renameat2(dir.fd, from, target.fd, to, uint(in.Flags)); err != nil {
			return errno(err)
		}
		t.note(moved, replaced, target)
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(dir.known, from)
		delete(target.known, to)
		if moved != nil {
			t.placeLocked(moved, target, to)
		}
		if replaced != nil && in.Flags&unix.RENAME_EXCHANGE != 0 {
			t.placeLocked(replaced, dir, from)
		}
		return fuse.OK
	})
}

// StatFs describes the host's file system.
func (t *tree) StatFs(_ <-chan struct{}, h *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	n := t.hold(h.NodeId)
	if n == nil {
		return stale
	}
	defer t.drop(n)
	var st syscall.Statfs_t
	if err := syscall.Fstatfs(n.fd, &st); err != nil {
		return errno(err)
	}
	out.FromStatfsT(&st)
	return fuse.OK
}

// xattrName reports whether a guest may deal with an attribute: not with those by which
// this host gives rights.
func xattrName(name string) bool {
	return strings.HasPrefix(name, "user.") && len(name) < 256 && strings.IndexByte(name, 0) < 0
}

const noData = fuse.Status(syscall.ENODATA)

// GetXAttr reads an extended attribute.
func (t *tree) GetXAttr(_ <-chan struct{}, h *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	n := t.hold(h.NodeId)
	if n == nil {
		return 0, stale
	}
	defer t.drop(n)
	if !xattrName(name) || n.kind != syscall.S_IFREG && n.kind != syscall.S_IFDIR {
		return 0, noData
	}
	size, err := unix.Getxattr(procPath(n.fd), name, dest)
	return uint32(max(size, 0)), errno(err)
}

// ListXAttr lists the extended attributes that a guest may know of.
func (t *tree) ListXAttr(_ <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	n := t.hold(h.NodeId)
	if n == nil {
		return 0, stale
	}
	defer t.drop(n)
	if n.kind != syscall.S_IFREG && n.kind != syscall.S_IFDIR {
		return 0, fuse.OK
	}
	all := make([]byte, 64<<10) // the kernel's own limit
	size, err := unix.Listxattr(procPath(n.fd), all)
	if err != nil {
		return 0, errno(err)
	}
	kept := all[:0]
	for _, name := range strings.SplitAfter(string(all[:size]), "\x00") {
		if xattrName(strings.TrimSuffix(name, "\x00")) {
			kept = append(kept, name...)
		}
	}
	if len(dest) > 0 && len(kept) > len(dest) {
		return uint32(len(kept)), fuse.ERANGE
	}
	copy(dest, kept)
	return uint32(len(kept)), fuse.OK
}

// SetXAttr writes an extended attribute.
func (t *tree) SetXAttr(_ <-chan struct{}, in *fuse.SetXAttrIn, name string, data []byte) fuse.Status {
	return t.onXAttr(in.NodeId, name, func(path string) error { return unix.Setxattr(path, name, data, int(in.Flags)) })
}

// RemoveXAttr removes an extended attribute.
func (t *tree) RemoveXAttr(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return t.onXAttr(h.NodeId, name, func(path string) error { return unix.Removexattr(path, name) })
}

func (t *tree) onXAttr(id uint64, name string, do func(path string) error) fuse.Status {
	if t.opts.ReadOnly {
		return readOnly
	}
	if !xattrName(name) {
		return fuse.Status(syscall.EOPNOTSUPP)
	}
	n := t.hold(id)
	if n == nil {
		return stale
	}
	defer t.drop(n)
	if n.kind != syscall.S_IFREG && n.kind != syscall.S_IFDIR {
		return fuse.EPERM
	}
	err := do(procPath(n.fd))
	t.note(n)
	return errno(err)
}
