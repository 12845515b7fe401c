package qemuproc

import (
	"context"
	"errors"
	"net"
	"os"
	"slices"
	"sync"

	"banger/internal/daemon/qemuproc/qmp"
	"banger/internal/errdefs"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/vmmlog"
	"banger/internal/hypervisor/vmproc"
	"banger/internal/paths"
	"banger/internal/sysexec"
)

// machine is one running QEMU.
type machine struct {
	*vmproc.Process
	driver  *Driver
	dir     string
	disks   []hypervisor.Disk
	heard   *heard
	turn    chan struct{} // holds a token while nobody asks how the guest is: the last answer counts
	monitor *monitor
}

var (
	_ hypervisor.Machine = (*machine)(nil)
	_ hypervisor.Pauser  = (*machine)(nil)
	_ hypervisor.Resizer = (*machine)(nil)
)

func (d *Driver) newMachine(spec hypervisor.Spec, proc *sysexec.Proc, h hypervisor.Handle, client *qmp.Client, log *os.File, heard *heard) *machine {
	m := &machine{driver: d, dir: spec.Dir, disks: spec.Disks, heard: heard, turn: make(chan struct{}, 1), monitor: &monitor{client: client}}
	m.turn <- struct{}{}
	m.Process = vmproc.Watch(vmproc.Config{
		Name: "QEMU", Handle: h, Proc: proc, Log: log, Strip: strip, Stall: &heard.stall, HangUp: m.monitor.hangUp,
	})
	m.Go(m.followStall)
	m.BoundLogs([]vmmlog.Log{{Dir: spec.Dir, Name: paths.ConsoleLog}, {Dir: spec.Dir, Name: paths.VMMLog}}, d.log)
	return m
}

// PowerButton implements hypervisor.Machine.
func (m *machine) PowerButton(ctx context.Context) error {
	return m.execute(ctx, "press the power button", "system_powerdown", nil, nil)
}

// SetLink implements hypervisor.Machine.
func (m *machine) SetLink(ctx context.Context, up bool) error {
	return m.execute(ctx, "set the network link", "set_link", linkArgs{Name: "net0", Up: up}, nil)
}

// Pause implements hypervisor.Pauser.
func (m *machine) Pause(ctx context.Context) error { return m.execute(ctx, "pause", "stop", nil, nil) }

// Resume implements hypervisor.Pauser.
func (m *machine) Resume(ctx context.Context) error {
	return m.execute(ctx, "resume", "cont", nil, nil)
}

type linkArgs struct {
	Name string `json:"name"`
	Up   bool   `json:"up"`
}

func setLink(ctx context.Context, c *qmp.Client, up bool) error {
	return c.Execute(ctx, "set_link", linkArgs{Name: "net0", Up: up}, nil)
}

// ResizeDisk implements hypervisor.Resizer.
func (m *machine) ResizeDisk(ctx context.Context, serial string, bytes int64) error {
	i := slices.IndexFunc(m.disks, func(d hypervisor.Disk) bool { return d.Serial == serial })
	if i < 0 {
		return errdefs.NotFound("the machine has no disk %q", serial)
	}
	return m.execute(ctx, "grow disk "+serial, "block_resize", map[string]any{"node-name": nodeName(i), "size": bytes}, nil)
}

// execute runs one command, over a new connection when the old one is lost.
func (m *machine) execute(ctx context.Context, what, command string, args, result any) error {
	return m.Use(ctx, what, func() error {
		client, err := m.connection(ctx)
		if err == nil {
			err = client.Execute(ctx, command, args, result)
		}
		if errors.Is(err, qmp.ErrClosed) {
			err = errdefs.Unavailable("%w", err)
		}
		return err
	})
}

// monitor is the connection to QEMU's monitor.
type monitor struct {
	mu     sync.Mutex  // a leaf; guards client
	client *qmp.Client // nil: lost, dialed anew by the next use
}

func (m *monitor) current() *qmp.Client {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.client
}

func (m *monitor) hangUp() error {
	m.mu.Lock()
	client := m.client
	m.client = nil
	m.mu.Unlock()
	if client == nil {
		return nil
	}
	return client.Close()
}

// connection returns the live connection, or makes one.
func (m *machine) connection(ctx context.Context) (*qmp.Client, error) {
	client := m.monitor.current()
	if client != nil {
		select {
		case <-client.Done():
		default:
			return client, nil
		}
	}
	fresh, err := m.driver.connect(ctx, m.dir, m.Handle().PID, m.heard)
	if err != nil {
		return nil, err
	}
	m.monitor.mu.Lock()
	defer m.monitor.mu.Unlock()
	if m.Closed() || m.monitor.client != client {
		// Closed meanwhile, or somebody else was faster: QEMU serves one connection.
		defer fresh.Close()
		if m.monitor.client == nil {
			return nil, qmp.ErrClosed
		}
		return m.monitor.client, nil
	}
	m.monitor.client = fresh
	m.heard.poke() // what was said meanwhile nobody heard
	return fresh, nil
}

// DialAgent implements hypervisor.Machine.
func (m *machine) DialAgent(ctx context.Context) (net.Conn, error) {
	return m.Dial(func() (net.Conn, error) { return vmproc.DialAgent(ctx, m.dir) })
}
