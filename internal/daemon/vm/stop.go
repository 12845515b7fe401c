package vm

import (
	"context"
	"errors"
	"slices"
	"time"

	"banger/internal/daemon/steps"
	"banger/internal/daemon/vmlock"
	"banger/internal/errdefs"
	"banger/internal/guest"
	"banger/internal/logkey"
	"banger/internal/model"
)

// askTimeout is how long an agent may take to answer before the power button is
// pressed; of a short timeout, a third.
const askTimeout = 5 * time.Second

// syncTimeout bounds the last flush before a VMM is ended firmly.
const syncTimeout = 10 * time.Second

// stop powers a VM off in order. Stopping a stopped one does nothing.
func (s *Service) stop(ctx context.Context, id string, timeout time.Duration, p model.Progress) error {
	ctx, held, err := s.claim(ctx, id, "stop")
	if err != nil {
		return err
	}
	defer held.Release()
	v, err := s.Store.GetVM(ctx, id)
	if err != nil {
		return err
	}
	err = s.stopHeld(ctx, held, &v, timeout, p)
	if v.State == model.StateStopped && v.Spec.AutoRemove {
		return s.deleteHeld(ctx, held, &v) // whatever it lost: nobody misses that
	}
	return err
}

// removeIfMeant deletes a stopped VM that was to vanish when it stops.
func (s *Service) removeIfMeant(ctx context.Context, held *vmlock.Held, v *model.VM) error {
	if !v.Spec.AutoRemove {
		return nil
	}
	return s.deleteHeld(ctx, held, v)
}

// ending is what the steps of stop, kill and delete work on.
type ending struct {
	held *vmlock.Held
	vm   *model.VM
	from model.State
	live *live // nil: the VMM is not known to run
	// gone says that something was destroyed, so the VM cannot be what it was.
	gone bool
	// lost is why what the guest wrote last may be lost; nil: it is not.
	lost error
}

// of is the VM, for steps that need no more.
func (e *ending) of() *model.VM { return e.vm }

// stopHeld asks the guest to power off, and ends its VMM when that takes longer
// than timeout: files that were written are flushed first either way.
func (s *Service) stopHeld(ctx context.Context, held *vmlock.Held, v *model.VM, timeout time.Duration, p model.Progress) error {
	e := &ending{held: held, vm: v, from: v.State, live: s.lookup(v.ID)}
	if e.live == nil {
		if !v.State.Live() {
			return nil
		}
		return s.settle(ctx, e)
	}
	if timeout <= 0 {
		timeout = s.Defaults.StopTimeout
	}
	list := append([]steps.Step[*ending]{
		{Name: "mark", Do: s.markStopping, Undo: s.unmarkStopping},
		{Name: "shut down", Do: func(ctx context.Context, e *ending) error { return s.shutDown(ctx, e, timeout) }},
	}, s.settleSteps(v)...)
	if err := steps.Run(ctx, s.runner(v, "stop", p), e, list); err != nil {
		return errdefs.Wrap(err, "stop vm %q", v.Name)
	}
	return errdefs.Wrap(e.lost, "stop vm %q", v.Name)
}

func (s *Service) markStopping(ctx context.Context, e *ending) error {
	if e.vm.State == model.StateStopping {
		return nil
	}
	return s.setState(ctx, e.held, e.vm, model.StateStopping)
}

// unmarkStopping puts a VM that still runs back. One that does not is settled by
// its watcher, which waits for our claim.
func (s *Service) unmarkStopping(ctx context.Context, e *ending) error {
	if e.live.ended() {
		return nil
	}
	was := *e.vm
	was.State = model.StateRunning // also for one that an earlier stop left in stopping
	return s.putBack(ctx, e.held, e.vm, was)
}

// shutDown does not fail when the guest will not go: the next step ends its VMM. Of
// one that cannot write, because the host's disk is full, something is lost then.
func (s *Service) shutDown(ctx context.Context, e *ending, timeout time.Duration) error {
	err := s.powerOff(ctx, e.live, timeout)
	if err == nil {
		return nil
	}
	if context.Cause(ctx) != nil {
		return err
	}
	s.Log.WarnContext(ctx, "orderly stop did not finish, ending the vmm", logkey.VM, e.vm.ID, logkey.Err, err)
	if !errors.Is(err, errStalled) {
		err = s.flush(ctx, e.live)
	}
	if errors.Is(err, errStalled) {
		e.lost = errdefs.Exhausted("it was ended like by kill, and files its programs wrote last may be lost: %w", err).
			WithHint("%s; then start the VM: banger vm start %s", errdefs.HintOf(err), e.vm.Name)
		e.vm.LastError = e.lost.Error()
	}
	return nil
}

// powerOff returns nil when the VMM has ended by itself.
func (s *Service) powerOff(ctx context.Context, l *live, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := l.machine.Continue(ctx); err != nil && !l.ended() {
		return err
	}
	ctx, cancelStop := l.whileRuns(ctx)
	defer cancelStop()
	ask, answered := context.WithTimeout(ctx, min(askTimeout, timeout/3))
	// Half of the time is for what is to be done when the commands have ended.
	grace := guest.Shutdown{GraceMillis: max(1, (timeout / 2).Milliseconds())}
	_, err := l.call(ask, guest.Request{Kind: guest.KindShutdown, Shutdown: &grace})
	answered()
	if err != nil {
		if l.ended() {
			return nil
		}
		if errors.Is(err, errStalled) {
			return err
		}
		// No agent that answers: the power button is the other orderly way.
		if berr := l.machine.PowerButton(ctx); berr != nil {
			return errors.Join(err, berr)
		}
	}
	select {
	case <-l.machine.Done():
		return nil
	case <-ctx.Done():
		if err := context.Cause(ctx); !errors.Is(err, errVMMEnded) {
			return err
		}
		return nil
	}
}

// flush makes a guest that will not power off write its files, if it still can.
func (s *Service) flush(ctx context.Context, l *live) error {
	ctx, cancel := context.WithTimeout(ctx, syncTimeout)
	defer cancel()
	_, err := l.call(ctx, guest.Request{Kind: guest.KindSync})
	if err != nil {
		s.Log.WarnContext(ctx, "flush before ending the vmm", logkey.Err, err)
	}
	return err
}

// settleSteps bring a VM whose VMM has ended, or must end now, to stopped. They
// have no undo: when one fails, the watcher or the next verb does them again.
func (s *Service) settleSteps(v *model.VM) []steps.Step[*ending] {
	return steps.Limit(slices.Concat([]steps.Step[*ending]{
		{Name: "end vmm", Do: s.endStep},
		{Name: "detach disk", Do: s.detachDisk},
	}, steps.On(s.Caps.CleanUpSteps(v), (*ending).of), []steps.Step[*ending]{
		{Name: "settle", Do: func(ctx context.Context, e *ending) error {
			if e.vm.State != model.StateDeleting {
				if err := s.setState(ctx, e.held, e.vm, model.StateStopped); err != nil {
					return err
				}
			}
			defer s.notify(e.vm.ID)
			if e.live != nil {
				return s.drop(e.vm.ID, e.live)
			}
			return nil
		}},
	}), stepTime)
}

func (s *Service) endStep(ctx context.Context, e *ending) error {
	d, err := s.driver(e.vm)
	if err != nil {
		return err
	}
	e.gone = e.gone || e.vm.State.Live() || e.from.Live()
	return s.endVMM(ctx, d, e.vm, e.live)
}

// settle runs the settle steps, which must happen, whoever asked for them or left.
func (s *Service) settle(ctx context.Context, e *ending) error {
	ctx = untilSeized(ctx, e.held)
	return steps.Run(ctx, s.runner(e.vm, "settle", nil), e, s.settleSteps(e.vm))
}

// kill ends a VM at once. It does not queue behind the verb that holds the VM: it
// cancels that verb first.
func (s *Service) kill(ctx context.Context, id string) error {
	ctx, held, err := s.seize(ctx, id, "kill")
	if err != nil {
		return err
	}
	defer held.Release()
	v, err := s.Store.GetVM(ctx, id)
	if errors.Is(err, errdefs.ErrNotFound) {
		return nil // it was being created, which we have ended
	}
	if err != nil {
		return err
	}
	if v.State == model.StateCreating || v.State == model.StateDeleting {
		return s.deleteHeld(ctx, held, &v) // nobody is at it, as we hold it: it is what a failure left
	}
	if l := s.lookup(id); l != nil || v.State.Live() {
		v.LastError = ""
		if err := s.settle(ctx, &ending{held: held, vm: &v, from: v.State, live: l}); err != nil {
			return err
		}
	}
	return s.removeIfMeant(ctx, held, &v)
}

// restart is stop and start under one claim.
func (s *Service) restart(ctx context.Context, id string, timeout time.Duration, p model.Progress) error {
	ctx, held, err := s.claim(ctx, id, "restart")
	if err != nil {
		return err
	}
	defer held.Release()
	v, err := s.Store.GetVM(ctx, id)
	if err != nil {
		return err
	}
	if err := s.stopHeld(ctx, held, &v, timeout, p); err != nil {
		return err
	}
	return s.startHeld(ctx, &creation{held: held, vm: &v, was: v}, p)
}
