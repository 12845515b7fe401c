package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"banger/internal/daemon/steps"
	"banger/internal/daemon/vmlock"
	"banger/internal/durable"
	"banger/internal/errdefs"
	"banger/internal/logkey"
	"banger/internal/model"
)

// remove deletes a VM. A running one needs force, which also cancels the verb
// that holds the VM instead of queueing behind it.
func (s *Service) remove(ctx context.Context, id string, force bool) error {
	take := s.claim
	if force {
		take = s.seize
	}
	ctx, held, err := take(ctx, id, "delete")
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

// deleteHeld removes everything a VM has, its row last. A delete that fails half
// way leaves the VM in deleting, for the next delete or recovery to finish.
func (s *Service) deleteHeld(ctx context.Context, held *vmlock.Held, v *model.VM) error {
	ctx = untilSeized(ctx, held)
	e := &ending{held: held, vm: v, from: v.State, live: s.lookup(v.ID)}
	list := slices.Concat([]steps.Step[*ending]{
		{Name: "mark", Do: s.markDeleting, Undo: s.unmarkDeleting, Limit: stepTime},
	}, s.settleSteps(v), []steps.Step[*ending]{
		// This takes as long as the file system does, which nothing ends.
		{Name: "remove files", Do: func(ctx context.Context, e *ending) error {
			e.gone = true
			if err := s.removeDisk(ctx, e.vm); err != nil {
				return err
			}
			return s.removeFiles(e.vm)
		}},
	}, steps.Limit(steps.On(s.Caps.ReleaseSteps(v), (*ending).of), stepTime), []steps.Step[*ending]{
		{Name: "remove row", Limit: stepTime, Do: func(ctx context.Context, e *ending) error {
			if err := s.Store.DeleteVM(ctx, e.vm.ID); err != nil {
				return err
			}
			s.notify(e.vm.ID)
			return nil
		}},
	})
	if err := steps.Run(ctx, s.runner(v, "delete", nil), e, list); err != nil {
		return errdefs.Wrap(err, "delete vm %q", v.Name)
	}
	return nil
}

// removeFiles removes a VM's directory. It is gone for good, whatever happens, before the
// row that knows of it may go.
func (s *Service) removeFiles(v *model.VM) error {
	dir := s.Layout.VM(v.ID)
	if _, err := os.Lstat(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove vm directory: %w", err)
	}
	return durable.SyncDir(s.Layout.VMs())
}

func (s *Service) markDeleting(ctx context.Context, e *ending) error {
	if e.vm.State == model.StateDeleting {
		return nil
	}
	err := s.setState(ctx, e.held, e.vm, model.StateDeleting)
	if errdefs.ClassOf(err) == errdefs.ClassExhausted {
		// Deleting is what makes room on a full disk, so it goes on without having
		// written its intent. A crash before its end leaves a stopped VM without
		// files, which the next delete removes.
		s.Log.WarnContext(ctx, "deleting without a mark: the disk is full", logkey.VM, e.vm.ID, logkey.Err, err)
		return nil
	}
	return err
}

// unmarkDeleting puts a VM back of which nothing was destroyed yet.
func (s *Service) unmarkDeleting(ctx context.Context, e *ending) error {
	if e.gone || e.from == model.StateDeleting {
		return nil
	}
	was := *e.vm
	was.State = e.from
	return s.putBack(ctx, e.held, e.vm, was)
}

// renameTimeout bounds how long a guest may take to accept its name.
const renameTimeout = 30 * time.Second

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
	if err := s.giveName(ctx, &v); err != nil {
		return v, err
	}
	if l := s.lookup(v.ID); l != nil {
		ctx, cancel := context.WithTimeout(ctx, renameTimeout)
		defer cancel()
		image, err := s.Store.ImageByID(ctx, v.ImageID)
		if err == nil {
			err = s.identify(ctx, l, &v, image.Config)
		}
		if err != nil {
			v.Name = old
			uctx, cancelUndo := context.WithTimeout(context.WithoutCancel(ctx), stepTime)
			defer cancelUndo()
			return v, errors.Join(errdefs.Wrap(err, "rename vm %q in its guest", old), s.Store.UpdateVM(uctx, &v))
		}
		s.tellChanged(ctx, &v)
	}
	return v, nil
}

// giveName writes the row of a VM with a new name, unless a create, or another rename,
// has that name set aside.
func (s *Service) giveName(ctx context.Context, v *model.VM) error {
	s.createVMMu.Lock()
	taken := s.pending[v.Name]
	s.pending[v.Name] = true
	s.createVMMu.Unlock()
	if taken {
		return errdefs.AlreadyExists("a VM named %q is being created", v.Name).WithHint("choose another name")
	}
	defer s.releaseName(v.Name)
	return s.Store.UpdateVM(ctx, v)
}
