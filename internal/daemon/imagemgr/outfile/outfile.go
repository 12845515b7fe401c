// Package outfile writes to where the user wants it: a file or a directory that is there
// as a whole or not at all.
//
// All is made in a directory beside the target, whose name begins with a dot and the
// target's. Whoever asks is told that name before there is anything, so that what a
// crash leaves there can be removed by it.
package outfile

import (
	"bufio"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
)

// Options says how a target is written.
type Options struct {
	Replace bool // a file may take the place of another one; a directory never does
	// Note is told the directory that is worked in before that is made; nil: nobody is.
	// Its error ends the work.
	Note func(dir string) error
	// Publish is called with what gives the target its name, and returns what that does;
	// nil: it is just done.
	Publish func(do func() error) error
}

// madeName is the name of a directory that is worked in.
var madeName = regexp.MustCompile(`(?s)^\..+\.[0-9a-f]{16}$`)

// Made reports whether a path looks like one that a Note was told.
func Made(dir string) bool { return filepath.IsAbs(dir) && madeName.MatchString(filepath.Base(dir)) }

// Work is a target in the making.
type Work struct {
	Dir  string // beside the target, and empty at first: what is made on the way
	path string
	o    Options
}

// Begin makes the directory to work in. A target that is there already is refused, with
// class already_exists or invalid_argument; a directory around it that is not, with
// not_found.
func Begin(path string, directory bool, o Options) (*Work, error) {
	path = filepath.Clean(path)
	if err := free(path, directory, o.Replace); err != nil {
		return nil, err
	}
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails
	w := &Work{Dir: filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+"."+hex.EncodeToString(id[:])), path: path, o: o}
	if o.Note != nil {
		if err := o.Note(w.Dir); err != nil {
			return nil, err
		}
	}
	err := os.Mkdir(w.Dir, 0o700)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errdefs.NotFound("%w", err).WithHint("make the directory first, or check the path")
	}
	if err != nil {
		return nil, err
	}
	return w, nil
}

// End removes what was made on the way.
func (w *Work) End() error { return os.RemoveAll(w.Dir) } // it may have become the target

// File makes the target a file of what write writes.
func (w *Work) File(write func(io.Writer) error) error {
	f, err := os.OpenFile(filepath.Join(w.Dir, "out"), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close() // fails after the one below
	b := bufio.NewWriterSize(f, 256<<10)
	if err := write(b); err != nil {
		return err
	}
	if err := errors.Join(b.Flush(), f.Chmod(0o644), f.Sync(), f.Close()); err != nil {
		return err
	}
	return w.publish(func() error { return rename(f.Name(), w.path, w.o.Replace) })
}

// Directory makes the target of the directory that was worked in. What is in it is on the
// disk already.
func (w *Work) Directory() error {
	if err := errors.Join(os.Chmod(w.Dir, 0o755), Sync(w.Dir)); err != nil {
		return err
	}
	// A rename onto a directory that somebody has made meanwhile fails, unless that is empty.
	return w.publish(func() error { return os.Rename(w.Dir, w.path) })
}

func (w *Work) publish(do func() error) error {
	name := func() error { return errors.Join(do(), Sync(filepath.Dir(w.path))) }
	if w.o.Publish != nil {
		return w.o.Publish(name)
	}
	return name()
}

// free refuses to write where something is.
func free(path string, directory, replace bool) error {
	fi, err := os.Lstat(path)
	switch {
	case err != nil:
		return nil // whoever writes finds out
	case directory:
		return errdefs.AlreadyExists("%q is there", path).WithHint("name a directory that does not exist")
	case !replace:
		return isThere(path)
	case !fi.Mode().IsRegular():
		return errdefs.Invalid("%q is no regular file", path).WithHint("name a file")
	}
	return nil
}

func isThere(path string) error {
	return errdefs.AlreadyExists("%q is there", path).WithHint("name another file, or replace it: add --force")
}

// rename gives a file its name. That nothing else has it is looked at again: writing may
// have taken a while.
func rename(from, to string, replace bool) error {
	if replace {
		return os.Rename(from, to)
	}
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	switch {
	case errors.Is(err, unix.EEXIST):
		return isThere(to)
	case errors.Is(err, unix.EINVAL): // not on every file system
		return os.Rename(from, to)
	case err != nil:
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	return nil
}

// Sync has the kernel write a file, or the names in a directory, to the disk.
func Sync(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
