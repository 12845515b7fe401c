package fcproc

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

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

// removeCgroup removes the control group of a VM whose VMM has ended.
func removeCgroup(dir string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	err := unix.Rmdir(cgroupOf(dir))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EROFS) {
		return nil
	}
	return err
}
