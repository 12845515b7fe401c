package dmsnap

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
)

// loopTries is how often a loop device may be snatched away by others.
const loopTries = 64

// attach makes a block device of a file. It lasts until the last who has it open
// closes it, so a crash leaks none: the caller closes its own when a table holds it.
func attach(dev, path string, readOnly bool) (*os.File, error) {
	mode := os.O_RDWR
	if readOnly {
		mode = os.O_RDONLY
	}
	f, err := os.OpenFile(path, mode, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	ctl, err := os.OpenFile(filepath.Join(dev, "loop-control"), os.O_RDWR, 0)
	if err != nil {
		return nil, unavailable(err, "loop devices", "loop")
	}
	defer ctl.Close()
	conf := unix.LoopConfig{Fd: uint32(f.Fd())}
	conf.Info.Flags = unix.LO_FLAGS_AUTOCLEAR
	if readOnly {
		conf.Info.Flags |= unix.LO_FLAGS_READ_ONLY
	}
	copy(conf.Info.File_name[:len(conf.Info.File_name)-1], path)
	for range loopTries {
		n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, exhausted(fmt.Errorf("get a free loop device: %w", err))
		}
		name := filepath.Join(dev, fmt.Sprintf("loop%d", n))
		loop, err := os.OpenFile(name, mode, 0)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENXIO) {
			return nil, exhausted(err)
		}
		if err != nil {
			return nil, unavailable(err, "loop devices", "loop")
		}
		err = unix.IoctlLoopConfigure(int(loop.Fd()), &conf)
		if err == nil {
			return loop, nil
		}
		_ = loop.Close()
		if !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("set up %s for %s: %w", name, path, err)
		}
	}
	return nil, exhausted(errors.New("others were faster each time"))
}

func exhausted(err error) error {
	return errdefs.Exhausted("no loop device is left: %w", err).
		WithHint("stop some VMs; in a container, give it more /dev/loop devices; see losetup -a, and max_loop of the module")
}

// deviceOf is the number of an open block device.
func deviceOf(f *os.File) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return 0, &os.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	return st.Rdev, nil
}
