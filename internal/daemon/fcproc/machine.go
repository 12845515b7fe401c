package fcproc

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/daemon/fcproc/fcapi"
	"banger/internal/errdefs"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/vmmlog"
	"banger/internal/paths"
	"banger/internal/sysexec"
)

// machine is one running Firecracker.
type machine struct {
	place  string
	card   bool // it has a network card
	handle hypervisor.Handle
	proc   *sysexec.Proc
	log    *os.File
	api    *fcapi.Client
	bell   *net.UnixListener // nil: the agent is tried now and then

	done     chan struct{} // closed when the process has ended
	exit     hypervisor.Exit
	stall    hypervisor.Stall
	halted   atomic.Bool   // the guest has halted, and we ended the process for it
	released chan struct{} // closed by Close
	watcher  sync.WaitGroup

	// mu guards what follows; a leaf, not held over I/O.
	mu     sync.Mutex
	closed bool
	agent  *agentConn // the open guest channel
}

var (
	_ hypervisor.Machine = (*machine)(nil)
	_ hypervisor.Pauser  = (*machine)(nil)
)

func (d *Driver) newMachine(spec hypervisor.Spec, place string, proc *sysexec.Proc, h hypervisor.Handle, log *os.File, bell *net.UnixListener) *machine {
	m := &machine{
		place: place, card: spec.TapName != "", handle: h, proc: proc, log: log, bell: bell,
		api:  fcapi.New(dialer(place, h.PID)),
		done: make(chan struct{}), released: make(chan struct{}),
	}
	logs := []vmmlog.Log{
		{Dir: spec.Dir, Name: paths.ConsoleLog, Look: m.noticeHalt},
		{Dir: spec.Dir, Name: paths.VMMLog, Links: 2, Sparse: true},
		{Dir: place, Name: paths.MetricsFile, Sparse: true},
	}
	m.watcher.Add(2)
	go m.watch()
	go func() {
		defer m.watcher.Done()
		vmmlog.Bound(logs, m.proc.Done(), m.released, d.log)
	}()
	return m
}

// watch waits for the end of the process.
func (m *machine) watch() {
	defer m.watcher.Done()
	select {
	case <-m.released:
		return
	case <-m.proc.Done():
	}
	e := m.proc.Exit()
	if m.halted.Load() {
		e = sysexec.Exit{Known: true}
	}
	m.exit = hypervisor.Exit{Known: e.Known, Code: e.Code, Signal: e.Signal}
	if !e.Known || e.Code != 0 || e.Signal != 0 {
		m.exit.Detail = vmmlog.Last(m.log, 10, strip)
	}
	m.api.Close()
	m.mu.Lock()
	agent := m.agent
	m.mu.Unlock()
	if agent != nil {
		agent.cancel() // nobody will take it any more
	}
	close(m.done)
}

// lastWords are what a kernel prints, whatever its log level, before it stops for good.
var lastWords = []string{"reboot: System halted", "reboot: Power down"}

// noticeHalt ends a machine whose guest was powered off by its own means. Firecracker
// has no power to cut: the kernel says so on the console, stops the processor, and
// nothing ever happens again. Who can write to the console in the guest could end the
// guest anyway.
func (m *machine) noticeHalt(console *os.File) {
	line := vmmlog.Last(console, 1, nil)
	for _, words := range lastWords {
		if strings.HasSuffix(line, words) {
			m.halted.Store(true)
			_ = m.proc.Signal(unix.SIGKILL) // gone is as good
		}
	}
}

var errClosed = errdefs.Precondition("this connection to the VMM was closed")

// Handle implements hypervisor.Machine.
func (m *machine) Handle() hypervisor.Handle { return m.handle }

// Done implements hypervisor.Machine.
func (m *machine) Done() <-chan struct{} { return m.done }

// Exit implements hypervisor.Machine.
func (m *machine) Exit() hypervisor.Exit {
	select {
	case <-m.done:
		return m.exit
	default:
		return hypervisor.Exit{}
	}
}

// Close implements hypervisor.Machine.
func (m *machine) Close() error {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return nil
	}
	m.closed = true
	agent := m.agent
	m.mu.Unlock()
	close(m.released)
	m.watcher.Wait()
	m.api.Close()
	var errs []error
	if agent != nil {
		errs = append(errs, agent.Close())
	}
	if m.bell != nil {
		errs = append(errs, m.bell.Close())
	}
	return errors.Join(append(errs, m.log.Close(), m.proc.Release())...)
}

// Kill implements hypervisor.Machine.
func (m *machine) Kill(ctx context.Context) error {
	select {
	case <-m.released:
		return errClosed
	default:
	}
	if err := m.proc.Kill(ctx); err != nil {
		return errdefs.Wrap(err, "kill Firecracker")
	}
	select {
	case <-m.done:
	case <-m.released:
	}
	return nil
}

// PowerButton implements hypervisor.Machine. There is no button: a guest takes
// Ctrl-Alt-Del as the order to end, once its keyboard driver is there.
func (m *machine) PowerButton(ctx context.Context) error {
	return m.use(ctx, "press the power button", func() error {
		err := m.api.Put(ctx, fcapi.PathActions, fcapi.Action{Type: fcapi.ActionCAD})
		if !errors.Is(err, io.EOF) && !errors.Is(err, unix.ECONNRESET) {
			return err
		}
		// The guest was faster than the answer.
		select {
		case <-m.proc.Done():
			return nil
		case <-ctx.Done():
			return err
		}
	})
}

// SetLink implements hypervisor.Machine. Firecracker's card has no cable to pull.
func (m *machine) SetLink(ctx context.Context, up bool) error {
	return m.use(ctx, "set the network link", func() error {
		if up == m.card {
			return nil
		}
		return errdefs.Unsupported("a running Firecracker VM can neither lose nor get its network").
			WithHint("stop and start the VM")
	})
}

// Stalled implements hypervisor.Machine. A guest of Firecracker's never stalls: that
// the host has no space is an I/O error in it.
func (m *machine) Stalled() (since time.Time, changed <-chan struct{}) { return m.stall.Stalled() }

// Continue implements hypervisor.Machine.
func (m *machine) Continue(ctx context.Context) error {
	return m.use(ctx, "continue", func() error { return nil })
}

// Pause implements hypervisor.Pauser.
func (m *machine) Pause(ctx context.Context) error {
	return m.use(ctx, "pause", func() error {
		return m.api.Patch(ctx, fcapi.PathVM, fcapi.VM{State: fcapi.StatePaused})
	})
}

// Resume implements hypervisor.Pauser.
func (m *machine) Resume(ctx context.Context) error {
	return m.use(ctx, "resume", func() error {
		return m.api.Patch(ctx, fcapi.PathVM, fcapi.VM{State: fcapi.StateResumed})
	})
}

// use runs a call of the API and says what its failure means.
func (m *machine) use(ctx context.Context, what string, call func() error) error {
	m.mu.Lock()
	closed := m.closed
	m.mu.Unlock()
	if closed {
		return errClosed
	}
	var err error
	if !m.ended() {
		if err = call(); err == nil {
			return nil
		}
	}
	var fault *fcapi.Fault
	switch {
	case m.ended():
		return errdefs.Precondition("%s: the VMM has ended", what)
	case ctx.Err() != nil:
		return errdefs.Wrap(context.Cause(ctx), "%s", what)
	case errors.As(err, &fault):
		return errdefs.Precondition("%s: %s", what, fault.Message)
	case errdefs.ClassOf(err) == errdefs.ClassUnsupported:
		return errdefs.Wrap(err, "%s", what)
	}
	return errdefs.Unavailable("%s: %w", what, err)
}

func (m *machine) ended() bool {
	select {
	case <-m.proc.Done():
		return true
	default:
		return false
	}
}
