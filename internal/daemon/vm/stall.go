package vm

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
	"banger/internal/logkey"
)

const (
	// stallRetry is the pause between looks at the space for a guest that stands still.
	stallRetry = 2 * time.Second
	// stallSpace is how much free space lets such a guest go on: with less it would
	// stand still again before anybody noticed that it ran.
	stallSpace = 64 << 20
	// continueTime bounds how long a VMM may take to let its guest go on.
	continueTime = 10 * time.Second
)

var errVMMEnded = errors.New("the VMM ended")

// errStalled has the class and the hint of a full disk.
var errStalled = fmt.Errorf("the guest is paused, because its disk cannot grow: %w", unix.ENOSPC)

// whileRuns returns a context that ends with ctx, and when the VMM ends or its guest
// stalls: then nobody answers. It has ended already if that has happened.
func (l *live) whileRuns(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	since, changed := l.machine.Stalled()
	if !since.IsZero() {
		cancel(errStalled)
	}
	go func() {
		for {
			select {
			case <-l.machine.Done():
				cancel(errVMMEnded)
			case <-changed:
				if since, changed = l.machine.Stalled(); !since.IsZero() {
					cancel(errStalled)
				}
				continue
			case <-ctx.Done():
			}
			return
		}
	}()
	return ctx, func() { cancel(nil) }
}

// stalled says why a VM stands still though it runs, in words for people; empty: it
// does not.
func (l *live) stalled() string {
	since, _ := l.machine.Stalled()
	if since.IsZero() {
		return ""
	}
	return "no space left on the host's disk, since " + since.Format(time.TimeOnly)
}

// watch waits for the end of a VMM. Meanwhile it gets a guest that stalls going
// again: who makes room need not know that the VM waits for it.
func (s *Service) watch(id string, l *live) {
	stalled := false
	for {
		since, changed := l.machine.Stalled()
		if now := !since.IsZero(); now != stalled {
			if stalled = now; now {
				s.Log.Warn("a vm is paused: no space left on the host's disk", logkey.VM, id)
			} else {
				s.Log.Info("a paused vm goes on", logkey.VM, id)
			}
		}
		again := make(chan struct{})
		stop := func() bool { return true }
		if stalled {
			stop = s.After(stallRetry, func() { close(again) }).Stop
		}
		select {
		case <-l.machine.Done():
			stop()
			s.reap(id, l)
			return
		case <-s.ctx.Done():
			stop()
			return
		case <-changed:
			stop()
		case <-again:
			if err := s.goOn(s.ctx, id, l); err != nil && !l.ended() && s.ctx.Err() == nil {
				s.Log.Warn("let a paused vm go on", logkey.VM, id, logkey.Err, err)
			}
		}
	}
}

// goOn lets a stalled guest go on if there is space for it.
func (s *Service) goOn(ctx context.Context, id string, l *live) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(s.Layout.VM(id), &fs); err != nil {
		return fmt.Errorf("measure the space for a vm: %w", err)
	}
	if int64(fs.Bavail)*fs.Bsize < stallSpace {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, continueTime)
	defer cancel()
	return l.machine.Continue(ctx)
}

// reachError is why a client's stream did not come about.
func reachError(id string, err error) error {
	if errors.Is(err, errStalled) {
		return errdefs.Exhausted("reach the agent: %w", err).
			WithHint("%s; the VM then goes on by itself", errdefs.HintOf(err))
	}
	return errdefs.Unavailable("reach the agent: %w", err).
		WithHint("see what the guest says: banger vm logs %s", id)
}
