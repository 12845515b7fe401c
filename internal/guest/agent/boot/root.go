package boot

import (
	"errors"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
)

// The root belongs to an image: its symlinks must not lead out of it while this
// process still is in the initramfs. So paths in it are resolved by the kernel
// below the root's descriptor.

// openIn opens a path of the image for use as a mount point or in a lookup.
func openIn(root int, path string, flags uint64) (int, error) {
	return unix.Openat2(root, path, &unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
}

// mkdirIn makes the directories of a path of the image and opens the last.
func mkdirIn(root int, path string) (int, error) {
	fd, err := openIn(root, path, unix.O_PATH|unix.O_DIRECTORY)
	if err != unix.ENOENT {
		return fd, err
	}
	parent, name := "/", path
	if i := strings.LastIndexByte(path, '/'); i > 0 {
		parent, name = path[:i], path[i+1:]
	}
	dir, err := mkdirIn(root, parent)
	if err != nil {
		return -1, err
	}
	defer unix.Close(dir)
	if err := unix.Mkdirat(dir, name, 0o755); err != nil && err != unix.EEXIST {
		return -1, err
	}
	return openIn(root, path, unix.O_PATH|unix.O_DIRECTORY)
}

func fdPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// mountModules mounts the disk of the kernel's modules where the kernel's tools
// look for them. The image's own /lib may be a symlink.
func mountModules(root int, disk, release string) error {
	fd, err := mkdirIn(root, "lib/modules/"+release)
	if err != nil {
		return errdefs.Wrap(err, "make /lib/modules/%s in the image", release)
	}
	defer unix.Close(fd)
	err = unix.Mount("/dev/"+disk, fdPath(fd), "ext4", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOATIME, "")
	if err != nil {
		return errdefs.Wrap(err, "mount the kernel's modules")
	}
	return nil
}

// mountPoint opens a directory of the root that something is mounted on, and makes it
// where there is none. What an image has there instead (a file, a link) would be in the
// way of the machine and goes: the disk is the VM's own.
func mountPoint(root int, name string) (int, error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH}
	fd, err := unix.Openat2(root, name, &how)
	switch err {
	case unix.ENOENT:
	case unix.ENOTDIR, unix.ELOOP:
		if err := unix.Unlinkat(root, name, 0); err != nil {
			return -1, err
		}
	default:
		return fd, err
	}
	if err := unix.Mkdirat(root, name, 0o755); err != nil {
		return -1, err
	}
	return unix.Openat2(root, name, &how)
}

// switchRoot moves the kernel's file systems into the new root, makes it the root
// of this process, and frees what the initramfs holds but for late modules.
func switchRoot(root int) error {
	for _, dir := range []string{"dev", "proc", "sys", "run"} {
		fd, err := mountPoint(root, dir)
		if err != nil {
			return errdefs.Wrap(err, "make /%s in the image", dir)
		}
		// /proc moves too: go through the directory itself, not through /proc.
		err = unix.MoveMount(unix.AT_FDCWD, "/"+dir, fd, "", unix.MOVE_MOUNT_T_EMPTY_PATH)
		_ = unix.Close(fd)
		if err != nil {
			return errdefs.Wrap(err, "move /%s into the image", dir)
		}
	}
	_ = os.Remove("/init")
	if err := unix.Fchdir(root); err != nil {
		// An O_PATH descriptor of a directory does for fchdir.
		return errdefs.Wrap(err, "enter the root")
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return errdefs.Wrap(err, "move the root")
	}
	if err := unix.Chroot("."); err != nil {
		return errdefs.Wrap(err, "change the root")
	}
	return os.Chdir("/")
}

// mountRest mounts what commands need and an init would mount later, which it
// does not when it is there already.
func mountRest(kind string) error {
	var errs []error
	mount := func(source, dir, fstype string, flags uintptr, data string) {
		err := os.MkdirAll(dir, 0o755)
		if err == nil {
			err = unix.Mount(source, dir, fstype, flags, data)
		}
		if err != nil && err != unix.EBUSY {
			errs = append(errs, errdefs.Wrap(err, "mount %s", dir))
		}
	}
	const quiet = unix.MS_NOSUID | unix.MS_NOEXEC
	mount("devpts", "/dev/pts", "devpts", quiet, "gid=5,mode=0620,ptmxmode=0666")
	mount("tmpfs", "/dev/shm", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777")
	for link, target := range map[string]string{
		"/dev/fd": "/proc/self/fd", "/dev/stdin": "/proc/self/fd/0",
		"/dev/stdout": "/proc/self/fd/1", "/dev/stderr": "/proc/self/fd/2",
	} {
		if err := os.Symlink(target, link); err != nil && !errors.Is(err, os.ErrExist) {
			errs = append(errs, err)
		}
	}
	if kind == "none" {
		mount("cgroup2", "/sys/fs/cgroup", "cgroup2", quiet|unix.MS_NODEV, "nsdelegate")
		mount("mqueue", "/dev/mqueue", "mqueue", quiet|unix.MS_NODEV, "")
		errs = append(errs, mkdirs("/run/lock"), unix.Chmod("/run/lock", 0o1777))
	}
	return errors.Join(append(errs, makeTmp("/tmp"))...)
}

// makeTmp makes a directory for everybody where the image has none. One that is there
// stays as it is; a link that leads nowhere goes.
func makeTmp(dir string) error {
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return errors.Join(os.Mkdir(dir, 0o755), unix.Chmod(dir, 0o1777)) // os.Chmod drops the sticky bit
}
