package vm

import (
	"context"

	"banger/internal/errdefs"
	"banger/internal/logkey"
	"banger/internal/model"
)

// Alter changes what a VM has besides its machine, under its claim: change does it,
// and is told whether the VM runs. If it does, its capabilities then hear of the change.
func (s *Service) Alter(ctx context.Context, ref, action string, change func(ctx context.Context, v *model.VM, running bool) error) error {
	v, err := s.Store.FindVM(ctx, ref)
	if err != nil {
		return err
	}
	ctx, held, err := s.claim(ctx, v.ID, action)
	if err != nil {
		return err
	}
	defer held.Release()
	if v, err = s.Store.GetVM(ctx, v.ID); err != nil {
		return err
	}
	if v.State == model.StateDeleting {
		return errdefs.Precondition("vm %q is being deleted", v.Name).WithHint("delete it again: banger vm delete %s", v.Name)
	}
	running := v.State == model.StateRunning && s.lookup(v.ID) != nil
	if err := change(ctx, &v, running); err != nil {
		return errdefs.Wrap(err, "%s of vm %q", action, v.Name)
	}
	if running {
		s.tellChanged(ctx, &v)
	}
	return nil
}

// tellChanged tells the capabilities of a running VM what it is now.
func (s *Service) tellChanged(ctx context.Context, v *model.VM) {
	if err := s.Caps.Changed(ctx, v); err != nil {
		s.Log.WarnContext(ctx, "a vm has changed, but not everywhere", logkey.VM, v.ID, logkey.Err, err)
	}
}
