// Package uevent waits for devices with the kernel's own announcements, so that
// the agent never has to look for one again and again.
package uevent

import (
	"bytes"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
)

// Listener receives the kernel's uevents.
type Listener struct{ f *os.File }

// Listen subscribes to uevents. What happens after it returned is not missed.
func Listen() (*Listener, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, errdefs.Wrap(err, "open uevent socket")
	}
	// A burst of devices must not overflow the queue; an overflow is no error
	// though, because every event makes the caller look at everything.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 1<<20)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		_ = unix.Close(fd)
		return nil, errdefs.Wrap(err, "subscribe to uevents")
	}
	return &Listener{f: os.NewFile(uintptr(fd), "uevent")}, nil
}

// Close ends the subscription and any Wait.
func (l *Listener) Close() error { return l.f.Close() }

// Wait returns when an event of subsystem has come, at the latest at deadline,
// with os.ErrDeadlineExceeded then. The zero deadline is none.
func (l *Listener) Wait(subsystem string, deadline time.Time) error {
	if err := l.f.SetReadDeadline(deadline); err != nil {
		return err
	}
	key := append([]byte("\x00SUBSYSTEM="), subsystem...)
	buf := make([]byte, 16<<10)
	for {
		n, err := l.f.Read(buf)
		if errors.Is(err, unix.ENOBUFS) {
			return nil // events were lost: one of them may have been it
		}
		if err != nil {
			return err
		}
		if bytes.Contains(buf[:n], key) {
			return nil
		}
	}
}

// Until calls found now and after every event of subsystem, until it reports
// true or timeout has passed.
func Until(subsystem string, timeout time.Duration, found func() bool) error {
	if found() {
		return nil
	}
	l, err := Listen()
	if err != nil {
		return err
	}
	defer l.Close()
	deadline := time.Now().Add(timeout)
	for !found() {
		if err := l.Wait(subsystem, deadline); err != nil {
			return err
		}
	}
	return nil
}
