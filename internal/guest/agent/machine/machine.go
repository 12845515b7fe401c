// Package machine is what the agent does to the VM as a whole: its identity, the
// state of its init system, and its end.
package machine

import (
	"context"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
	"banger/internal/guest"
	"banger/internal/guest/agent/boot"
	"banger/internal/guest/agent/ifconf"
	"banger/internal/guest/agent/proc"
)

// Machine is the VM the agent runs in. It implements serve.Machine.
type Machine struct {
	log        *slog.Logger
	spawner    *proc.Spawner
	initSystem string
	reset      bool            // only a reset ends the machine
	late       <-chan struct{} // closed when the late modules are loaded

	mu     sync.Mutex // one Configure at a time; guards bootID
	bootID string
}

// New makes a Machine as the boot found it. late is closed when the network card's
// driver was loaded.
func New(log *slog.Logger, spawner *proc.Spawner, state boot.State, late <-chan struct{}) *Machine {
	return &Machine{log: log, spawner: spawner, initSystem: state.Init, reset: state.MMIO, late: late}
}

// Configure applies what is set. It may be repeated.
func (m *Machine) Configure(ctx context.Context, c *guest.Configure) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if ctx.Err() != nil {
		return context.Cause(ctx) // another host may have said otherwise since
	}
	var plan ifconf.Plan
	if c.Net != nil {
		var err error
		if plan, err = ifconf.Parse(c.Net); err != nil {
			return err
		}
	}
	if c.UnixNanos != 0 {
		if err := setClock(c.UnixNanos); err != nil {
			return err
		}
	}
	if c.BootID != "" {
		m.bootID = c.BootID
	}
	if c.Hostname != "" {
		if err := m.setHostname("/etc", c.Hostname); err != nil {
			return err
		}
	}
	m.makeDirs(c.Dirs)
	if err := ifconf.Loopback(); err != nil {
		return err
	}
	select {
	case <-m.late:
	case <-ctx.Done():
		return errdefs.Wrap(context.Cause(ctx), "wait for the network driver")
	}
	if c.Net == nil {
		if card, ok := ifconf.FindCard(); ok {
			return card.Down()
		}
		return nil
	}
	card, err := ifconf.WaitCard()
	if err != nil {
		return err
	}
	if err := card.Apply(plan); err != nil {
		return err
	}
	if err := m.setDNS("/", card, plan.DNS, plan.Search); err != nil {
		// An image with something odd in its place boots all the same.
		m.log.Warn("the image's programs find no name server", "err", err)
	}
	return nil
}

// setClock sets the wall clock, unless it is right already: a step that is not
// needed would only disturb timers.
func setClock(nanos int64) error {
	off := time.Since(time.Unix(0, nanos))
	if off > -5*time.Millisecond && off < 5*time.Millisecond {
		return nil
	}
	ts := unix.NsecToTimespec(nanos)
	return errdefs.Wrap(unix.ClockSettime(unix.CLOCK_REALTIME, &ts), "set the clock")
}

// run starts a program of the image and waits for its end; its output goes to the
// console. The end of ctx kills it.
func (m *Machine) run(ctx context.Context, stdout *os.File, args ...string) (proc.Status, error) {
	root := proc.User{Name: "root", Home: "/root"}
	env := []string{"PATH=" + proc.DefaultPath, "HOME=/root", "SYSTEMD_PAGER=", "LC_ALL=C"}
	path, err := proc.LookPath(&root, "/", args[0], env)
	if err != nil {
		return proc.Status{}, err
	}
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return proc.Status{}, err
	}
	defer null.Close()
	if stdout == nil {
		stdout = null
	}
	p, err := m.spawner.Start(proc.Spec{
		Path: path, Args: args, Env: env, Dir: "/", User: &root,
		Files: [3]uintptr{null.Fd(), stdout.Fd(), null.Fd()},
	})
	if err != nil {
		return proc.Status{}, err
	}
	stop := context.AfterFunc(ctx, func() { _ = p.Signal(int(unix.SIGKILL)) })
	defer stop()
	status, err := p.Wait()
	if ctx.Err() != nil {
		return status, errdefs.Wrap(context.Cause(ctx), "run %s", args[0])
	}
	return status, err
}

// initKind tells what process 1 is, or is about to become: the kind found at
// boot, unless that init turned out not to be executable.
func (m *Machine) initKind() string {
	if exists(boot.NoInitMark) {
		return "none"
	}
	return m.initSystem
}
