// Package vmproc is what the machines of all drivers have in common: the process of
// a VMM, watched to its end, and the one guest channel. A driver's machine embeds a
// Process and adds what its VMM understands.
package vmproc

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/vmmlog"
	"banger/internal/sysexec"
)

// Config is what a driver knows of a VMM that runs.
type Config struct {
	Name   string // of the program, for people
	Handle hypervisor.Handle
	Proc   *sysexec.Proc
	Log    *os.File            // the VMM's own, where it says why it ended
	Strip  func(string) string // takes away what it puts before its words; nil: nothing
	Stall  *Stall              // where the driver notes that the guest stands still; nil: it never does
	// HangUp lets go of the driver's connections to the VMM. It is called when the
	// process has ended, before Done says so, and at Close; perhaps before Watch
	// returns. Nil: there are none.
	HangUp func() error
}

// Process is the process of one VMM. It implements what hypervisor.Machine says of
// processes.
type Process struct {
	conf     Config
	life     context.Context // ends with the process, or at Close
	end      context.CancelFunc
	done     chan struct{} // closed when the process has ended
	exit     hypervisor.Exit
	off      atomic.Bool   // the guest is off, and we ended the process for it
	released chan struct{} // closed by Close
	release  sync.Once
	tasks    sync.WaitGroup

	mu      sync.Mutex // a leaf; guards what follows
	channel *channel   // the open guest channel; one without a connection is being dialed
}

// ErrClosed is the error of calls after Close.
var ErrClosed = errdefs.Precondition("this connection to the VMM was closed")

// Watch watches a VMM until it ends or Close is called. The process and the log are
// Close's to let go of from here on.
func Watch(c Config) *Process {
	if c.Stall == nil {
		c.Stall = new(Stall)
	}
	if c.HangUp == nil {
		c.HangUp = func() error { return nil }
	}
	p := &Process{conf: c, done: make(chan struct{}), released: make(chan struct{})}
	p.life, p.end = context.WithCancel(context.Background())
	p.tasks.Go(p.watch)
	return p
}

func (p *Process) watch() {
	select {
	case <-p.released:
		return
	case <-p.conf.Proc.Done():
	}
	p.end()
	e := p.conf.Proc.Exit()
	if p.off.Load() {
		e = sysexec.Exit{Known: true}
	}
	p.exit = hypervisor.Exit{Known: e.Known, Code: e.Code, Signal: e.Signal}
	if !e.Known || e.Code != 0 || e.Signal != 0 {
		p.exit.Detail = vmmlog.Last(p.conf.Log, 10, p.conf.Strip)
	}
	_ = p.conf.HangUp()
	close(p.done)
}

// Go runs a task beside the machine. Close waits for it, so it must end with Life.
func (p *Process) Go(task func()) { p.tasks.Go(task) }

// BoundLogs keeps logs short while the machine runs.
func (p *Process) BoundLogs(logs []vmmlog.Log, log *slog.Logger) {
	p.Go(func() { vmmlog.Bound(logs, p.conf.Proc.Done(), p.released, log) })
}

// Life ends with the process, or at Close.
func (p *Process) Life() context.Context { return p.life }

// Ended reports whether the process has ended, which is known a little before Done.
func (p *Process) Ended() bool { return over(p.conf.Proc.Done()) }

// Closed reports whether Close was called.
func (p *Process) Closed() bool { return over(p.released) }

func over(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// Off ends the process of a guest that is powered off, for a VMM that stays when it is.
// It counts as an orderly end.
func (p *Process) Off() {
	p.off.Store(true)
	_ = p.conf.Proc.Signal(unix.SIGKILL) // gone is as good
}

// Handle implements hypervisor.Machine.
func (p *Process) Handle() hypervisor.Handle { return p.conf.Handle }

// Done implements hypervisor.Machine.
func (p *Process) Done() <-chan struct{} { return p.done }

// Exit implements hypervisor.Machine.
func (p *Process) Exit() hypervisor.Exit {
	if !over(p.done) {
		return hypervisor.Exit{}
	}
	return p.exit
}

// Stalled implements hypervisor.Machine.
func (p *Process) Stalled() (since time.Time, changed <-chan struct{}) { return p.conf.Stall.Stalled() }

// Usage is what the process uses: its processor time and its memory.
func (p *Process) Usage() (hypervisor.Stats, error) {
	u, err := p.conf.Proc.Usage()
	return hypervisor.Stats{CPU: u.CPU, Memory: u.Memory}, err
}

// Kill implements hypervisor.Machine.
func (p *Process) Kill(ctx context.Context) error {
	if p.Closed() {
		return ErrClosed
	}
	if err := p.conf.Proc.Kill(ctx); err != nil {
		return errdefs.Wrap(err, "kill %s", p.conf.Name)
	}
	select {
	case <-p.done:
	case <-p.released:
	}
	return nil
}

// Close implements hypervisor.Machine.
func (p *Process) Close() (err error) {
	p.release.Do(func() { err = p.close() })
	return err
}

func (p *Process) close() error {
	p.mu.Lock()
	close(p.released)
	c := p.channel
	open := c != nil && c.Conn != nil
	p.mu.Unlock()
	p.end()
	p.tasks.Wait()
	errs := []error{p.conf.HangUp()}
	if open {
		errs = append(errs, c.Close())
	}
	return errors.Join(append(errs, p.conf.Log.Close(), p.conf.Proc.Release())...)
}

// Use calls the VMM and, when that fails, says what was to be done with it, whether it
// failed because the process has ended, and whether the caller gave up. The class of
// every other error is the call's to choose.
func (p *Process) Use(ctx context.Context, what string, call func() error) error {
	if p.Closed() {
		return ErrClosed
	}
	var err error
	if !p.Ended() {
		if err = call(); err == nil {
			return nil
		}
	}
	switch {
	case p.Ended():
		return errdefs.Precondition("%s: the VMM has ended", what)
	case ctx.Err() != nil:
		return errdefs.Wrap(context.Cause(ctx), "%s", what)
	case errors.Is(err, ErrClosed):
		return err
	}
	return errdefs.Wrap(err, "%s", what)
}

// channel is the guest channel; closing it makes room for the next one.
type channel struct {
	net.Conn
	p    *Process
	once sync.Once
}

func (c *channel) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() { c.p.leave(c) })
	return err
}

func (p *Process) leave(c *channel) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.channel == c {
		p.channel = nil
	}
}

// Dial opens the guest channel, of which there is one at a time, by way of dial.
func (p *Process) Dial(dial func() (net.Conn, error)) (net.Conn, error) {
	c := &channel{p: p}
	p.mu.Lock()
	closed, busy := p.Closed(), p.channel != nil
	if !closed && !busy {
		p.channel = c
	}
	p.mu.Unlock()
	switch {
	case closed:
		return nil, ErrClosed
	case busy:
		return nil, errdefs.Precondition("dial the agent: its channel is open already")
	}
	if p.Ended() {
		p.leave(c)
		return nil, errdefs.Precondition("dial the agent: the VMM has ended")
	}
	conn, err := dial()
	if err != nil {
		p.leave(c)
		return nil, errdefs.Wrap(err, "dial the agent")
	}
	p.mu.Lock()
	if closed = p.Closed(); !closed {
		c.Conn = conn
	}
	p.mu.Unlock()
	if closed {
		_ = conn.Close()
		return nil, ErrClosed
	}
	return c, nil
}
