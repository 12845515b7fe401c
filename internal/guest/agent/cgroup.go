package agent

import (
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// ownCgroup puts the agent, and with it all commands, into a control group of its
// own, so that the image's init counts them to none of its units. The hierarchy is
// mounted apart and only for that moment: where it belongs is the init's to say.
func ownCgroup() error {
	const dir = "/run/banger/cgroup"
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	defer os.Remove(dir)
	if err := unix.Mount("cgroup2", dir, "cgroup2", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return err
	}
	group := filepath.Join(dir, "banger")
	err := os.Mkdir(group, 0o755)
	if err == nil || errors.Is(err, os.ErrExist) {
		err = os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte("0"), 0)
	}
	return errors.Join(err, unix.Unmount(dir, 0))
}
