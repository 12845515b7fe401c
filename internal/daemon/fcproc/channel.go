package fcproc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
	"banger/internal/guest"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/dirsock"
	"banger/internal/paths"
)

// Firecracker connects us to a port of the guest's vsock: we write CONNECT and the
// port to its socket, and it answers OK once the guest has taken the connection, or
// hangs up when nobody listens there. While the guest's kernel has no vsock yet it
// does not answer at all. So the channel is open for the daemon from the beginning,
// and what is written to it waits until the agent is there.
//
// An agent that begins to listen says so: it connects to the same port of the host,
// which Firecracker turns into a connection to the bell, a socket of ours.

// bellSocket is where Firecracker leads a guest's connection to VsockPort.
var bellSocket = fmt.Sprintf("%s_%d", paths.AgentSocket, guest.VsockPort)

// bellMaking is the bell's name, in the VM directory, before it is in place.
const bellMaking = "bell.sock"

// The bell may have rung while nobody listened, or the guest may have been too busy
// for Firecracker's patience: now and then the agent is tried without being called.
const (
	retryFirst = 2 * time.Second
	retryMost  = 16 * time.Second
)

// A guest that rings all the time gets so many rings per rest, and no more.
const (
	bellBurst   = 16
	bellRest    = 10 * time.Millisecond
	bellTrouble = time.Second // the rest when no ring can be taken, for want of descriptors
)

// listenBell puts the bell in place. It is made in the VM directory, which is ours,
// and moved: in its place the VMM's user could swap the name under our hands.
func listenBell(spec hypervisor.Spec, place string) (*net.UnixListener, error) {
	f, err := dirsock.Listen(spec.Dir, bellMaking)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	from := spec.Dir + "/" + bellMaking
	if os.Geteuid() == 0 {
		err = os.Lchown(from, spec.UID, spec.GID)
	}
	if err == nil {
		err = os.Rename(from, place+"/"+bellSocket)
	}
	if err != nil {
		return nil, errors.Join(err, dirsock.Remove(spec.Dir, bellMaking))
	}
	l, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	return l.(*net.UnixListener), nil
}

// agentConn is the guest channel.
type agentConn struct {
	m      *machine
	cancel context.CancelFunc

	// open is closed when conn or err is set.
	open chan struct{}
	conn *net.UnixConn
	err  error

	read, write deadline // until open is closed

	// mu makes a deadline that is set while the channel opens count: it is set either
	// before the connection takes the deadlines over, or on the connection.
	mu sync.Mutex
}

var _ net.Conn = (*agentConn)(nil)

// DialAgent implements hypervisor.Machine.
func (m *machine) DialAgent(ctx context.Context) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, errdefs.Wrap(context.Cause(ctx), "dial the agent")
	}
	return m.Dial(func() (net.Conn, error) {
		// The connection outlives the call that asked for it.
		reach, cancel := context.WithCancel(m.Life())
		c := &agentConn{m: m, cancel: cancel, open: make(chan struct{})}
		go c.connect(reach)
		return c, nil
	})
}

func (c *agentConn) connect(ctx context.Context) {
	conn, err := c.m.reachAgent(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conn, c.err = conn, err
	if conn != nil {
		_ = conn.SetReadDeadline(c.read.stop())
		_ = conn.SetWriteDeadline(c.write.stop())
	}
	close(c.open)
}

// wait waits for the channel to open, or for a deadline.
func (c *agentConn) wait(d *deadline) error {
	for {
		passed, changed := d.channels()
		select {
		case <-c.open:
			return c.err
		case <-passed:
			return os.ErrDeadlineExceeded
		case <-changed:
		}
	}
}

func (c *agentConn) Read(p []byte) (int, error) {
	if err := c.wait(&c.read); err != nil {
		return 0, err
	}
	return c.conn.Read(p)
}

func (c *agentConn) Write(p []byte) (int, error) {
	if err := c.wait(&c.write); err != nil {
		return 0, err
	}
	return c.conn.Write(p)
}

func (c *agentConn) Close() error {
	c.cancel()
	<-c.open
	if c.conn == nil {
		return nil
	}
	return c.conn.Close()
}

func (c *agentConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

func (c *agentConn) SetReadDeadline(t time.Time) error {
	return c.setDeadline(&c.read, t, (*net.UnixConn).SetReadDeadline)
}

func (c *agentConn) SetWriteDeadline(t time.Time) error {
	return c.setDeadline(&c.write, t, (*net.UnixConn).SetWriteDeadline)
}

func (c *agentConn) setDeadline(d *deadline, t time.Time, set func(*net.UnixConn, time.Time) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.open:
		if c.conn == nil {
			return c.err
		}
		return set(c.conn, t)
	default:
		d.set(t)
		return nil
	}
}

func (c *agentConn) LocalAddr() net.Addr { return &net.UnixAddr{Net: "unix"} }

func (c *agentConn) RemoteAddr() net.Addr {
	return &net.UnixAddr{Net: "unix", Name: c.m.place + "/" + paths.AgentSocket}
}

// deadline is a point in time that may be moved while somebody waits for it.
type deadline struct {
	mu      sync.Mutex // guards what follows
	at      time.Time
	changed chan struct{} // closed when at changes
}

func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.at = t
	if d.changed != nil {
		close(d.changed)
		d.changed = nil
	}
}

// stop returns the deadline for another to keep.
func (d *deadline) stop() time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.at
}

// channels returns one that gets something when the deadline passes, and one that
// is closed when it changes.
func (d *deadline) channels() (<-chan time.Time, <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.changed == nil {
		d.changed = make(chan struct{})
	}
	if d.at.IsZero() {
		return nil, d.changed
	}
	return time.After(time.Until(d.at)), d.changed
}

// errNoAgent says that nobody listens in the guest.
var errNoAgent = errors.New("no agent listens in the guest")

// reachAgent connects to the agent, however long it takes to be there.
func (m *machine) reachAgent(ctx context.Context) (*net.UnixConn, error) {
	for retry := retryFirst; ; retry = min(2*retry, retryMost) {
		conn, err := m.callAgent(ctx)
		if !errors.Is(err, errNoAgent) {
			return conn, err
		}
		if err := m.awaitBell(ctx, retry); err != nil {
			return nil, err
		}
	}
}

// callAgent asks Firecracker for a connection to the agent.
func (m *machine) callAgent(ctx context.Context) (agent *net.UnixConn, err error) {
	conn, err := dirsock.DialPID(ctx, m.place, paths.AgentSocket, m.Handle().PID)
	if err != nil {
		return nil, errdefs.Unavailable("dial the agent: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer func() {
		if !stop() && err == nil {
			err = context.Cause(ctx)
		}
		if err != nil {
			_ = conn.Close()
			agent = nil
		}
	}()
	if _, err := fmt.Fprintf(conn, "CONNECT %d\n", guest.VsockPort); err != nil {
		return nil, noAgent(ctx, err)
	}
	// Byte by byte: what follows the line is the agent's.
	line := make([]byte, 0, 32)
	for b := make([]byte, 1); len(line) < cap(line); line = append(line, b[0]) {
		if _, err := conn.Read(b); err != nil {
			return nil, noAgent(ctx, err)
		}
		if b[0] != '\n' {
			continue
		}
		if strings.HasPrefix(string(line), "OK ") {
			return conn, nil
		}
		break
	}
	return nil, errdefs.Unavailable("dial the agent: Firecracker answers %q", line)
}

// noAgent tells a connection that was hung up on from other trouble.
func noAgent(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, io.EOF), errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE):
		return errNoAgent
	}
	return errdefs.Unavailable("dial the agent: %w", err)
}

// answerBell takes every ring as long as the machine lives, whether or not anybody
// waits for one. Anyone in the guest may ring, and Firecracker's only thread blocks while
// the queue is full: rings that nobody took would stop the VM, and a VMM that hears no
// order any more. Without a daemon the bell has no listener, and rings fail at once.
func (m *machine) answerBell(bell *net.UnixListener) {
	stop := context.AfterFunc(m.Life(), func() { _ = bell.Close() })
	defer stop()
	for n := 1; ; n++ {
		conn, err := bell.Accept()
		rest := bellTrouble
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err == nil:
			_ = conn.Close()
			select {
			case m.rung <- struct{}{}:
			default:
			}
			if n%bellBurst != 0 {
				continue
			}
			rest = bellRest
		}
		select {
		case <-time.After(rest):
		case <-m.Life().Done():
		}
	}
}

// awaitBell returns when the agent calls, at the latest after most.
func (m *machine) awaitBell(ctx context.Context, most time.Duration) error {
	timer := time.NewTimer(bellRest)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	timer.Reset(most)
	select {
	case <-timer.C:
	case <-m.rung:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return nil
}
