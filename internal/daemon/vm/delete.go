package vm

import (
	"context"
	"errors"
	"fmt"
	"os"

	"banger/internal/daemon/steps"
	"banger/internal/daemon/vmlock"
	"banger/internal/errdefs"
	"banger/internal/guest"
	"banger/internal/model"
)

// remove deletes a VM. A running one needs force, which also cancels the verb
// that holds the VM instead of queueing behind it.
func (s *Service) remove(ctx context.Context, id string, force bool) error {
	if force {
		s.Locks.Preempt(id)
	}
	ctx, held, err := s.claim(ctx, id, "delete")
	if err != nil {
		return err
	}
	defer held.Release()
	v, err := s.Store.GetVM(ctx, id)
	if errors.Is(err, errdefs.ErrNotFound) {
		return nil // whoever held it deleted it
	}
	if err != nil {
		return err
	}
	if v.State.Live() && !force {
		return errdefs.Precondition("vm %q is %s", v.Name, v.State).
			WithHint("stop it first, or delete it with --force")
	}
	return s.deleteHeld(ctx, held, &v)
}

// deletion is what the steps of delete work on. They have no undo: a delete that
// fails half way is finished by the next delete or by recovery.
type deletion struct {
	held *vmlock.Held
	vm   *model.VM
}

func (s *Service) deleteHeld(ctx context.Context, held *vmlock.Held, v *model.VM) error {
	ctx, cancel := cleanupContext(ctx)
	defer cancel()
	err := steps.Run(ctx, s.runner(v, "delete", nil), &deletion{held, v}, []steps.Step[*deletion]{
		{Name: "mark", Do: s.markDeleting},
		{Name: "end", Do: func(ctx context.Context, d *deletion) error {
			return s.settle(ctx, d.held, d.vm, s.lookup(d.vm.ID))
		}},
		{Name: "remove files", Do: func(_ context.Context, d *deletion) error {
			if err := os.RemoveAll(s.Layout.VM(d.vm.ID)); err != nil {
				return fmt.Errorf("remove vm directory: %w", err)
			}
			return nil
		}},
		{Name: "remove row", Do: func(ctx context.Context, d *deletion) error {
			if err := s.Store.DeleteVM(ctx, d.vm.ID); err != nil {
				return err
			}
			s.notify(d.vm.ID)
			return nil
		}},
	})
	if err != nil {
		return errdefs.Wrap(err, "delete vm %q", v.Name)
	}
	return nil
}

func (s *Service) markDeleting(ctx context.Context, d *deletion) error {
	if d.vm.State == model.StateDeleting {
		return nil
	}
	return s.setState(ctx, d.held, d.vm, model.StateDeleting)
}

// rename gives a VM another name, in the guest too when it runs.
func (s *Service) rename(ctx context.Context, ref, name string) (model.VM, error) {
	if err := model.CheckName(name); err != nil {
		return model.VM{}, err
	}
	v, err := s.Store.FindVM(ctx, ref)
	if err != nil {
		return v, err
	}
	ctx, held, err := s.claim(ctx, v.ID, "rename")
	if err != nil {
		return v, err
	}
	defer held.Release()
	if v, err = s.Store.GetVM(ctx, v.ID); err != nil {
		return v, err
	}
	old := v.Name
	v.Name = name
	if err := s.Store.UpdateVM(ctx, &v); err != nil {
		return v, err
	}
	if l := s.lookup(v.ID); l != nil {
		req := guest.Request{Kind: guest.KindConfigure, Configure: &guest.Configure{Hostname: name}}
		if _, err := l.call(ctx, req); err != nil {
			v.Name = old
			uctx, cancel := cleanupContext(ctx)
			defer cancel()
			return v, errors.Join(errdefs.Wrap(err, "rename vm %q in its guest", old), s.Store.UpdateVM(uctx, &v))
		}
	}
	return v, nil
}
