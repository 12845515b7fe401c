// Package port opens the agent's end of the channel and makes it usable as a
// guest.Port: a virtio-serial port, or vsock.
//
// While no host is connected a virtio-serial port reports a hang-up and reads as
// end of file at once, so neither reading nor polling may be repeated then for longer
// than it takes to be sure. It is registered edge-triggered with the runtime's poller,
// and WaitConnected sleeps until the state changes.
package port

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
	"banger/internal/guest/agent/uevent"
)

const sysPorts = "/sys/class/virtio-ports"

// Port is an open virtio-serial port.
type Port struct {
	*os.File
	raw syscall.RawConn
}

// Open waits until the port called name is there and opens it.
func Open(name string, timeout time.Duration) (*Port, error) {
	var dev string
	err := uevent.Until("virtio-ports", timeout, func() bool {
		dev = find(name)
		return dev != ""
	})
	if err != nil {
		return nil, errdefs.Wrap(err, "wait for virtio-serial port %s", name)
	}
	fd, err := unix.Open(dev, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, errdefs.Wrap(err, "open virtio-serial port %s", name)
	}
	f := os.NewFile(uintptr(fd), dev)
	raw, err := f.SyscallConn()
	if err == nil {
		err = f.SetDeadline(time.Time{}) // fails when the poller did not take the file
	}
	if err != nil {
		_ = f.Close()
		return nil, errdefs.Wrap(err, "register virtio-serial port %s", name)
	}
	return &Port{File: f, raw: raw}, nil
}

// A host that hangs up and another that connects at once are told of by messages
// that may come later than the new host's first bytes. An end of file is therefore
// believed only when nobody is connected for this long.
const (
	hangupLooks = 10
	hangupPause = 10 * time.Millisecond
)

// Read returns io.EOF when the host has hung up and none is there in its place: the
// bytes of a new one tell by themselves that they begin a conversation.
func (p *Port) Read(b []byte) (int, error) {
	for {
		n, err := p.File.Read(b)
		if n > 0 || !errors.Is(err, io.EOF) || !p.connectedSoon() {
			return n, err
		}
	}
}

func (p *Port) connectedSoon() bool {
	for range hangupLooks {
		if p.connected() {
			return true
		}
		<-time.After(hangupPause)
	}
	return false
}

func (p *Port) connected() (is bool) {
	_ = p.raw.Control(func(fd uintptr) { is = connected(fd) })
	return is
}

func connected(fd uintptr) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n >= 0 && fds[0].Revents&unix.POLLHUP == 0
}

func find(name string) string {
	entries, _ := os.ReadDir(sysPorts)
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(sysPorts, e.Name(), "name"))
		if err == nil && strings.TrimSpace(string(b)) == name {
			return filepath.Join("/dev", e.Name())
		}
	}
	return ""
}

// WaitConnected returns when a host is connected.
func (p *Port) WaitConnected() error {
	if err := p.SetDeadline(time.Time{}); err != nil {
		return err
	}
	return p.raw.Read(connected)
}
