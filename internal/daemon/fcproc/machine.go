package fcproc

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"time"

	"banger/internal/daemon/fcproc/fcapi"
	"banger/internal/errdefs"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/vmmlog"
	"banger/internal/hypervisor/vmproc"
	"banger/internal/logkey"
	"banger/internal/paths"
	"banger/internal/sysexec"
)

// machine is one running Firecracker.
type machine struct {
	*vmproc.Process
	place string
	card  bool // it has a network card
	api   *fcapi.Client
	rung  chan struct{} // holds one ring of the bell that nobody has waited for
	meter *meter
}

var (
	_ hypervisor.Machine = (*machine)(nil)
	_ hypervisor.Pauser  = (*machine)(nil)
)

func (d *Driver) newMachine(spec hypervisor.Spec, place string, proc *sysexec.Proc, h hypervisor.Handle, log *os.File, bell *net.UnixListener) *machine {
	m := &machine{
		place: place, card: spec.LinkUp, rung: make(chan struct{}, 1),
		api: fcapi.New(dialer(place, h.PID)), meter: newMeter(spec.Dir),
	}
	m.Process = vmproc.Watch(vmproc.Config{
		Name: "Firecracker", Handle: h, Proc: proc, Log: log, Strip: strip, HangUp: m.hangUp,
	})
	if bell != nil { // without one the agent is tried now and then
		m.Go(func() { m.answerBell(bell) })
	}
	m.BoundLogs([]vmmlog.Log{
		{Dir: spec.Dir, Name: paths.ConsoleLog, Look: m.noticeHalt},
		{Dir: spec.Dir, Name: paths.VMMLog, Links: 2, Sparse: true},
		{Dir: place, Name: paths.MetricsFile, Sparse: true, Look: func(f *os.File) {
			if _, err := m.meter.read(m.Life(), f); err != nil && m.Life().Err() == nil {
				d.log.Warn("add up the metrics", logkey.VM, spec.VMID, logkey.Err, err)
			}
		}},
	}, d.log)
	return m
}

func (m *machine) hangUp() error {
	m.api.Close()
	return nil
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
			m.Off()
		}
	}
}

// endTime is how long a VMM that has let go of a call may take to end.
const endTime = time.Second

// PowerButton implements hypervisor.Machine. There is no button: a guest takes
// Ctrl-Alt-Del as the order to end, once its keyboard driver is there.
func (m *machine) PowerButton(ctx context.Context) error {
	return m.use(ctx, "press the power button", func() error {
		err := m.api.Put(ctx, fcapi.PathActions, fcapi.Action{Type: fcapi.ActionCAD})
		var fault *fcapi.Fault
		if err == nil || errors.As(err, &fault) {
			return err
		}
		// The guest may have been faster than the answer, which shows in several ways.
		select {
		case <-m.Done():
			return nil
		case <-time.After(endTime):
		case <-ctx.Done():
		}
		return err
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

// Continue implements hypervisor.Machine. A guest of Firecracker's never stalls: that
// the host has no space is an I/O error in it.
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
	return m.Use(ctx, what, func() error {
		err := call()
		var fault *fcapi.Fault
		switch {
		case err == nil || errdefs.ClassOf(err) == errdefs.ClassUnsupported:
			return err
		case errors.As(err, &fault):
			return errdefs.Precondition("%s", fault.Message)
		}
		return errdefs.Unavailable("%w", err)
	})
}
