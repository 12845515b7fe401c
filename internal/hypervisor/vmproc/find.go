package vmproc

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"time"

	"banger/internal/errdefs"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/dirsock"
	"banger/internal/paths"
	"banger/internal/sysexec"
)

// Bounds of a start. LaunchTime is for the launch, where the caller sets none:
// Firecracker answers some 10 ms after it was started, QEMU 40, and a hundred times that
// on a host that drowns. UndoTime is for the removal of what a failed one made: the
// caller's context may be over by then.
const (
	LaunchTime = time.Minute
	UndoTime   = 10 * time.Second
)

// AnswerTime bounds how long a live VMM may take to answer. Its main loop does so at
// once unless the process is stopped or the host is drowning.
const AnswerTime = 10 * time.Second

// StuckHint is what to do about a VMM that does not.
const StuckHint = "the process runs but does not answer; end the VM: banger vm kill VM"

// ErrEnded is the cause of a context of While when its process has ended.
var ErrEnded = errors.New("the VMM ended")

// While returns a context that ends with ctx, when the process does, and when cancel
// is called. Who talks to a VMM that starts wants it: what this process holds of the
// VMM's sockets keeps them open even when the VMM is gone.
func While(ctx context.Context, proc *sysexec.Proc) (during context.Context, cancel func()) {
	during, end := context.WithCancelCause(ctx)
	go func() {
		select {
		case <-proc.Done():
			end(ErrEnded)
		case <-during.Done():
		}
	}()
	return during, func() { end(nil) }
}

// Attach opens the process of a handle and has a machine made of it, for Driver.Attach.
// Where that fails the process is let go of. name is the program's, for people.
func Attach(name string, h hypervisor.Handle, machine func(*sysexec.Proc) (hypervisor.Machine, error)) (hypervisor.Machine, error) {
	proc, err := sysexec.Find(h.PID, h.StartTime)
	if errors.Is(err, sysexec.ErrGone) {
		return nil, errdefs.NotFound("find %s (pid %d): %w", name, h.PID, err)
	}
	if err != nil {
		return nil, errdefs.Unavailable("find %s (pid %d): %w", name, h.PID, err)
	}
	m, err := machine(proc)
	if err != nil {
		_ = proc.Release()
		return nil, err
	}
	return m, nil
}

// End kills the process of a handle, if it still is that process.
func End(ctx context.Context, pid int, start uint64) error {
	if pid <= 0 {
		return nil
	}
	proc, err := sysexec.Find(pid, start)
	if errors.Is(err, sysexec.ErrGone) {
		return nil
	}
	if err != nil {
		return err
	}
	defer proc.Release()
	return proc.Kill(ctx)
}

// Served finds VMMs that work in the VM directory and inherit the sockets they serve
// there: for control, to the agent and of the network card.
type Served struct {
	Driver string // as in a handle
	Name   string // of the program, for people
	// Greet waits until the VMM says something on its control socket.
	Greet func(ctx context.Context, conn *net.UnixConn) error
}

// RemoveSockets removes what a VMM served in dir.
func (s Served) RemoveSockets(dir string) error {
	return dirsock.Remove(dir, paths.QMPSocket, paths.AgentSocket, paths.NetSocket)
}

// NotRunning refuses to pull the sockets from under a live VMM. Where there is no socket
// there is none: who ends a VMM removes them.
func (s Served) NotRunning(ctx context.Context, dir string) error {
	conn, err := dirsock.Dial(ctx, dir, paths.QMPSocket)
	var pid int
	switch {
	case err == nil:
		pid, _ = dirsock.PeerPID(conn)
		_ = conn.Close()
	case errors.Is(err, fs.ErrNotExist):
		return nil
	default: // it may have stopped listening
		pid, _, err = sysexec.Search(func(pid int) bool { return sysexec.WorksIn(pid, dir) })
		if err != nil {
			return errdefs.Wrap(err, "look for a VMM that runs already")
		}
		if pid == 0 {
			return nil
		}
	}
	return errdefs.Precondition("a VMM (pid %d) runs in %s already", pid, dir)
}

// Find implements hypervisor.Driver.
func (s Served) Find(ctx context.Context, dir string) (hypervisor.Handle, error) {
	answer, cancel := context.WithTimeout(ctx, AnswerTime)
	defer cancel()
	pid, start, err := dirsock.Find(answer, dir, paths.QMPSocket, s.Greet)
	if err != nil {
		return hypervisor.Handle{}, errdefs.Wrap(err, "find %s by its directory", s.Name)
	}
	return hypervisor.Handle{Driver: s.Driver, PID: pid, StartTime: start}, nil
}

// Cleanup implements hypervisor.Driver.
func (s Served) Cleanup(ctx context.Context, dir string, h hypervisor.Handle) error {
	err := End(ctx, h.PID, h.StartTime)
	if err == nil {
		var found hypervisor.Handle
		found, err = s.Find(ctx, dir)
		switch {
		case err == nil:
			err = End(ctx, found.PID, found.StartTime)
		case errors.Is(err, errdefs.ErrNotFound):
			err = nil
		}
	}
	if err == nil {
		err = s.RemoveSockets(dir)
	}
	return errdefs.Wrap(err, "clean up after %s", s.Name)
}

// DialAgent connects to what such a VMM serves for the agent in dir; for Process.Dial.
func DialAgent(ctx context.Context, dir string) (net.Conn, error) {
	conn, err := dirsock.Dial(ctx, dir, paths.AgentSocket)
	if err != nil {
		return nil, errdefs.Unavailable("%w", err)
	}
	return conn, nil
}
