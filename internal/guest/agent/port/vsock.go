package port

import (
	"errors"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
)

// Vsock is a guest.Port on vsock: one connection of the host's after the other.
type Vsock struct {
	listener *os.File
	raw      syscall.RawConn

	mu   sync.Mutex // guards conn; not held over I/O
	conn *os.File   // nil: no host is connected
}

// Listen makes the agent reachable on a port, and tells a host that waits for it.
func Listen(port uint32) (*Vsock, error) {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, errdefs.Wrap(err, "open a vsock socket (does the kernel have a driver of virtio vsock?)")
	}
	f := os.NewFile(uintptr(fd), "vsock")
	err = unix.Bind(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: port})
	if err == nil {
		err = unix.Listen(fd, 1)
	}
	var raw syscall.RawConn
	if err == nil {
		raw, err = f.SyscallConn()
	}
	if err != nil {
		_ = f.Close()
		return nil, errdefs.Wrap(err, "listen on vsock port %d", port)
	}
	ring(port)
	return &Vsock{listener: f, raw: raw}, nil
}

// ring connects to the host's port and hangs up. That nobody listens there means
// that nobody waits.
func ring(port uint32) {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return
	}
	_ = unix.Connect(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_HOST, Port: port})
	_ = unix.Close(fd)
}

func (v *Vsock) current() *os.File {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.conn
}

// hangUp forgets a connection.
func (v *Vsock) hangUp(conn *os.File) {
	v.mu.Lock()
	if v.conn == conn {
		v.conn = nil
	}
	v.mu.Unlock()
	_ = conn.Close()
}

// Read implements guest.Port: a connection that broke is one that has ended.
func (v *Vsock) Read(p []byte) (int, error) {
	conn := v.current()
	if conn == nil {
		return 0, io.EOF
	}
	n, err := conn.Read(p)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		v.hangUp(conn)
		err = io.EOF
	}
	return n, err
}

// Write implements guest.Port.
func (v *Vsock) Write(p []byte) (int, error) {
	conn := v.current()
	if conn == nil {
		return 0, io.EOF
	}
	n, err := conn.Write(p)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		v.hangUp(conn)
		err = io.EOF
	}
	return n, err
}

// SetDeadline implements guest.Port.
func (v *Vsock) SetDeadline(t time.Time) error {
	conn := v.current()
	if conn == nil {
		return nil
	}
	if err := conn.SetDeadline(t); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// WaitConnected returns when a host is connected.
func (v *Vsock) WaitConnected() error {
	if v.current() != nil {
		return nil
	}
	var fd int
	var err error
	if rerr := v.raw.Read(func(l uintptr) bool {
		fd, _, err = unix.Accept4(int(l), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		// A host that gave up meanwhile is none.
		return !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.ECONNABORTED)
	}); rerr != nil {
		return rerr
	}
	if err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.conn = os.NewFile(uintptr(fd), "vsock")
	return nil
}

// Close ends the listening and the connection.
func (v *Vsock) Close() error {
	err := v.listener.Close()
	if conn := v.current(); conn != nil {
		v.hangUp(conn)
	}
	return err
}
