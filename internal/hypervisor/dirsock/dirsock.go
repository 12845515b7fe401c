// Package dirsock makes and reaches unix sockets by directory and name, so that
// the path of the directory may be longer than the 108 bytes the kernel allows a
// socket address. The address used is short: /proc/self/fd/<directory>/<name>.
package dirsock

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Listen binds name in dir and returns the listening socket, as a file to hand to
// a child process. What had that name before is removed. Only the owner may
// connect.
func Listen(dir, name string) (*os.File, error) {
	d, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", name, err)
	}
	defer d.Close()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	if err := listen(fd, int(d.Fd()), name); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("listen on %s in %s: %w", name, dir, err)
	}
	return f, nil
}

func listen(fd, dir int, name string) error {
	if err := unix.Unlinkat(dir, name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	// Until listen nobody can connect, so the mode is right before it matters.
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: address(dir, name)}); err != nil {
		return err
	}
	if err := unix.Fchmodat(dir, name, 0o600, 0); err != nil {
		return err
	}
	return unix.Listen(fd, 16)
}

// Dial connects to name in dir.
func Dial(ctx context.Context, dir, name string) (*net.UnixConn, error) {
	d, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", name, err)
	}
	defer d.Close()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", address(int(d.Fd()), name))
	if err != nil {
		// The address in the error would mean nothing to anyone.
		var op *net.OpError
		if errors.As(err, &op) {
			err = op.Err
		}
		return nil, fmt.Errorf("dial %s in %s: %w", name, dir, err)
	}
	return conn.(*net.UnixConn), nil
}

func address(dir int, name string) string {
	return "/proc/self/fd/" + strconv.Itoa(dir) + "/" + name
}

// NoListener reports whether err of Dial means that nobody listens there.
func NoListener(err error) bool {
	return errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist)
}

// PeerPID returns the process that listened on the socket c is connected to (the
// last one to call listen(2) on it, when c was connected).
func PeerPID(c *net.UnixConn) (int, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("read peer: %w", err)
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return 0, fmt.Errorf("read peer: %w", err)
	}
	if credErr != nil {
		return 0, fmt.Errorf("read peer: %w", credErr)
	}
	return int(cred.Pid), nil
}

// Remove removes sockets of dir; those that are not there do not matter.
func Remove(dir string, names ...string) error {
	var errs []error
	for _, name := range names {
		if err := os.Remove(dir + "/" + name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
