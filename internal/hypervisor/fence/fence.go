// Package fence starts VMMs in namespaces of their own.
package fence

import (
	"context"
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
	"banger/internal/sysexec"
)

// flags are the namespaces of a VMM, in which there is nothing: it has its sockets
// as descriptors and by name, and needs neither a network nor shared memory. An
// ordinary user may make them in a user namespace only. In that the VMM is who the
// user is, groups included (by one of which it may reach /dev/kvm), and the daemon,
// as whoever has the same id outside, may do to it what it may do to any process
// of the user's: a daemon that is started anew finds it all the same.
func flags() uintptr {
	f := uintptr(unix.CLONE_NEWNET | unix.CLONE_NEWIPC)
	if os.Geteuid() != 0 {
		f |= unix.CLONE_NEWUSER
	}
	return f
}

// refused reports whether the host does not allow the namespaces: root of a
// container, a limit of zero or one that is reached, a kernel without them.
func refused(err error) bool {
	for _, errno := range []error{unix.EPERM, unix.EACCES, unix.ENOSPC, unix.EUSERS, unix.EINVAL} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// Start starts d behind the fences, or without them where the host refuses: the rest
// still holds. One that uses an interface of the host's stays in the host's network.
func Start(d sysexec.Detached, hostNet bool) (*sysexec.Proc, error) {
	d.Cloneflags = flags()
	if hostNet {
		d.Cloneflags &^= unix.CLONE_NEWNET
	}
	proc, err := sysexec.StartDetached(d)
	if refused(err) {
		d.Cloneflags = 0
		proc, err = sysexec.StartDetached(d)
	}
	return proc, err
}

// Try tries whether VMMs get a network and IPC of their own on this host. It
// errors with why not.
func Try(ctx context.Context) error {
	path, err := sysexec.Look("true")
	if err != nil {
		return err
	}
	proc, err := sysexec.StartDetached(sysexec.Detached{Path: path, Dir: "/", Env: []string{}, Cloneflags: flags()})
	if err != nil {
		return errdefs.Wrap(err, "make namespaces")
	}
	select {
	case <-proc.Done():
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
