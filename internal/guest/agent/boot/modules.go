package boot

import (
	"errors"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
)

// loadModules loads the modules that a list in /modules names. A kernel that has
// them built in, or an initramfs without modules, is as good.
func loadModules(list string) error {
	dir, err := os.Open(modulesDir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return errdefs.Wrap(err, "open the early modules")
	}
	defer dir.Close()
	return loadList(dir, list)
}

// LoadLate loads the modules of the early boot that could wait, from the
// directory that Prepare returned, and then removes it from memory.
func LoadLate(dir *os.File) error {
	defer dir.Close()
	err := loadList(dir, "order-late")
	removeFrom(dir)
	return err
}

func loadList(dir *os.File, list string) error {
	names, err := readAt(dir, list)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return errdefs.Wrap(err, "read list of modules %s", list)
	}
	// One module that fails (another kernel's, say) must not hide what the others
	// make possible: the disk or the port tells in the end.
	var errs []error
	for name := range strings.FieldsSeq(names) {
		if err := loadModule(dir, name); err != nil {
			errs = append(errs, errdefs.Wrap(err, "load module %s", name))
		}
	}
	return errors.Join(errs...)
}

func loadModule(dir *os.File, name string) error {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.FinitModule(fd, "", 0); err != nil && err != unix.EEXIST {
		return err
	}
	return nil
}

func readAt(dir *os.File, name string) (string, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	buf := make([]byte, 64<<10)
	n, err := f.Read(buf)
	if n > 0 || err == nil {
		return string(buf[:n]), nil
	}
	return "", err
}

// removeFrom empties a flat directory.
func removeFrom(dir *os.File) {
	names, _ := dir.Readdirnames(-1)
	for _, name := range names {
		_ = unix.Unlinkat(int(dir.Fd()), name, 0)
	}
}
