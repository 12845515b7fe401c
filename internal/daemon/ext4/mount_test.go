package ext4

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mounted mounts a filesystem and calls f, which may use t.Error, with the directory and
// the loop device. Nobody else sees the mount. The test is skipped where that cannot be.
func mounted(t *testing.T, path string, flags uintptr, f func(dir string, loop *os.File) error) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount a filesystem")
	}
	loop, err := attach(path, flags)
	if err != nil {
		t.Skipf("needs a loop device: %v", err)
	}
	defer func() { _ = loop.Close() }()
	dir := t.TempDir()
	end := make(chan error)
	skip := ""
	go func() {
		// The thread has the mount, and ends with this goroutine.
		runtime.LockOSThread()
		end <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
				skip = fmt.Sprintf("needs a mount namespace: %v", err)
				return nil
			}
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
				return fmt.Errorf("make mounts private: %w", err)
			}
			if err := unix.Mount(loop.Name(), dir, "ext4", flags, ""); err != nil {
				if errors.Is(err, unix.ENODEV) {
					skip = "needs a kernel with ext4"
					return nil
				}
				return fmt.Errorf("mount: %w", err)
			}
			err := f(dir, loop)
			return errors.Join(err, unix.Unmount(dir, 0))
		}()
	}()
	if err := <-end; err != nil {
		t.Fatal(err)
	}
	if skip != "" {
		t.Skip(skip)
	}
}

// attach puts a loop device over a file. It goes when nobody has it open.
func attach(path string, flags uintptr) (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = control.Close() }()
	mode := os.O_RDWR
	conf := unix.LoopConfig{Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR}}
	if flags&unix.MS_RDONLY != 0 {
		mode = os.O_RDONLY
		conf.Info.Flags |= unix.LO_FLAGS_READ_ONLY
	}
	back, err := os.OpenFile(path, mode, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = back.Close() }()
	conf.Fd = uint32(back.Fd())
	for {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, err
		}
		loop, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), mode, 0)
		if err != nil {
			return nil, err
		}
		if err = unix.IoctlLoopConfigure(int(loop.Fd()), &conf); err == nil {
			return loop, nil
		}
		_ = loop.Close()
		if !errors.Is(err, unix.EBUSY) { // somebody else was faster
			return nil, err
		}
	}
}

// growMounted has the kernel grow a mounted filesystem, as the agent does in a guest.
func growMounted(dir string, size int64) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	blocks := uint64(size / blockSize)
	const resizeFS = 0x40086610 // _IOW('f', 16, __u64)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, d.Fd(), resizeFS, uintptr(unsafe.Pointer(&blocks))); errno != 0 {
		return fmt.Errorf("grow to %d blocks: %w", blocks, errno)
	}
	return nil
}
