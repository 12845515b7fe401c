package qemuproc

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"

	"banger/internal/daemon/qemuproc/qmp"
	"banger/internal/errdefs"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/dirsock"
	"banger/internal/hypervisor/vmmlog"
	"banger/internal/paths"
	"banger/internal/sysexec"
)

// machine is one running QEMU.
type machine struct {
	driver *Driver
	dir    string
	handle hypervisor.Handle
	proc   *sysexec.Proc
	log    *os.File
	heard  *heard
	turn   chan struct{} // holds a token while nobody asks how the guest is: the last answer counts

	life context.Context // ends with the process, or at Close
	end  context.CancelFunc

	done     chan struct{} // closed when the process has ended
	exit     hypervisor.Exit
	released chan struct{} // closed by Close
	watcher  sync.WaitGroup

	// mu guards what follows; a leaf, not held over I/O.
	mu     sync.Mutex
	closed bool
	client *qmp.Client // nil: lost, dialed anew by the next use
	agent  *agentConn  // the open guest channel
}

var (
	_ hypervisor.Machine = (*machine)(nil)
	_ hypervisor.Pauser  = (*machine)(nil)
)

func (d *Driver) newMachine(dir string, proc *sysexec.Proc, h hypervisor.Handle, client *qmp.Client, log *os.File, heard *heard) *machine {
	m := &machine{
		driver: d, dir: dir, handle: h, proc: proc, client: client, log: log, heard: heard,
		turn: make(chan struct{}, 1), done: make(chan struct{}), released: make(chan struct{}),
	}
	m.life, m.end = context.WithCancel(context.Background())
	m.turn <- struct{}{}
	m.watcher.Add(2)
	go m.watch()
	m.watcher.Go(m.followStall)
	go func() {
		defer m.watcher.Done()
		vmmlog.Bound([]vmmlog.Log{{Dir: dir, Name: paths.ConsoleLog}, {Dir: dir, Name: paths.VMMLog}}, m.proc.Done(), m.released, d.log)
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
	m.end()
	e := m.proc.Exit()
	m.exit = hypervisor.Exit{Known: e.Known, Code: e.Code, Signal: e.Signal}
	if !e.Known || e.Code != 0 || e.Signal != 0 {
		m.exit.Detail = vmmlog.Last(m.log, 10, strip)
	}
	m.mu.Lock()
	client := m.client
	m.client = nil
	m.mu.Unlock()
	if client != nil {
		_ = client.Close()
	}
	close(m.done)
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
	client, agent := m.client, m.agent
	m.client = nil
	m.mu.Unlock()
	close(m.released)
	m.end()
	m.watcher.Wait()
	var errs []error
	if client != nil {
		errs = append(errs, client.Close())
	}
	if agent != nil {
		errs = append(errs, agent.Close())
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
		return errdefs.Wrap(err, "kill QEMU")
	}
	select {
	case <-m.done:
	case <-m.released:
	}
	return nil
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

// execute runs one command, over a new connection when the old one is lost.
func (m *machine) execute(ctx context.Context, what, command string, args, result any) error {
	client, err := m.monitor(ctx)
	if err == nil {
		err = client.Execute(ctx, command, args, result)
	}
	switch {
	case err == nil:
		return nil
	case m.ended():
		return errdefs.Precondition("%s: the VMM has ended", what)
	case ctx.Err() != nil:
		return errdefs.Wrap(context.Cause(ctx), "%s", what)
	case errors.Is(err, errClosed):
		return err
	case errors.Is(err, qmp.ErrClosed):
		return errdefs.Unavailable("%s: %w", what, err)
	}
	return errdefs.Internal("%s: %w", what, err)
}

func (m *machine) ended() bool {
	select {
	case <-m.proc.Done():
		return true
	default:
		return false
	}
}

// monitor returns the live connection, or makes one.
func (m *machine) monitor(ctx context.Context) (*qmp.Client, error) {
	m.mu.Lock()
	client, closed := m.client, m.closed
	m.mu.Unlock()
	if closed {
		return nil, errClosed
	}
	if client != nil {
		select {
		case <-client.Done():
		default:
			return client, nil
		}
	}
	fresh, err := m.driver.connect(ctx, m.dir, m.handle.PID, m.heard)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed || m.client != client {
		// Closed meanwhile, or somebody else was faster: QEMU serves one connection.
		defer fresh.Close()
		if m.client == nil {
			return nil, qmp.ErrClosed
		}
		return m.client, nil
	}
	m.client = fresh
	m.heard.poke() // what was said meanwhile nobody heard
	return fresh, nil
}

// agentConn is the guest channel; closing it makes room for the next one.
type agentConn struct {
	*net.UnixConn
	m    *machine
	once sync.Once
}

func (c *agentConn) Close() error {
	err := c.UnixConn.Close()
	c.once.Do(func() {
		c.m.mu.Lock()
		defer c.m.mu.Unlock()
		if c.m.agent == c {
			c.m.agent = nil
		}
	})
	return err
}

// DialAgent implements hypervisor.Machine.
func (m *machine) DialAgent(ctx context.Context) (net.Conn, error) {
	m.mu.Lock()
	busy, closed := m.agent != nil, m.closed
	m.mu.Unlock()
	switch {
	case closed:
		return nil, errClosed
	case busy:
		return nil, errdefs.Precondition("dial the agent: its channel is open already")
	case m.ended():
		return nil, errdefs.Precondition("dial the agent: the VMM has ended")
	}
	conn, err := dirsock.Dial(ctx, m.dir, paths.AgentSocket)
	if err != nil {
		return nil, errdefs.Unavailable("dial the agent: %w", err)
	}
	c := &agentConn{UnixConn: conn, m: m}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.agent != nil || m.closed {
		_ = conn.Close()
		return nil, errdefs.Precondition("dial the agent: its channel is open already")
	}
	m.agent = c
	return c, nil
}
