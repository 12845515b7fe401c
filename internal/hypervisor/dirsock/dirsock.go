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
	"time"

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
	conn, err := connect(ctx, address(int(d.Fd()), name))
	if err != nil {
		return nil, fmt.Errorf("dial %s in %s: %w", name, dir, err)
	}
	return conn, nil
}

// ErrStranger says that another process answers on a socket than the one expected.
var ErrStranger = errors.New("another process answers there")

// DialPID connects to name in dir if process pid listens there; otherwise it errors with
// ErrStranger. Who may write to dir could have a link lead to somebody else's socket.
func DialPID(ctx context.Context, dir, name string, pid int) (*net.UnixConn, error) {
	conn, err := Dial(ctx, dir, name)
	if err != nil {
		return nil, err
	}
	peer, err := PeerPID(conn)
	if err == nil && peer != pid {
		err = fmt.Errorf("dial %s in %s: %w: %d, not %d", name, dir, ErrStranger, peer, pid)
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

// queueTime is how long one blocking connect waits for room in the queue before
// it looks at the context again.
const queueTime = 200 * time.Millisecond

// connect connects to addr. When the listener's queue is full (QEMU's holds two,
// and closed connections stay in it until they are accepted) it waits for room,
// which only a blocking connect can.
func connect(ctx context.Context, addr string) (*net.UnixConn, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "dial")
	defer f.Close()
	wait := unix.NsecToTimeval(queueTime.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &wait); err != nil {
		return nil, err
	}
	for {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		err := unix.Connect(fd, &unix.SockaddrUnix{Name: addr})
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			return nil, err
		}
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{}); err != nil {
		return nil, err
	}
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, err
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
