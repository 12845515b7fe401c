package cli

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"banger/internal/api/bangerv1"
	"banger/internal/client"
	"banger/internal/errdefs"
)

// errInterrupted is the cause of a context that a signal ended, errElapsed of one
// that --timeout ended.
var (
	errInterrupted = errors.New("interrupted")
	errElapsed     = errors.New("--timeout elapsed")
)

// signals catches signals for as long as it lives and hands them to one handler
// at a time, so that none falls into the gap between two phases of a command.
type signals struct {
	ch   chan os.Signal
	done chan struct{}

	mu sync.Mutex // guards fn
	fn func(syscall.Signal)
}

func catch(fn func(syscall.Signal), which ...os.Signal) *signals {
	s := &signals{ch: make(chan os.Signal, 32), done: make(chan struct{}), fn: fn}
	signal.Notify(s.ch, which...)
	go func() {
		for {
			select {
			case got := <-s.ch:
				s.mu.Lock()
				s.fn(got.(syscall.Signal))
				s.mu.Unlock()
			case <-s.done:
				return
			}
		}
	}()
	return s
}

// to changes the handler; it may not block.
func (s *signals) to(fn func(syscall.Signal)) {
	s.mu.Lock()
	s.fn = fn
	s.mu.Unlock()
}

// release gives signals their usual effect again.
func (s *signals) release() {
	signal.Stop(s.ch)
	close(s.done)
}

// interruptible returns a context that SIGINT or SIGTERM ends. The second signal
// has its usual effect again. stop must be called.
func interruptible(ctx context.Context) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	s := catch(func(syscall.Signal) { cancel(errInterrupted) }, syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, func() { signal.Stop(s.ch) })
	return ctx, func() { s.release(); cancel(nil) }
}

// interrupted turns the end of an interruptible context into its exit code and
// leaves other errors alone.
func interrupted(err error) error {
	switch {
	case errors.Is(err, errInterrupted):
		return &exitError{exitInterrupt, nil}
	case errors.Is(err, errElapsed):
		return elapsed(0)
	}
	return err
}

// elapsed is the error for a --timeout that ended the work.
func elapsed(timeout time.Duration) error {
	e := errdefs.New(errdefs.ClassTimeout, "the time given with --timeout elapsed")
	if timeout > 0 {
		e = errdefs.New(errdefs.ClassTimeout, "the command did not end within %s", timeout)
	}
	return &exitError{exitTimeout, e.WithHint("give it longer with --timeout")}
}

// waitOrCancel follows op to its end. When ctx ends, the operation is cancelled
// and its end, with all that it made undone, is waited for; the error is the cause
// of ctx then. The operation returned tells whether it succeeded all the same.
func waitOrCancel(ctx context.Context, c *client.Client, op *bangerv1.Operation, update func(*bangerv1.Operation)) (*bangerv1.Operation, error) {
	last, err := c.WaitOperation(ctx, op, update)
	if ctx.Err() == nil {
		return last, err
	}
	fresh := context.WithoutCancel(ctx)
	last, err = c.CancelOperation(fresh, op.GetId())
	if err != nil {
		return op, err
	}
	last, _ = c.WaitOperation(fresh, last, update)
	return last, context.Cause(ctx)
}
