package fakevm

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"time"

	"banger/internal/errdefs"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/dirsock"
	"banger/internal/hypervisor/vmproc"
	"banger/internal/paths"
	"banger/internal/sysexec"
)

// command is one line on the control socket; answer is the line that comes back.
type command struct {
	Verb    string `json:"verb"`
	Up      bool   `json:"up,omitempty"`      // link
	Stalled bool   `json:"stalled,omitempty"` // await: what is known already
}

type answer struct {
	Error   string `json:"error,omitempty"`
	Stalled bool   `json:"stalled,omitempty"`
}

// The verbs of the control socket.
const (
	verbPing  = "ping"
	verbLink  = "link"
	verbPower = "power"
	verbBegin = "begin" // let the guest run
	verbAwait = "await" // answers when the guest has stalled, or no longer is
	verbCont  = "continue"
)

// ask sends one command over conn and reads the answer.
func ask(ctx context.Context, conn net.Conn, c command) (a answer, err error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := json.NewEncoder(conn).Encode(c); err != nil {
		return a, err
	}
	line, err := bufio.NewReaderSize(conn, 4<<10).ReadSlice('\n')
	if err != nil {
		return a, err
	}
	if err := json.Unmarshal(line, &a); err != nil {
		return a, err
	}
	if a.Error != "" {
		return a, refused(a.Error)
	}
	return a, nil
}

// refused is the child's answer, as opposed to a connection that broke.
type refused string

func (r refused) Error() string { return string(r) }

// fakeMachine is one running fake VM.
type fakeMachine struct {
	*vmproc.Process
	dir   string
	disks []hypervisor.Disk
	stall vmproc.Stall
}

var (
	_ hypervisor.Machine = (*fakeMachine)(nil)
	_ hypervisor.Resizer = (*fakeMachine)(nil)
)

func newFakeMachine(spec hypervisor.Spec, h hypervisor.Handle, proc *sysexec.Proc, log *os.File) *fakeMachine {
	m := &fakeMachine{dir: spec.Dir, disks: spec.Disks}
	m.Process = vmproc.Watch(vmproc.Config{Name: "the fake VM", Handle: h, Proc: proc, Log: log, Stall: &m.stall})
	m.Go(m.followStall)
	return m
}

// followStall keeps what Stalled says true. It waits for what differs from that, so
// it asks anew when another answer changed it.
func (m *fakeMachine) followStall() {
	for {
		since, changed := m.stall.Stalled()
		ctx, cancel := context.WithCancel(m.Life())
		go func() {
			select {
			case <-changed:
				cancel()
			case <-ctx.Done():
			}
		}()
		err := m.control(ctx, command{Verb: verbAwait, Stalled: !since.IsZero()})
		anew := ctx.Err() != nil && m.Life().Err() == nil
		cancel()
		if err != nil && !anew {
			return // it has ended, or is about to
		}
	}
}

// begin waits for the child to answer and lets its guest run.
func (m *fakeMachine) begin(ctx context.Context, linkUp bool) error {
	up, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(m.Life(), func() {
		<-m.Done()
		e := m.Exit()
		cancel(errdefs.Unavailable("it ended with status %d: %s", e.Code, e.Detail).WithHint("see %s", paths.VMMLog))
	})()
	for _, c := range []command{{Verb: verbPing}, {Verb: verbLink, Up: linkUp}, {Verb: verbBegin}} {
		err := m.control(up, c)
		var no refused
		if err != nil && !errors.As(err, &no) {
			// It hung up, so it is about to end; that says more.
			<-up.Done()
			return context.Cause(up)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// control runs one command over a connection of its own.
func (m *fakeMachine) control(ctx context.Context, c command) error {
	return m.Use(ctx, c.Verb+" the fake VM", func() error {
		conn, err := dirsock.Dial(ctx, m.dir, paths.QMPSocket)
		if err == nil {
			var a answer
			if a, err = ask(ctx, conn, c); err == nil {
				m.stall.Set(a.Stalled)
			}
			_ = conn.Close()
		}
		if err != nil {
			return errdefs.Unavailable("%w", err)
		}
		return nil
	})
}

// PowerButton implements hypervisor.Machine.
func (m *fakeMachine) PowerButton(ctx context.Context) error {
	return m.control(ctx, command{Verb: verbPower})
}

// SetLink implements hypervisor.Machine.
func (m *fakeMachine) SetLink(ctx context.Context, up bool) error {
	return m.control(ctx, command{Verb: verbLink, Up: up})
}

// Continue implements hypervisor.Machine.
func (m *fakeMachine) Continue(ctx context.Context) error {
	return m.control(ctx, command{Verb: verbCont})
}

// DialAgent implements hypervisor.Machine.
func (m *fakeMachine) DialAgent(ctx context.Context) (net.Conn, error) {
	return m.Dial(func() (net.Conn, error) { return vmproc.DialAgent(ctx, m.dir) })
}

// ResizeDisk implements hypervisor.Resizer. There is no guest to be told.
func (m *fakeMachine) ResizeDisk(_ context.Context, serial string, bytes int64) error {
	for _, d := range m.disks {
		if d.Serial == serial {
			return errdefs.Wrap(os.Truncate(d.Path, bytes), "grow disk %s", serial)
		}
	}
	return errdefs.NotFound("the machine has no disk %q", serial)
}
