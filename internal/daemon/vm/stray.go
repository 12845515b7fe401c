package vm

import (
	"context"

	"banger/internal/daemon/rootdisk"
	"banger/internal/errdefs"
	"banger/internal/logkey"
)

// stray is a VM that runs but whose VMM has not answered, so that it is not live. Its
// disk is watched all the same: its guest may write, and a held disk may be what keeps
// the VMM from answering, where one thread of it serves both.
type stray struct {
	disk   rootdisk.Watch
	cancel context.CancelFunc
}

// goneAstray keeps the watch of the disk of a VM whose VMM does not answer.
func (s *Service) goneAstray(id string, disk rootdisk.Watch) {
	ctx, cancel := context.WithCancel(s.ctx)
	st := &stray{disk: disk, cancel: cancel}
	s.mu.Lock()
	s.strays[id] = st
	s.mu.Unlock()
	s.wg.Go(func() { s.follow(ctx, id, st) })
}

// takeStray hands the watch of a stray's disk over, with the duty to close it; nil: the
// VM is none.
func (s *Service) takeStray(id string) rootdisk.Watch {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.strays[id]
	if st == nil {
		return nil
	}
	st.cancel()
	delete(s.strays, id)
	return st.disk
}

// follow lets the disk of a stray go on as soon as there is space, and then looks for
// its VMM again.
func (s *Service) follow(ctx context.Context, id string, st *stray) {
	held, due := false, false
	for {
		since, changed := st.disk.Stalled()
		due = (due || held) && since.IsZero()
		if held = !since.IsZero(); due && s.lookAgain(ctx, id) {
			return
		}
		again := make(chan struct{})
		stop := func() bool { return true }
		if held || due {
			stop = s.After(stallRetry, func() { close(again) }).Stop
		}
		select {
		case <-again:
			if err := st.disk.Continue(ctx); err != nil && ctx.Err() == nil {
				s.Log.WarnContext(ctx, "let a paused vm go on", logkey.VM, id, logkey.Err, err)
			}
		case <-changed:
			stop()
		case <-ctx.Done():
			stop()
			return
		}
	}
}

// lookAgain looks for the VMM of a stray once more. What comes of that is that of the
// beginning of a daemon. It reports whether it could look.
func (s *Service) lookAgain(ctx context.Context, id string) bool {
	_, held, err := s.claim(ctx, id, "recover")
	if err != nil {
		s.Log.WarnContext(ctx, "look for a vm again", logkey.VM, id, logkey.Err, err)
		return false
	}
	defer held.Release()
	if ctx.Err() != nil {
		return true // it was ended meanwhile
	}
	own := held.Context(s.ctx) // ctx ends as soon as it is no stray
	v, err := s.Store.GetVM(own, id)
	if err == nil {
		err = s.rejoin(own, held, &v)
	}
	if err != nil && errdefs.ClassOf(err) != errdefs.ClassCanceled {
		s.Log.ErrorContext(own, "recover vm", logkey.VM, id, logkey.State, v.State, logkey.Err, err)
	}
	return true
}
