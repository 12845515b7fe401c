package fcproc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/hypervisor/vmproc"
	"banger/internal/paths"
)

// A VMM of a root daemon runs in a control group of its own, so that what one VM
// uses can be read and bounded in one place. Where there is no unified hierarchy, or
// we may not write to it (root of a container), it does without.

// cgroupOf is the control group of the VM in dir.
func cgroupOf(dir string) string { return filepath.Join(paths.CgroupDir, filepath.Base(dir)) }

// openCgroup makes the control group of the VM in dir.
func openCgroup(dir string) (*os.File, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	var st unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(paths.CgroupDir), &st); err != nil {
		return nil, err
	}
	if st.Type != unix.CGROUP2_SUPER_MAGIC {
		return nil, errors.New("there is no unified hierarchy of control groups")
	}
	if err := os.MkdirAll(cgroupOf(dir), 0o755); err != nil {
		return nil, err
	}
	return os.Open(cgroupOf(dir))
}

// removeCgroup removes the control group of a VM whose VMM has ended. A thread that the
// kernel ran for the VM may leave it only after that, and is waited for, as long as ctx
// and vmproc.UndoTime allow.
func removeCgroup(ctx context.Context, dir string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	group := cgroupOf(dir)
	err := unix.Rmdir(group)
	if errors.Is(err, unix.EBUSY) {
		if err = emptied(ctx, group); err == nil {
			err = unix.Rmdir(group)
		}
	}
	if err == nil || errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EROFS) {
		return nil
	}
	return fmt.Errorf("remove control group %s: %w", group, err)
}

// emptied waits until nobody is in a control group.
func emptied(ctx context.Context, group string) error {
	until := time.Now().Add(vmproc.UndoTime)
	if d, ok := ctx.Deadline(); ok && d.Before(until) {
		until = d
	}
	events, err := os.Open(filepath.Join(group, "cgroup.events"))
	if err != nil {
		return err
	}
	defer events.Close()
	buf := make([]byte, 512)
	for {
		// What changes after a read ends the next poll.
		n, err := events.ReadAt(buf, 0)
		if err != nil && err != io.EOF {
			return err
		}
		if bytes.Contains(buf[:n], []byte("populated 0\n")) {
			return nil
		}
		left := time.Until(until)
		if left <= 0 {
			return fmt.Errorf("%w: processes run in it", unix.EBUSY)
		}
		_, err = unix.Poll([]unix.PollFd{{Fd: int32(events.Fd()), Events: unix.POLLPRI}}, int(left.Milliseconds())+1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
