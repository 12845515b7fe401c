package usernet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
	"banger/internal/logkey"
	"banger/internal/sysexec"
)

// Reconnecting: a VM whose connection breaks is tried again at once, then with
// growing pauses. One that keeps breaking is given up.
const (
	firstPause  = 50 * time.Millisecond
	lastPause   = 2 * time.Second
	maxFailures = 12
	// steady is how long a connection must have lasted to count as a good one.
	steady = 10 * time.Second
)

// attachment keeps one VM connected to its network.
//
// A broken connection does not say whether the VM has ended. If nobody listens
// on the socket any more, it has. If the same process listens, it is the same
// VM, and its connections live on. If another process listens, the VM was
// started anew and gets a new network.
type attachment struct {
	vm     string
	socket string
	number uint64
	host   host

	connected chan struct{} // closed after the first attempt
	err       error         // of the first attempt; valid after connected
	ended     chan struct{} // closed when nothing is left of it
	why       error         // it ended; valid after ended
	cancel    context.CancelCauseFunc
	online    atomic.Pointer[peer] // who is at the other end now
}

// errDetached is why an attachment ends that was told to.
var errDetached = errdefs.New(errdefs.ClassCanceled, "the vm was detached")

// listenPatience is how long an attachment may wait for the VMM to listen: QEMU
// opens its sockets on the side and may run the guest before that is done.
const listenPatience = 2 * time.Second

// attach starts an attachment. With patience it waits for the VMM to listen.
// gone is called, on its goroutine, when it has ended.
func attach(vm, socket string, patience time.Duration, number uint64, h host, gone func(*attachment)) *attachment {
	ctx, cancel := context.WithCancelCause(context.Background())
	a := &attachment{vm: vm, socket: socket, number: number, host: h, cancel: cancel,
		connected: make(chan struct{}), ended: make(chan struct{})}
	go func() {
		a.why = a.run(ctx, patience)
		select {
		case <-a.connected:
		default:
			a.err = a.why
			close(a.connected)
		}
		cancel(nil)
		close(a.ended)
		gone(a)
	}()
	return a
}

// sound reports whether the VM it was attached to is still there and connected.
func (a *attachment) sound() bool {
	who := a.online.Load()
	if who == nil {
		return false
	}
	if who.start == 0 {
		return true // it cannot be told
	}
	start, err := sysexec.StartTime(int(who.pid))
	return err == nil && start == who.start
}

// detach ends it and waits for that.
func (a *attachment) detach() {
	a.cancel(errDetached)
	<-a.ended
}

func (a *attachment) run(ctx context.Context, patience time.Duration) error {
	var (
		stack    *network
		owner    peer
		failures int
		pause    = firstPause
	)
	defer func() {
		if stack != nil {
			stack.Close()
		}
	}()
	log := a.host.log.With(logkey.VM, a.vm)
	for {
		conn, who, err := a.dialPatiently(ctx, patience)
		if err != nil {
			return err
		}
		patience = 0 // who listened once and does not now has ended
		if stack != nil && who != owner {
			stack.Close()
			stack = nil
		}
		if stack == nil {
			if stack, err = newNetwork(a.vm, a.host); err != nil {
				_ = conn.Close()
				return err
			}
			owner = who
		}
		a.online.Store(&who)
		select {
		case <-a.connected:
		default:
			close(a.connected)
		}
		began := time.Now()
		stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
		err = stack.link.run(conn)
		stop()
		a.online.Store(nil)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		log.DebugContext(ctx, "connection to the VMM ended", logkey.Err, err)
		if time.Since(began) > steady {
			failures, pause = 0, firstPause
			continue
		}
		if failures++; failures > maxFailures {
			return errdefs.Unavailable("connection to %s keeps breaking: %w", a.socket, err)
		}
		if failures > 1 {
			if err := wait(ctx, pause); err != nil {
				return err
			}
			pause = min(2*pause, lastPause)
		}
	}
}

// peer is the process at the other end. The zero peer cannot be told from others.
type peer struct {
	pid   int32
	start uint64
}

func (a *attachment) dial(ctx context.Context) (*net.UnixConn, peer, error) {
	conn, err := dialSocket(ctx, a.socket)
	if err != nil {
		if ctx.Err() != nil {
			return nil, peer{}, context.Cause(ctx)
		}
		if nobody(err) {
			return nil, peer{}, errdefs.NotFound("vm %s: nobody listens on its network socket: %w", a.vm, err)
		}
		return nil, peer{}, errdefs.Unavailable("connect to the network socket of vm %s: %w", a.vm, err)
	}
	var who peer
	if cred, err := peerOf(conn); err == nil && cred.Pid > 0 {
		who.pid = cred.Pid
		// A process that ended in between has start time zero, and so differs
		// from what it was.
		who.start, _ = sysexec.StartTime(int(cred.Pid))
	}
	return conn, who, nil
}

// dialPatiently gives the VMM time to listen.
func (a *attachment) dialPatiently(ctx context.Context, patience time.Duration) (*net.UnixConn, peer, error) {
	conn, who, err := a.dial(ctx)
	if patience == 0 || !errors.Is(err, errdefs.ErrNotFound) {
		return conn, who, err
	}
	events, watchErr := watchDir(filepath.Dir(a.socket))
	if watchErr != nil {
		return nil, peer{}, err // there is not even a directory
	}
	defer func() { _ = events.Close() }()
	end := time.Now().Add(patience)
	_ = events.SetReadDeadline(end)
	defer context.AfterFunc(ctx, func() { _ = events.SetReadDeadline(time.Unix(1, 0)) })()
	for {
		// From here on no new file goes unnoticed; look for one made before.
		conn, who, err = a.dial(ctx)
		if !errors.Is(err, errdefs.ErrNotFound) || time.Now().After(end) {
			return conn, who, err
		}
		if errors.Is(err, syscall.ENOENT) {
			_, _ = events.Read(make([]byte, 4096)) // or the deadline, or ctx: all show in dial
		} else {
			// It has a name but does not listen yet, which nothing announces.
			_ = wait(ctx, 2*time.Millisecond)
		}
	}
}

// watchDir returns a file that can be read when dir has a new entry.
func watchDir(dir string) (*os.File, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", dir, err)
	}
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_CREATE|unix.IN_MOVED_TO); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("watch %s: %w", dir, err)
	}
	return os.NewFile(uintptr(fd), "inotify"), nil
}

func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
