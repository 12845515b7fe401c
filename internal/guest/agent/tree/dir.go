package tree

import (
	"errors"
	"io"
	"os"
	"path"
	"strings"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
)

// Dir looks at and removes what is below one directory and nowhere else: symlinks on the
// way are never followed. Names are slash-separated and clean. It is for one goroutine.
type Dir struct {
	fd         int
	parent     int // descriptor of the directory that was used last, or -1
	parentName string
}

// NewDir works below fd, which stays the caller's.
func NewDir(fd int) *Dir { return &Dir{fd: fd, parent: -1} }

// Close gives up what was opened.
func (d *Dir) Close() {
	if d.parent >= 0 {
		_ = unix.Close(d.parent)
		d.parent = -1
	}
}

// enter returns a descriptor of the directory that name is in, and the last element of
// name. It is valid until the next call.
func (d *Dir) enter(name string) (parent int, base string, err error) {
	dir, base := path.Split(name)
	dir = strings.TrimSuffix(dir, "/")
	if dir == "" {
		return d.fd, base, nil
	}
	if d.parent >= 0 && d.parentName == dir {
		return d.parent, base, nil
	}
	fd, err := beneath(d.fd, dir)
	if err != nil {
		return -1, "", err
	}
	d.Close()
	d.parent, d.parentName = fd, dir
	return fd, base, nil
}

// isAbsent reports whether an error says that there is nothing of that name. What is
// behind a link is not in this tree.
func isAbsent(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.EXDEV)
}

// Stat describes what has that name, a link as one. ok is false when nothing has.
func (d *Dir) Stat(name string) (st unix.Stat_t, ok bool, err error) {
	parent, base, err := d.enter(name)
	if err == nil {
		err = unix.Fstatat(parent, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	}
	if err != nil && isAbsent(err) {
		return st, false, nil
	}
	return st, err == nil, err
}

// Blocked reports whether something that is no directory is on the way to name.
func (d *Dir) Blocked(name string) bool {
	_, _, err := d.enter(name)
	return err != nil && isAbsent(err) && !errors.Is(err, unix.ENOENT)
}

// Hash is the xxHash64 of a file's content, or of a link's target; 0 of anything else, or
// of what cannot be read.
func (d *Dir) Hash(name string) uint64 {
	parent, base, err := d.enter(name)
	if err != nil {
		return 0
	}
	if target, err := readlinkat(parent, base); err == nil {
		return xxhash.Sum64String(target)
	}
	fd, err := unix.Openat(parent, base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return 0
	}
	h := xxhash.New()
	if _, err := io.CopyBuffer(h, struct{ io.Reader }{f}, make([]byte, copyChunk)); err != nil {
		return 0
	}
	return h.Sum64()
}

// Read returns a file's content, at most limit bytes of it; nil when there is none.
func (d *Dir) Read(name string, limit int64) []byte {
	parent, base, err := d.enter(name)
	if err != nil {
		return nil
	}
	return readAt(parent, base, limit)
}

func readAt(parent int, base string, limit int64) []byte {
	fd, err := unix.Openat(parent, base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	f := os.NewFile(uintptr(fd), base)
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil
	}
	b, err := io.ReadAll(io.LimitReader(f, limit))
	if err != nil {
		return nil
	}
	return b
}

// Remove removes what has that name. A directory that is not empty stays, and so does
// what is not there.
func (d *Dir) Remove(name string) error {
	parent, base, err := d.enter(name)
	if err == nil {
		err = unix.Unlinkat(parent, base, 0)
		if err == unix.EISDIR || err == unix.EPERM {
			err = unix.Unlinkat(parent, base, unix.AT_REMOVEDIR)
		}
	}
	switch {
	case err == nil, isAbsent(err), errors.Is(err, unix.ENOTEMPTY), errors.Is(err, unix.EEXIST):
		return nil
	}
	return classify(err, name)
}

// maxDepth bounds how deep directories are followed within each other.
const maxDepth = 512

// RemoveAll removes what has that name, and all that is in it.
func (d *Dir) RemoveAll(name string) error {
	parent, base, err := d.enter(name)
	if err == nil {
		err = removeAll(parent, base, 0)
	}
	if err != nil && !isAbsent(err) {
		return classify(err, name)
	}
	return nil
}

func removeAll(parent int, base string, depth int) error {
	err := unix.Unlinkat(parent, base, 0)
	if err != unix.EISDIR && err != unix.EPERM {
		return err
	}
	if depth >= maxDepth {
		return errdefs.Exhausted("directories are more than %d deep", maxDepth)
	}
	fd, err := unix.Openat(parent, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), base)
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := removeAll(fd, n, depth+1); err != nil && err != unix.ENOENT {
			return err
		}
	}
	return unix.Unlinkat(parent, base, unix.AT_REMOVEDIR)
}

// Found is one name that Walk found.
type Found struct {
	Name string
	Stat unix.Stat_t
}

// Walk calls each for what is below the directory name, which is not there when it is
// no directory; empty: the whole of d. A directory comes before what is in it, which is
// left out when each says so. enter, which may be nil, is called before the names in a directory, with a
// way to read files in it, and the function that it returns after them.
func (d *Dir) Walk(name string, each func(Found) (descend bool, err error), enter func(dir string, read func(base string, limit int64) []byte) (leave func())) error {
	at := name
	if at == "" {
		at = "."
	}
	fd, err := unix.Openat2(d.fd, at, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		if isAbsent(err) {
			return nil
		}
		return classify(err, name)
	}
	w := walker{each: each, enter: enter}
	return w.dir(fd, name, 0)
}

type walker struct {
	each  func(Found) (bool, error)
	enter func(string, func(string, int64) []byte) func()
}

// dir walks the directory that fd is open on, and closes it.
func (w *walker) dir(fd int, name string, depth int) error {
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	if depth >= maxDepth {
		return errdefs.Exhausted("%q: directories are more than %d deep", name, maxDepth)
	}
	names, err := f.Readdirnames(-1)
	if err != nil {
		return classify(err, name)
	}
	if w.enter != nil {
		defer w.enter(name, func(base string, limit int64) []byte { return readAt(fd, base, limit) })()
	}
	for _, base := range names {
		found := Found{Name: path.Join(name, base)}
		if err := unix.Fstatat(fd, base, &found.Stat, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			if isAbsent(err) {
				continue
			}
			return classify(err, found.Name)
		}
		descend, err := w.each(found)
		if err != nil {
			return err
		}
		if !descend || found.Stat.Mode&unix.S_IFMT != unix.S_IFDIR {
			continue
		}
		sub, err := unix.Openat(fd, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			if isAbsent(err) {
				continue
			}
			return classify(err, found.Name)
		}
		if err := w.dir(sub, found.Name, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// CheckName reports whether name is clean and stays below a directory.
func CheckName(name string) error {
	cleaned, err := clean(name)
	if err == nil && (cleaned != name || name == "." || strings.IndexByte(name, 0) >= 0) {
		err = errdefs.Invalid("the name is not clean")
	}
	return errdefs.Wrap(err, "%q", name)
}
