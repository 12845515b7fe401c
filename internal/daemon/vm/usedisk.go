package vm

import (
	"context"
	"os"

	"banger/internal/errdefs"
	"banger/internal/model"
)

// UseDisk has use work with the disk of a stopped VM, under the VM's claim: so it does not
// start, and is not deleted, meanwhile. use is told of the VM and of the image that the
// disk is a view of. flat writes what the guest would see into an empty file, as a root
// disk's method does; what is in it is as little to be trusted as the guest.
func (s *Service) UseDisk(ctx context.Context, ref, action string, use func(ctx context.Context, v model.VM, image model.Image, flat func(context.Context, *os.File) error) error) error {
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
	if v.State != model.StateStopped || s.lookup(v.ID) != nil {
		return errdefs.Precondition("vm %q is %s", v.Name, v.State).WithHint("stop it first: banger vm stop %s", v.Name)
	}
	image, err := s.Store.ImageByID(ctx, v.ImageID)
	if err != nil {
		return errdefs.Wrap(err, "find the image of vm %q", v.Name)
	}
	m, err := s.method(&v)
	if err != nil {
		return err
	}
	return use(ctx, v, image, func(ctx context.Context, f *os.File) error { return m.Flat(ctx, s.disk(&v, image.Path), f) })
}
