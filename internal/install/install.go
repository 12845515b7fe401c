// Package install puts banger's files where a host's programs lie, and takes them away
// again: the programs themselves and the unit by which systemd runs the daemon. It
// starts and stops nothing.
package install

import (
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/durable"
	"banger/internal/errdefs"
	"banger/internal/paths"
)

// DefaultPrefix is where programs go that are not a distribution's.
const DefaultPrefix = "/usr/local"

// Service is banger as a service of the host. The unit's file remembers what it needs
// to be removed, so it is the first to be written and the last to go.
type Service struct {
	Unit   string // file of the unit, absolute
	Prefix string // programs are in its bin/; absolute
	Group  string // whose members may use the daemon; empty: root alone

	made []string // directories that were not there before, the outer ones first
}

// Bin is the directory of the programs.
func (s Service) Bin() string { return filepath.Join(s.Prefix, "bin") }

// Install copies the programs from a directory and writes the unit; changed says
// whether any of them is now another than before. Nothing is replaced before all of it
// lies on the disk beside its place. Where a new installation fails, nothing of it is
// left; where one is renewed, each file is an old or a new one, and it can be repeated.
func (s Service) Install(from string) (changed bool, err error) {
	s.Prefix = filepath.Clean(s.Prefix)
	if err := s.check(); err != nil {
		return false, err
	}
	old, err := Find(s.Unit)
	fresh := errors.Is(err, errdefs.ErrNotFound)
	switch {
	case err != nil && !fresh:
		return false, err
	case !fresh && old.Prefix != s.Prefix:
		return false, errdefs.Precondition("banger is installed in %s already", old.Bin()).
			WithHint("remove that first: banger system uninstall; VMs have to go for it. Or leave --prefix out")
	}
	for _, name := range programs {
		if err := checkProgram(filepath.Join(from, name)); err != nil {
			return false, err
		}
		if err := checkPlace(filepath.Join(s.Bin(), name)); err != nil {
			return false, err
		}
		if !fresh {
			continue
		}
		// Where no unit says that banger is installed, a program of this name is not ours
		// to replace, and to remove later.
		if err := checkForeign(filepath.Join(from, name), filepath.Join(s.Bin(), name)); err != nil {
			return false, err
		}
	}
	if s.made = old.made; fresh {
		s.made = missing(s.Bin())
	}
	placed := false
	defer func() {
		if err != nil && fresh && !placed {
			err = errors.Join(err, s.forget())
		}
	}()
	if changed, err = replace(s.Unit, s.unit(), 0o644); err != nil {
		return changed, err
	}
	if err := os.MkdirAll(s.Bin(), 0o755); err != nil {
		return changed, errdefs.Wrap(err, "make the programs' directory")
	}
	placed, err = Place(s.Bin(), from, programs)
	return changed || placed, err
}

// Place copies programs from one directory to another that exists; changed says
// whether any of them is now another than before. None takes its place before all lie
// on the disk.
func Place(bin, from string, names []string) (changed bool, err error) {
	for _, name := range names {
		if err := checkPlace(filepath.Join(bin, name)); err != nil {
			return false, err
		}
	}
	defer sweep(bin, names)
	var staged []string
	for _, name := range names {
		to := filepath.Join(bin, name)
		same, err := equal(filepath.Join(from, name), to)
		if err == nil && !same {
			staged = append(staged, name)
			err = stage(filepath.Join(from, name), to)
		}
		if err != nil {
			return false, errdefs.Wrap(err, "install %s", name)
		}
	}
	for _, name := range staged {
		changed = true
		to := filepath.Join(bin, name)
		if err := os.Rename(stagingOf(to), to); err != nil {
			return changed, errdefs.Wrap(err, "install %s", name)
		}
	}
	return changed, durable.SyncDir(bin)
}

// Remove removes what Install wrote; what is gone already is no error. Directories
// that it made stay when somebody else's files are in them.
func (s Service) Remove() error {
	sweep(s.Bin(), programs)
	for _, name := range slices.Backward(programs) {
		if err := os.Remove(filepath.Join(s.Bin(), name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return errdefs.Wrap(err, "remove a program")
		}
	}
	return s.forget()
}

// forget removes the directories that were made, and the unit.
func (s Service) forget() error {
	for _, dir := range slices.Backward(s.made) {
		if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
			return errdefs.Wrap(err, "remove a directory")
		}
	}
	_ = os.Remove(stagingOf(s.Unit))
	if err := os.Remove(s.Unit); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return errdefs.Wrap(err, "remove the unit")
	}
	return nil
}

// checkProgram refuses what is no file that can be run.
func checkProgram(path string) error {
	info, err := os.Stat(path)
	if err == nil && (!info.Mode().IsRegular() || info.Mode().Perm()&0o111 == 0) {
		err = errors.New("it is not a program")
	}
	if err != nil {
		return errdefs.Precondition("find what is to be installed: %s: %w", path, err).
			WithHint("install from a directory that holds %s: make build leaves them in bin/", strings.Join(programs, ", "))
	}
	return nil
}

// checkPlace refuses to put a program where something lies that is none.
func checkPlace(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return errdefs.Wrap(err, "look at what is installed")
	case !info.Mode().IsRegular():
		return errdefs.Precondition("%s is not a file", path).WithHint("move it away")
	}
	return nil
}

// checkForeign refuses to replace a program that this installation has not brought.
func checkForeign(from, to string) error {
	if _, err := os.Lstat(to); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	a, err := digest(from)
	if err != nil {
		return errdefs.Wrap(err, "compare with what is there")
	}
	b, err := digest(to)
	if err != nil {
		return errdefs.Wrap(err, "compare with what is there")
	}
	if a != b {
		return errdefs.AlreadyExists("%s is there already, and banger is not installed", to).
			WithHint("move it away, or install elsewhere: --prefix")
	}
	return nil
}

// missing are the directories on the way to dir, and dir, that are not there.
func missing(dir string) (dirs []string) {
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Lstat(dir); err == nil || dir == "/" {
			slices.Reverse(dirs)
			return dirs
		}
		dirs = append(dirs, dir)
	}
}

// stagingOf is where a file lies until it takes its place. It is always the same, so
// that the next run finds what a crash has left.
func stagingOf(path string) string {
	return filepath.Join(filepath.Dir(path), paths.StagingPrefix+filepath.Base(path))
}

func sweep(bin string, names []string) {
	for _, name := range names {
		_ = os.Remove(stagingOf(filepath.Join(bin, name))) // usually it is not there
	}
}

// stage copies a program beside the place it is to take.
func stage(from, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }()
	return write(stagingOf(to), src, 0o755)
}

// equal reports whether a program is there already.
func equal(from, to string) (bool, error) {
	info, err := os.Lstat(to)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	a, err := digest(from)
	if err != nil {
		return false, err
	}
	b, err := digest(to)
	return a == b && info.Mode().Perm() == 0o755, err
}

func digest(path string) (sum [sha256.Size]byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return sum, err
	}
	defer func() { _ = f.Close() }()
	h := sha256.New()
	_, err = io.Copy(h, f)
	return [sha256.Size]byte(h.Sum(nil)), err
}

// replace gives a file its content, all at once; it reports whether it had another.
func replace(path, text string, mode fs.FileMode) (bool, error) {
	if old, err := os.ReadFile(path); err == nil && string(old) == text {
		return false, nil
	}
	if err := write(stagingOf(path), strings.NewReader(text), mode); err != nil {
		return false, err
	}
	if err := os.Rename(stagingOf(path), path); err != nil {
		return false, errdefs.Wrap(err, "write %s", path)
	}
	return true, durable.SyncDir(filepath.Dir(path))
}

// write makes a file anew; where it fails there is none.
func write(path string, from io.Reader, mode fs.FileMode) (err error) {
	defer func() {
		if err != nil {
			_ = os.Remove(path)
			err = errdefs.Wrap(err, "write %s", path)
		}
	}()
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if _, err = io.Copy(f, from); err == nil {
		if err = f.Chmod(mode); err == nil {
			err = f.Sync()
		}
	}
	return errors.Join(err, f.Close())
}
