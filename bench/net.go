package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/guest"
)

// Addresses of the guest with sshd: those that QEMU's built-in network gives, used
// on a tap too.
const (
	guestAddress = "10.0.2.15"
	hostAddress  = "10.0.2.2"
)

// guestNet is how that guest is configured. It asks nobody for names.
var guestNet = guest.NetConf{Address: guestAddress + "/24", Gateway: hostAddress}

// thread is one thread of the system that lives as long as it is wanted. What is
// true of threads, not of processes, holds for what it starts: its network
// namespace, and that its end ends its children (PDEATHSIG).
type thread struct{ tasks chan func() }

func newThread() *thread {
	t := &thread{tasks: make(chan func())}
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		for task := range t.tasks {
			task()
		}
	}()
	return t
}

// do runs fn on the thread and waits for it.
func (t *thread) do(fn func() error) error {
	done := make(chan error, 1)
	t.tasks <- func() { done <- fn() }
	return <-done
}

// timed is timed for a process that the thread starts.
func (t *thread) timed(cmd *exec.Cmd) (time.Duration, error) {
	return timedBy(cmd, func() error { return t.do(cmd.Start) })
}

func (t *thread) close() { close(t.tasks) }

// wire is the network between ssh and the guest with sshd: a tap in a network
// namespace of its own, in which both QEMU and ssh run. Packets are as large as
// the guest's card takes them and no program stands between them and the host's
// TCP; nothing is faster without a vhost device.
//
// Only root may have that. Others get QEMU's built-in network, which is TCP done
// once more in QEMU's main loop.
type wire struct {
	thread *thread  // starts QEMU and ssh
	tap    *os.File // nil: the built-in network
	port   int      // of the loopback, for the built-in network
}

const tapName = "bench0"

func newWire() (*wire, error) {
	w := &wire{thread: newThread()}
	err := w.thread.do(func() (err error) {
		if os.Geteuid() != 0 {
			return unix.EPERM
		}
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		if w.tap, err = openTap(tapName); err != nil {
			return err
		}
		for _, args := range [][]string{
			{"addr", "add", hostAddress + "/24", "dev", tapName}, {"link", "set", tapName, "up"},
		} {
			if _, err := timed(exec.Command("ip", args...)); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		return w, nil
	}
	w.close()
	if !errors.Is(err, unix.EPERM) && !errors.Is(err, exec.ErrNotFound) && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("make a network for ssh: %w", err)
	}
	w = &wire{thread: newThread()}
	if w.port, err = freePort(); err != nil {
		w.close()
		return nil, err
	}
	return w, nil
}

func openTap(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: "/dev/net/tun", Err: err}
	}
	request, err := unix.NewIfreq(name)
	if err == nil {
		// With a header that says where a packet may be cut, it need not be.
		request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("make a tap: %w", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// netdev is the network's other end on QEMU's command line, and the files it gets
// for that, the first of which is descriptor fd.
func (w *wire) netdev(fd int) (string, []*os.File) {
	if w.tap == nil {
		return fmt.Sprintf("user,id=net0,hostfwd=tcp:127.0.0.1:%d-:22", w.port), nil
	}
	return fmt.Sprintf("tap,id=net0,fd=%d,vhost=off", fd), []*os.File{w.tap}
}

// server is where ssh finds sshd.
func (w *wire) server() (address string, port int) {
	if w.tap == nil {
		return "127.0.0.1", w.port
	}
	return guestAddress, 22
}

func (w *wire) String() string {
	if w.tap == nil {
		return "QEMU's built-in network"
	}
	return "tap"
}

func (w *wire) close() {
	w.thread.close()
	if w.tap != nil {
		_ = w.tap.Close()
	}
}
