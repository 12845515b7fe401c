package proc

import (
	"errors"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
)

// keep leaves one of several ids as it is.
const keep = ^uintptr(0)

// As runs f with u's rights to files and sockets, where this process is root. f must do its
// work in its own goroutine.
//
// One thread alone becomes u, and not wholly: its real and its saved id stay root's, so that
// no process of u's may send it signals, which would be sent to all of the agent.
func As(u *User, f func() error) error {
	if os.Geteuid() != 0 || !mustBecome(u) {
		return f()
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		groups, err := unix.Getgroups()
		if err == nil {
			err = errors.Join(setGroups(u.Groups), setIDs(u.UID, u.GID))
		}
		if err == nil {
			err = f()
		} else {
			err = errdefs.Wrap(err, "become user %s", u.Name)
		}
		own := make([]uint32, len(groups))
		for i, g := range groups {
			own[i] = uint32(g)
		}
		if setIDs(0, 0) == nil && setGroups(own) == nil {
			runtime.UnlockOSThread()
		} // else the thread ends with this goroutine
		done <- err
	}()
	return <-done
}

// setIDs changes the effective ids of this thread alone: the group while the thread may
// still, or may again, change it.
func setIDs(uid, gid uint32) error {
	user := func() error {
		_, _, e := unix.RawSyscall(unix.SYS_SETRESUID, keep, uintptr(uid), keep)
		return errno(e)
	}
	group := func() error {
		_, _, e := unix.RawSyscall(unix.SYS_SETRESGID, keep, uintptr(gid), keep)
		return errno(e)
	}
	if uid == 0 {
		if err := user(); err != nil {
			return err
		}
		return group()
	}
	if err := group(); err != nil {
		return err
	}
	return user()
}

func setGroups(groups []uint32) error {
	var list unsafe.Pointer
	if len(groups) > 0 {
		list = unsafe.Pointer(&groups[0])
	}
	_, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(list), 0)
	runtime.KeepAlive(groups)
	return errno(e)
}

func errno(e unix.Errno) error {
	if e == 0 {
		return nil
	}
	return e
}
