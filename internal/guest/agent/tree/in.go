// Package tree moves files between a guest's file system and tar streams.
//
// In writes below one directory and nowhere else: names are split into
// components, and the kernel walks them without following a single symlink, so
// neither a name with "..", nor a link that an earlier entry (or a program in the
// guest) planted, leads out of it.
package tree

import (
	"archive/tar"
	"errors"
	"io"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
)

// copyChunk is how much file content is moved at once, in bytes.
const copyChunk = 256 << 10

// Owner overrides the owner of everything that is written.
type Owner struct{ UID, GID int }

// In unpacks the tar stream r below the directory dest, an open descriptor. A nil
// owner keeps the numbers of the tar. With single, the stream holds one regular
// file, which gets that name in dest.
func In(dest int, r io.Reader, owner *Owner, single string) error {
	u := unpacker{dest: dest, tr: tar.NewReader(r), owner: owner, parent: -1}
	defer u.leave()
	if single != "" {
		return u.one(single)
	}
	return u.all()
}

// InNoting is In for many files, which tells made of each entry that is in its place:
// its name and what the kernel says of it. Of a directory only name and type count, for
// what is put in it changes the rest. An error of made ends it.
func InNoting(dest int, r io.Reader, owner *Owner, made func(name string, st *unix.Stat_t) error) error {
	u := unpacker{dest: dest, tr: tar.NewReader(r), owner: owner, parent: -1, made: made}
	defer u.leave()
	return u.all()
}

func (u *unpacker) all() error {
	for {
		h, err := u.tr.Next()
		if err == io.EOF {
			return u.finish()
		}
		if err != nil {
			return errdefs.Invalid("read the tar stream: %w", err)
		}
		if err := u.entry(h); err != nil {
			return classify(err, h.Name)
		}
	}
}

// unpacker is one run of In.
type unpacker struct {
	dest  int
	tr    *tar.Reader
	owner *Owner
	made  func(name string, st *unix.Stat_t) error // may be nil
	name  string                                   // of the entry

	parent     int // descriptor of the directory of the last entry, or -1
	parentName string
	dirs       []dirMeta
	buf        []byte
}

// dirMeta is what a directory gets at the end, when nothing is put in it any more.
type dirMeta struct {
	name  string
	mode  uint32
	mtime time.Time
}

// maxDirs bounds the directories whose metadata is kept for the end.
const maxDirs = 1 << 20

// classify names the entry and the kind of failure.
func classify(err error, name string) error {
	var known *errdefs.Error
	switch {
	case errors.As(err, &known):
		return errdefs.Wrap(err, "unpack %q", name)
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return errdefs.Exhausted("unpack %q: no space left in the VM", name).
			WithHint("make the VM with a larger --disk")
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.EXDEV), errors.Is(err, unix.ENOTDIR):
		return errdefs.Invalid("unpack %q: a directory on its way is a symlink or a file", name)
	case errors.Is(err, unix.EROFS), errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return errdefs.Permission("unpack %q: %w", name, err)
	}
	return errdefs.Wrap(err, "unpack %q", name)
}

func (u *unpacker) one(name string) error {
	h, err := u.tr.Next()
	if err != nil {
		return errdefs.Invalid("read the tar stream: %w", err)
	}
	if h.Typeflag != tar.TypeReg {
		return errdefs.Invalid("unpack %q: not a regular file", h.Name)
	}
	if err := u.file(u.dest, name, h); err != nil {
		return classify(err, name)
	}
	if _, err := u.tr.Next(); err != io.EOF {
		return errdefs.Invalid("the tar stream holds more than one file")
	}
	return nil
}

// clean checks an entry's name; "." is the directory itself.
func clean(name string) (string, error) {
	if strings.HasPrefix(name, "/") {
		return "", errdefs.Invalid("the name is absolute")
	}
	// Most names are clean: only look for what path.Clean would have to resolve.
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", errdefs.Invalid("the name leads out of the directory")
		}
	}
	return path.Clean(name), nil
}

func (u *unpacker) entry(h *tar.Header) error {
	name, err := clean(h.Name)
	if err != nil {
		return err
	}
	u.name = name
	if h.Typeflag == tar.TypeDir {
		return u.dir(name, h)
	}
	if name == "." {
		return errdefs.Invalid("the name is that of the directory itself")
	}
	dirName, base := path.Split(name)
	dir, err := u.enter(strings.TrimSuffix(dirName, "/"))
	if err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeReg:
		return u.file(dir, base, h)
	case tar.TypeSymlink:
		err = replace(dir, base, func() error { return unix.Symlinkat(h.Linkname, dir, base) })
	case tar.TypeLink:
		return u.hardlink(dir, base, h)
	case tar.TypeFifo:
		err = replace(dir, base, func() error { return unix.Mknodat(dir, base, unix.S_IFIFO|mode(h), 0) })
	case tar.TypeChar, tar.TypeBlock:
		kind := uint32(unix.S_IFCHR)
		if h.Typeflag == tar.TypeBlock {
			kind = unix.S_IFBLK
		}
		dev := unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))
		err = replace(dir, base, func() error { return unix.Mknodat(dir, base, kind|mode(h), int(dev)) })
	case tar.TypeXGlobalHeader:
		return nil
	default:
		return errdefs.Unsupported("entries of type %q are not supported", h.Typeflag)
	}
	if err != nil {
		return err
	}
	uid, gid := u.ids(h)
	if err := unix.Fchownat(dir, base, uid, gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if h.Typeflag != tar.TypeSymlink {
		if err := unix.Fchmodat(dir, base, mode(h), 0); err != nil {
			return err
		}
	}
	if err := unix.UtimesNanoAt(dir, base, times(h.ModTime), unix.AT_SYMLINK_NOFOLLOW); err != nil || u.made == nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	return u.made(name, &st)
}

// mode is the permission bits of an entry, as the kernel numbers them.
func mode(h *tar.Header) uint32 { return uint32(h.Mode) & 0o7777 }

func (u *unpacker) ids(h *tar.Header) (uid, gid int) {
	if u.owner != nil {
		return u.owner.UID, u.owner.GID
	}
	return h.Uid, h.Gid
}

func times(t time.Time) []unix.Timespec {
	ts := unix.NsecToTimespec(t.UnixNano())
	return []unix.Timespec{ts, ts}
}

// file writes a regular file. Its metadata is set while it is open, which is
// cheaper than by name and cannot be led astray.
func (u *unpacker) file(dir int, base string, h *tar.Header) error {
	perm := mode(h)
	fd := -1
	err := replace(dir, base, func() (err error) {
		// Until it has its owner, nobody else may open it.
		fd, err = unix.Openat(dir, base, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		return err
	})
	if err != nil {
		return err
	}
	err = u.fill(fd, h.Size)
	uid, gid := u.ids(h)
	if err == nil && (uid != 0 || gid != 0) {
		err = unix.Fchown(fd, uid, gid)
	}
	if err == nil && perm != 0o600 {
		err = unix.Fchmod(fd, perm)
	}
	if err == nil {
		err = setTimes(fd, h.ModTime)
	}
	var st unix.Stat_t
	if err == nil && u.made != nil {
		err = unix.Fstat(fd, &st)
	}
	if closeErr := unix.Close(fd); err == nil {
		err = closeErr
	}
	if err == nil && u.made != nil {
		err = u.made(u.name, &st)
	}
	return err
}

func (u *unpacker) fill(fd int, size int64) error {
	if size == 0 {
		return nil
	}
	if u.buf == nil {
		u.buf = make([]byte, copyChunk)
	}
	for left := size; left > 0; {
		n, err := io.ReadFull(u.tr, u.buf[:min(left, copyChunk)])
		if err != nil {
			return errdefs.Invalid("the tar stream ends within the file: %w", err)
		}
		left -= int64(n)
		for p := u.buf[:n]; len(p) > 0; {
			n, err := unix.Write(fd, p)
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				return err
			}
			p = p[n:]
		}
	}
	return nil
}

// hardlink links to an entry that came earlier, found without following symlinks.
func (u *unpacker) hardlink(dir int, base string, h *tar.Header) error {
	target, err := clean(h.Linkname)
	if err != nil {
		return errdefs.Invalid("the link's target leads out of the directory")
	}
	targetDir, targetBase := path.Split(target)
	from, err := beneath(u.dest, strings.TrimSuffix(targetDir, "/"))
	if err != nil {
		return err
	}
	defer unix.Close(from)
	return replace(dir, base, func() error { return unix.Linkat(from, targetBase, dir, base, 0) })
}

// replace runs make; when the name is taken, that is removed first. A directory
// is never removed for something else.
func replace(dir int, base string, make func() error) error {
	err := make()
	if err != unix.EEXIST {
		return err
	}
	if err := unix.Unlinkat(dir, base, 0); err != nil {
		if err == unix.EISDIR || err == unix.EPERM {
			return errdefs.Invalid("a directory of that name is in the way")
		}
		return err
	}
	return make()
}

// dir makes a directory, or takes over the one that is there.
func (u *unpacker) dir(name string, h *tar.Header) error {
	u.leave()
	if name != "." {
		parentName, base := path.Split(name)
		parent, err := u.enter(strings.TrimSuffix(parentName, "/"))
		if err != nil {
			return err
		}
		if err := unix.Mkdirat(parent, base, 0o700); err != nil && err != unix.EEXIST {
			return err
		}
	}
	fd, err := beneath(u.dest, name)
	if err != nil {
		return err
	}
	u.leave()
	u.parent, u.parentName = fd, name
	uid, gid := u.ids(h)
	if err := unix.Fchownat(fd, "", uid, gid, unix.AT_EMPTY_PATH); err != nil {
		return err
	}
	if len(u.dirs) >= maxDirs {
		return errdefs.Exhausted("more than %d directories", maxDirs)
	}
	u.dirs = append(u.dirs, dirMeta{name: name, mode: mode(h), mtime: h.ModTime})
	if u.made == nil || name == "." {
		return nil
	}
	return u.made(name, &unix.Stat_t{Mode: unix.S_IFDIR | mode(h)})
}

// finish sets the modes and times of the directories, children first.
func (u *unpacker) finish() error {
	for i := len(u.dirs) - 1; i >= 0; i-- {
		d := u.dirs[i]
		err := func() error {
			fd, err := beneath(u.dest, d.name)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			f, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(f)
			if err := unix.Fchmod(f, d.mode); err != nil {
				return err
			}
			return setTimes(f, d.mtime)
		}()
		if err != nil {
			return classify(err, d.name)
		}
	}
	return nil
}

// enter returns a descriptor of the directory of the coming entry, made if the
// tar did not say so before. It stays valid until the next call.
func (u *unpacker) enter(name string) (int, error) {
	if name == "" {
		return u.dest, nil
	}
	if u.parent >= 0 && u.parentName == name {
		return u.parent, nil
	}
	fd, err := beneath(u.dest, name)
	if err == unix.ENOENT {
		fd, err = u.mkdirs(name)
	}
	if err != nil {
		return -1, err
	}
	u.leave()
	u.parent, u.parentName = fd, name
	return fd, nil
}

func (u *unpacker) leave() {
	if u.parent >= 0 {
		_ = unix.Close(u.parent)
		u.parent = -1
	}
}

// mkdirs makes the directories of name that are missing.
func (u *unpacker) mkdirs(name string) (int, error) {
	for i := 0; i <= len(name); i++ {
		if i < len(name) && name[i] != '/' {
			continue
		}
		dirName, base := path.Split(name[:i])
		parent, err := beneath(u.dest, strings.TrimSuffix(dirName, "/"))
		if err != nil {
			return -1, err
		}
		err = unix.Mkdirat(parent, base, 0o755)
		if err == nil && u.owner != nil {
			err = unix.Fchownat(parent, base, u.owner.UID, u.owner.GID, unix.AT_SYMLINK_NOFOLLOW)
		}
		_ = unix.Close(parent)
		if err != nil && err != unix.EEXIST {
			return -1, err
		}
	}
	return beneath(u.dest, name)
}

// beneath opens a directory below dest without following any symlink.
func beneath(dest int, name string) (int, error) {
	if name == "" {
		name = "."
	}
	return unix.Openat2(dest, name, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
}
