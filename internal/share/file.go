package share

import (
	"encoding/binary"
	"strings"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// handle is a file or directory that the guest has open.
type handle struct {
	fd    int
	node  uint64
	isDir bool

	// Guarded by the tree's mutex.
	users  int
	closed bool

	mu   sync.Mutex // of a directory: guards the rest
	buf  []byte     // entries that were read and not told
	next uint64     // place in the directory of the first of them
}

// add gives a handle a number. Of an error the descriptor is closed.
func (t *tree) add(fd int, n *node) (uint64, fuse.Status) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.handles) >= t.limit {
		_ = unix.Close(fd)
		t.failures.full = true
		return 0, fuse.Status(syscall.ENFILE)
	}
	t.last++
	t.handles[t.last] = &handle{fd: fd, node: n.id, isDir: n.kind == syscall.S_IFDIR}
	return t.last, fuse.OK
}

// get is the handle of a number, until put; nil when the guest has made it up.
func (t *tree) get(fh uint64, isDir bool) *handle {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.handles[fh]
	if h == nil || h.isDir != isDir {
		return nil
	}
	h.users++
	return h
}

// file is get for the open file of a node.
func (t *tree) file(fh uint64, n *node) *handle {
	h := t.get(fh, false)
	if h != nil && h.node != n.id {
		t.put(h)
		return nil
	}
	return h
}

func (t *tree) put(h *handle) {
	t.mu.Lock()
	defer t.mu.Unlock()
	h.users--
	if h.closed && h.users == 0 {
		_ = unix.Close(h.fd)
	}
}

func (t *tree) release(fh uint64, isDir bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.handles[fh]
	if h == nil || h.isDir != isDir {
		return
	}
	delete(t.handles, fh)
	h.closed = true
	if h.users == 0 {
		_ = unix.Close(h.fd)
	}
}

// openFlags are those of an open(2) in the guest that matter here as well.
const openFlags = syscall.O_ACCMODE | syscall.O_APPEND | syscall.O_SYNC | syscall.O_DSYNC

func (t *tree) mayOpen(flags uint32) bool {
	return !t.opts.ReadOnly || flags&syscall.O_ACCMODE == syscall.O_RDONLY
}

// Open opens a regular file.
func (t *tree) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	n := t.hold(in.NodeId)
	if n == nil {
		return stale
	}
	defer t.drop(n)
	if n.kind != syscall.S_IFREG {
		return fuse.EINVAL
	}
	if !t.mayOpen(in.Flags) {
		return readOnly
	}
	fd, err := unix.Open(procPath(n.fd), int(in.Flags&openFlags)|unix.O_CLOEXEC, 0)
	if err != nil {
		return errno(err)
	}
	return t.opened(fd, n, out)
}

func (t *tree) opened(fd int, n *node, out *fuse.OpenOut) (code fuse.Status) {
	out.Fh, code = t.add(fd, n)
	t.mu.Lock()
	defer t.mu.Unlock()
	if n.parent != nil && n.parent.watch != 0 {
		out.OpenFlags |= fuse.FOPEN_KEEP_CACHE // what changes it is told
	}
	return code
}

// Create makes a regular file, or opens the one there is, unless it is to be new.
func (t *tree) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	return t.inDir(in.NodeId, name, func(dir *node) fuse.Status {
		flags := int(in.Flags&(openFlags|syscall.O_TRUNC)) | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
		fd, err := unix.Openat(dir.fd, name, flags|unix.O_CREAT|unix.O_EXCL, permissions(in.Mode, syscall.S_IFREG))
		isNew := err == nil
		if err == unix.EEXIST && in.Flags&syscall.O_EXCL == 0 {
			fd, err = unix.Openat(dir.fd, name, flags, 0)
		}
		if err != nil {
			return errno(err)
		}
		var st syscall.Stat_t
		if err := syscall.Fstat(fd, &st); err != nil || st.Mode&syscall.S_IFMT != syscall.S_IFREG {
			_ = unix.Close(fd)
			return fuse.EINVAL
		}
		if isNew && t.opts.Chown {
			if err := unix.Fchown(fd, int(t.hostUID(in.Uid)), int(t.hostGID(in.Gid))); err != nil {
				_ = unix.Close(fd)
				return errno(err)
			}
		}
		code := t.lookup(dir, name, &out.EntryOut)
		if !code.Ok() {
			_ = unix.Close(fd)
			return code
		}
		n := t.hold(out.NodeId)
		if n == nil {
			_ = unix.Close(fd)
			return stale
		}
		defer t.drop(n)
		t.note(n)
		return t.opened(fd, n, &out.OpenOut)
	})
}

// Read reads from an open file.
func (t *tree) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	h := t.get(in.Fh, false)
	if h == nil {
		return nil, fuse.EBADF
	}
	defer t.put(h)
	if int64(in.Offset) < 0 {
		return nil, fuse.EINVAL
	}
	done := 0
	for done < len(buf) {
		n, err := unix.Pread(h.fd, buf[done:], int64(in.Offset)+int64(done))
		if err == unix.EINTR {
			continue
		}
		if err != nil && done == 0 {
			return nil, errno(err)
		}
		if n <= 0 {
			break
		}
		done += n
	}
	return fuse.ReadResultData(buf[:done]), fuse.OK
}

// Writev is Write's.
func (t *tree) Writev(<-chan struct{}, *fuse.WriteIn, [][]byte) (uint32, fuse.Status) {
	return 0, fuse.ENOSYS
}

// Write writes to an open file.
func (t *tree) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	done := 0
	code := t.onFile(in.NodeId, in.Fh, func(fd int) error {
		for done < len(data) {
			n, err := unix.Pwrite(fd, data[done:], int64(in.Offset)+int64(done))
			if err == unix.EINTR {
				continue
			}
			if err != nil && done == 0 {
				return err
			}
			if n <= 0 {
				break
			}
			done += n
		}
		return nil
	})
	return uint32(done), code
}

// onFile runs what changes an open file.
func (t *tree) onFile(id, fh uint64, do func(fd int) error) fuse.Status {
	n := t.hold(id)
	if n == nil {
		return stale
	}
	defer t.drop(n)
	h := t.file(fh, n)
	if h == nil {
		return fuse.EBADF
	}
	defer t.put(h)
	err := do(h.fd)
	t.note(n)
	return errno(err)
}

// Fallocate makes or unmakes room in an open file.
func (t *tree) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	return t.onFile(in.NodeId, in.Fh, func(fd int) error {
		return unix.Fallocate(fd, in.Mode, int64(in.Offset), int64(in.Length))
	})
}

// CopyFileRange copies between open files, here.
func (t *tree) CopyFileRange(_ <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	from := t.get(in.FhIn, false)
	if from == nil {
		return 0, fuse.EBADF
	}
	defer t.put(from)
	done := 0
	code := t.onFile(in.NodeIdOut, in.FhOut, func(fd int) error {
		read, write := int64(in.OffIn), int64(in.OffOut)
		var err error
		done, err = unix.CopyFileRange(from.fd, &read, fd, &write, int(min(in.Len, 1<<30)), 0)
		return err
	})
	return uint32(max(done, 0)), code
}

// Lseek finds data and holes.
func (t *tree) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	h := t.get(in.Fh, false)
	if h == nil {
		return fuse.EBADF
	}
	defer t.put(h)
	if in.Whence != unix.SEEK_DATA && in.Whence != unix.SEEK_HOLE {
		return fuse.EINVAL
	}
	offset, err := unix.Seek(h.fd, int64(in.Offset), int(in.Whence))
	if err != nil {
		return errno(err)
	}
	out.Offset = uint64(offset)
	return fuse.OK
}

// Flush has nothing to do: all is written.
func (t *tree) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.OK }

// Fsync brings a file to the disk.
func (t *tree) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status { return t.sync(in, false) }

// FsyncDir brings a directory to the disk.
func (t *tree) FsyncDir(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status { return t.sync(in, true) }

func (t *tree) sync(in *fuse.FsyncIn, isDir bool) fuse.Status {
	h := t.get(in.Fh, isDir)
	if h == nil {
		return fuse.EBADF
	}
	defer t.put(h)
	if in.FsyncFlags&1 != 0 {
		return errno(unix.Fdatasync(h.fd))
	}
	return errno(unix.Fsync(h.fd))
}

// Release closes a file.
func (t *tree) Release(_ <-chan struct{}, in *fuse.ReleaseIn) { t.release(in.Fh, false) }

// ReleaseDir closes a directory.
func (t *tree) ReleaseDir(in *fuse.ReleaseIn) { t.release(in.Fh, true) }

// OpenDir opens a directory.
func (t *tree) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	n := t.holdDir(in.NodeId)
	if n == nil {
		return stale
	}
	defer t.drop(n)
	fd, err := unix.Openat(n.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return errno(err)
	}
	var code fuse.Status
	out.Fh, code = t.add(fd, n)
	if t.watched(n) {
		out.OpenFlags |= fuse.FOPEN_CACHE_DIR | fuse.FOPEN_KEEP_CACHE
	}
	return code
}

// ReadDir lists a directory from a place in it.
func (t *tree) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return t.list(in, func(_ *node, e fuse.DirEntry) bool { return out.AddDirEntry(e) })
}

// ReadDirPlus lists it with what each name stands for.
func (t *tree) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return t.list(in, func(dir *node, e fuse.DirEntry) bool {
		entry := out.AddDirLookupEntry(e)
		if entry == nil {
			return false
		}
		if e.Name != "." && e.Name != ".." && !t.lookup(dir, e.Name, entry).Ok() {
			*entry = fuse.EntryOut{} // gone meanwhile: the name alone
		}
		return true
	})
}

// list tells entries until one does not fit.
func (t *tree) list(in *fuse.ReadIn, add func(dir *node, e fuse.DirEntry) bool) fuse.Status {
	dir := t.holdDir(in.NodeId)
	if dir == nil {
		return stale
	}
	defer t.drop(dir)
	h := t.get(in.Fh, true)
	if h == nil {
		return fuse.EBADF
	}
	defer t.put(h)
	if h.node != dir.id {
		return fuse.EBADF
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if in.Offset != h.next {
		if _, err := unix.Seek(h.fd, int64(in.Offset), unix.SEEK_SET); err != nil {
			return errno(err)
		}
		h.buf, h.next = nil, in.Offset
	}
	for {
		if len(h.buf) == 0 {
			buf := make([]byte, 32<<10)
			n, err := unix.Getdents(h.fd, buf)
			if err != nil {
				return errno(err)
			}
			if n <= 0 {
				return fuse.OK
			}
			h.buf = buf[:n]
		}
		e, size := direntry(h.buf)
		if size == 0 {
			return fuse.EIO
		}
		if e.Ino != 0 && !add(dir, e) {
			return fuse.OK
		}
		h.buf, h.next = h.buf[size:], e.Off
	}
}

// direntry reads a struct linux_dirent64.
func direntry(b []byte) (e fuse.DirEntry, size int) {
	const head = 19
	if len(b) < head {
		return e, 0
	}
	size = int(binary.NativeEndian.Uint16(b[16:]))
	if size < head || size > len(b) {
		return e, 0
	}
	name, _, _ := strings.Cut(string(b[head:size]), "\x00")
	return fuse.DirEntry{
		Ino: binary.NativeEndian.Uint64(b), Off: binary.NativeEndian.Uint64(b[8:]),
		Mode: uint32(b[18]) << 12, Name: name,
	}, size
}
