package vm

import (
	"context"
	"errors"
	"time"

	"banger/internal/daemon/vmlock"
	"banger/internal/errdefs"
	"banger/internal/guest"
	"banger/internal/model"
)

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
	return s.stopHeld(ctx, held, &v, timeout, p)
}

// stopHeld asks the guest to power off, and ends its VMM when that takes longer
// than timeout: files that were written are flushed first either way.
func (s *Service) stopHeld(ctx context.Context, held *vmlock.Held, v *model.VM, timeout time.Duration, p model.Progress) error {
	l := s.lookup(v.ID)
	if l == nil {
		if v.State == model.StateStopped || v.State == model.StateError {
			return nil
		}
		return s.settle(ctx, held, v, nil)
	}
	if timeout <= 0 {
		timeout = s.Defaults.StopTimeout
	}
	if v.State != model.StateStopping {
		if err := s.setState(ctx, held, v, model.StateStopping); err != nil {
			return err
		}
	}
	p.Stage("shut down")
	if err := s.powerOff(ctx, l, timeout); err != nil {
		if errdefs.ClassOf(err) == errdefs.ClassCanceled {
			// The guest may or may not be going down; the watcher settles it if so.
			uctx, cancel := cleanupContext(ctx)
			defer cancel()
			v.State = model.StateRunning
			return errors.Join(err, s.Store.UpdateVM(uctx, v))
		}
		s.Log.Warn("orderly stop did not finish, ending the vmm", "vm", v.ID, "err", err)
		p.Stage("end")
		s.flush(ctx, l)
	}
	return s.settle(ctx, held, v, l)
}

// powerOff returns nil when the VMM has ended by itself.
func (s *Service) powerOff(ctx context.Context, l *live, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if _, err := l.call(ctx, guest.Request{Kind: guest.KindShutdown}); err != nil {
		select {
		case <-l.machine.Done():
			return nil
		default:
		}
		// No agent to ask: the power button is the other orderly way.
		if berr := l.machine.PowerButton(ctx); berr != nil {
			return errors.Join(err, berr)
		}
	}
	select {
	case <-l.machine.Done():
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// flush makes a guest that will not power off write its files, if it still can.
func (s *Service) flush(ctx context.Context, l *live) {
	ctx, cancel := context.WithTimeout(ctx, syncTimeout)
	defer cancel()
	if _, err := l.call(ctx, guest.Request{Kind: guest.KindSync}); err != nil {
		s.Log.Warn("flush before ending the vmm", "err", err)
	}
}

// settle brings a VM whose VMM has ended, or must end now, to stopped. Its row
// keeps v.LastError.
func (s *Service) settle(ctx context.Context, held *vmlock.Held, v *model.VM, l *live) error {
	d, err := s.driver(v)
	if err != nil {
		return err
	}
	ctx, cancel := cleanupContext(ctx)
	defer cancel()
	errs := []error{s.endVMM(ctx, d, v, l)}
	if v.Spec.Net == model.NetUser {
		errs = append(errs, s.Network.Detach(ctx, v.ID))
	}
	if v.State != model.StateDeleting {
		errs = append(errs, s.setState(ctx, held, v, model.StateStopped))
	}
	return errors.Join(errs...)
}

// kill ends a VM at once. It does not queue behind the verb that holds the VM: it
// cancels that verb first.
func (s *Service) kill(ctx context.Context, id string) error {
	s.Locks.Preempt(id)
	ctx, held, err := s.claim(ctx, id, "kill")
	if err != nil {
		return err
	}
	defer held.Release()
	v, err := s.Store.GetVM(ctx, id)
	if err != nil {
		return err
	}
	l := s.lookup(id)
	if l == nil && !v.State.Live() {
		return nil
	}
	v.LastError = ""
	return s.settle(ctx, held, &v, l)
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
	return s.startHeld(ctx, &creation{held: held, vm: &v, from: v.State}, p)
}
