package fakevm

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"banger/internal/errdefs"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/dirsock"
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
	dir    string
	handle hypervisor.Handle
	proc   *sysexec.Proc

	done     chan struct{}
	exit     hypervisor.Exit
	released chan struct{}
	watcher  sync.WaitGroup
	stall    hypervisor.Stall

	life context.Context // ends with the process, or at Close
	end  context.CancelFunc

	mu     sync.Mutex // guards what follows
	closed bool
	agent  *agentConn
}

var _ hypervisor.Machine = (*fakeMachine)(nil)

func newFakeMachine(dir string, h hypervisor.Handle, proc *sysexec.Proc) *fakeMachine {
	m := &fakeMachine{dir: dir, handle: h, proc: proc, done: make(chan struct{}), released: make(chan struct{})}
	m.life, m.end = context.WithCancel(context.Background())
	m.watcher.Go(m.watch)
	m.watcher.Go(m.followStall)
	return m
}

// followStall keeps what Stalled says true. It waits for what differs from that, so
// it asks anew when another answer changed it.
func (m *fakeMachine) followStall() {
	for {
		since, changed := m.stall.Stalled()
		ctx, cancel := context.WithCancel(m.life)
		go func() {
			select {
			case <-changed:
				cancel()
			case <-ctx.Done():
			}
		}()
		err := m.control(ctx, command{Verb: verbAwait, Stalled: !since.IsZero()})
		anew := ctx.Err() != nil && m.life.Err() == nil
		cancel()
		if err != nil && !anew {
			return // it has ended, or is about to
		}
	}
}

func (m *fakeMachine) watch() {
	select {
	case <-m.released:
		return
	case <-m.proc.Done():
	}
	m.end()
	if st := m.proc.State(); st != nil {
		m.exit = hypervisor.Exit{Known: true, Code: st.ExitCode()}
		if ws, ok := st.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			m.exit.Signal = int(ws.Signal())
		}
	}
	if !m.exit.Known || m.exit.Code != 0 {
		b, _ := os.ReadFile(filepath.Join(m.dir, paths.VMMLog))
		m.exit.Detail = strings.TrimSpace(string(b[max(0, len(b)-1024):]))
	}
	close(m.done)
}

// begin waits for the child to answer and lets its guest run.
func (m *fakeMachine) begin(ctx context.Context, linkUp bool) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	over := make(chan struct{})
	defer close(over)
	go func() {
		select {
		case <-m.done:
			e := m.Exit()
			cancel(errdefs.Unavailable("it ended with status %d: %s", e.Code, e.Detail).WithHint("see %s", paths.VMMLog))
		case <-over:
		}
	}()
	for _, c := range []command{{Verb: verbPing}, {Verb: verbLink, Up: linkUp}, {Verb: verbBegin}} {
		err := m.control(ctx, c)
		var no refused
		if err != nil && !errors.As(err, &no) {
			// It hung up, so it is about to end; that says more.
			<-ctx.Done()
			return context.Cause(ctx)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// control runs one command over a connection of its own.
func (m *fakeMachine) control(ctx context.Context, c command) error {
	conn, err := dirsock.Dial(ctx, m.dir, paths.QMPSocket)
	if err == nil {
		var a answer
		if a, err = ask(ctx, conn, c); err == nil {
			m.stall.Set(a.Stalled)
		}
		_ = conn.Close()
	}
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return errdefs.Wrap(context.Cause(ctx), "%s the fake VM", c.Verb)
	case m.ended():
		return errdefs.Precondition("%s the fake VM: it has ended", c.Verb)
	}
	return errdefs.Unavailable("%s the fake VM: %w", c.Verb, err)
}

func (m *fakeMachine) ended() bool {
	select {
	case <-m.proc.Done():
		return true
	default:
		return false
	}
}

var errClosed = errdefs.Precondition("this connection to the VMM was closed")

func (m *fakeMachine) open() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return errClosed
	}
	return nil
}

// Handle implements hypervisor.Machine.
func (m *fakeMachine) Handle() hypervisor.Handle { return m.handle }

// PowerButton implements hypervisor.Machine.
func (m *fakeMachine) PowerButton(ctx context.Context) error {
	if err := m.open(); err != nil {
		return err
	}
	return m.control(ctx, command{Verb: verbPower})
}

// SetLink implements hypervisor.Machine.
func (m *fakeMachine) SetLink(ctx context.Context, up bool) error {
	if err := m.open(); err != nil {
		return err
	}
	return m.control(ctx, command{Verb: verbLink, Up: up})
}

// Stalled implements hypervisor.Machine.
func (m *fakeMachine) Stalled() (since time.Time, changed <-chan struct{}) { return m.stall.Stalled() }

// Continue implements hypervisor.Machine.
func (m *fakeMachine) Continue(ctx context.Context) error {
	if err := m.open(); err != nil {
		return err
	}
	return m.control(ctx, command{Verb: verbCont})
}

// Kill implements hypervisor.Machine.
func (m *fakeMachine) Kill(ctx context.Context) error {
	if err := m.open(); err != nil {
		return err
	}
	if err := m.proc.Kill(ctx); err != nil {
		return errdefs.Wrap(err, "kill the fake VM")
	}
	select {
	case <-m.done:
	case <-m.released:
	}
	return nil
}

// Done implements hypervisor.Machine.
func (m *fakeMachine) Done() <-chan struct{} { return m.done }

// Exit implements hypervisor.Machine.
func (m *fakeMachine) Exit() hypervisor.Exit {
	select {
	case <-m.done:
		return m.exit
	default:
		return hypervisor.Exit{}
	}
}

// Close implements hypervisor.Machine.
func (m *fakeMachine) Close() error {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return nil
	}
	m.closed = true
	agent := m.agent
	m.mu.Unlock()
	close(m.released)
	m.end()
	m.watcher.Wait()
	var err error
	if agent != nil {
		err = agent.Close()
	}
	return errors.Join(err, m.proc.Release())
}

var errAgentOpen = errdefs.Precondition("dial the agent: its channel is open already")

// agentConn is the guest channel; closing it makes room for the next one.
type agentConn struct {
	*net.UnixConn
	m    *fakeMachine
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
func (m *fakeMachine) DialAgent(ctx context.Context) (net.Conn, error) {
	if err := m.open(); err != nil {
		return nil, err
	}
	if m.ended() {
		return nil, errdefs.Precondition("dial the agent: the fake VM has ended")
	}
	m.mu.Lock()
	busy := m.agent != nil
	m.mu.Unlock()
	if busy {
		return nil, errAgentOpen
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
		return nil, errAgentOpen
	}
	m.agent = c
	return c, nil
}
