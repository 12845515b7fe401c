package vm

import (
	"context"
	"time"

	"banger/internal/api/bangerv1"
	"banger/internal/daemon/steps"
	"banger/internal/daemon/vmlock"
	"banger/internal/errdefs"
	"banger/internal/guest"
	"banger/internal/hypervisor"
	"banger/internal/logkey"
	"banger/internal/model"
)

// growTime bounds how long a guest may take to grow its file system.
const growTime = time.Minute

// reshaping is what the steps of set work on.
type reshaping struct {
	held *vmlock.Held
	vm   *model.VM
	was  model.VM
	live *live              // nil: the VM does not run
	grow hypervisor.Resizer // of the running machine
}

// set changes the shape of a VM. The row says what the disk is to be before it grows:
// what a crash leaves smaller grows at the next start.
func (s *Service) set(ctx context.Context, id string, req *bangerv1.SetRequest, p model.Progress) error {
	ctx, held, err := s.claim(ctx, id, "set")
	if err != nil {
		return err
	}
	defer held.Release()
	v, err := s.Store.GetVM(ctx, id)
	if err != nil {
		return err
	}
	r := &reshaping{held: held, vm: &v, was: v, live: s.lookup(id)}
	if err := s.reshape(r, req); err != nil {
		return errdefs.Wrap(err, "set vm %q", v.Name)
	}
	list := []steps.Step[*reshaping]{{Name: "record", Do: s.record, Undo: s.unrecord}}
	if v.Spec.DiskBytes != r.was.Spec.DiskBytes {
		list = append(list, steps.Step[*reshaping]{Name: "grow disk", Do: s.growDisk})
	}
	if err := steps.Run(ctx, s.runner(&v, "set", p), r, list); err != nil {
		return errdefs.Wrap(err, "set vm %q", v.Name)
	}
	if r.grow != nil {
		s.growGuest(ctx, r)
	}
	return nil
}

// reshape puts the request into the record, or says what is wrong with it.
func (s *Service) reshape(r *reshaping, req *bangerv1.SetRequest) error {
	v, spec := r.vm, &r.vm.Spec
	if v.State != model.StateStopped && v.State != model.StateRunning {
		return errdefs.Precondition("it is %s", v.State).WithHint("stop it first: banger vm stop %s", v.Name)
	}
	if req.Cpus != nil {
		spec.CPUs = int(*req.Cpus)
	}
	if req.MemoryMib != nil {
		spec.MemoryMiB = *req.MemoryMib
	}
	if req.DiskBytes != nil {
		spec.DiskBytes = *req.DiskBytes
	}
	if err := s.checkSize(spec); err != nil {
		return err
	}
	if was := r.was.Spec.DiskBytes; req.DiskBytes != nil && spec.DiskBytes < was {
		return errdefs.Invalid("a disk of %d MiB cannot become smaller (%d MiB)", was>>20, spec.DiskBytes>>20).
			WithHint("a file system in use cannot shrink; make a VM with a smaller --disk and copy what you need")
	} else if req.DiskBytes == nil {
		spec.DiskBytes = was
	}
	if v.State != model.StateRunning {
		return nil
	}
	if spec.CPUs != r.was.Spec.CPUs || spec.MemoryMiB != r.was.Spec.MemoryMiB {
		return errdefs.Precondition("CPUs and memory of a running VM stay as they are").
			WithHint("stop it first: banger vm stop %s", v.Name)
	}
	if spec.DiskBytes == r.was.Spec.DiskBytes {
		return nil
	}
	return s.growsRunning(r)
}

// growsRunning finds out how the disk of a running VM grows.
func (s *Service) growsRunning(r *reshaping) error {
	v := r.vm
	if r.live == nil {
		return lost(v)
	}
	m, err := s.method(v)
	if err != nil {
		return err
	}
	var ok bool
	if r.grow, ok = as[hypervisor.Resizer](r.live); ok && m.GrowsInUse() {
		return nil
	}
	return errdefs.Unsupported("a disk by %s on driver %q does not grow while it is used", m.Name(), v.Spec.Driver).
		WithHint("stop it first: banger vm stop %s", v.Name)
}

func (s *Service) record(ctx context.Context, r *reshaping) error { return s.Store.UpdateVM(ctx, r.vm) }

func (s *Service) unrecord(ctx context.Context, r *reshaping) error {
	return s.putBack(ctx, r.held, r.vm, r.was)
}

func (s *Service) growDisk(ctx context.Context, r *reshaping) error {
	if r.grow != nil {
		return r.grow.ResizeDisk(ctx, hypervisor.SerialRoot, r.vm.Spec.DiskBytes)
	}
	m, err := s.method(r.vm)
	if err != nil {
		return err
	}
	return m.Grow(ctx, s.disk(r.vm, ""))
}

// growGuest makes the guest's file system as large as its disk. Where the guest does
// not, the next start does.
func (s *Service) growGuest(ctx context.Context, r *reshaping) {
	ctx, cancel := context.WithTimeout(ctx, growTime)
	defer cancel()
	_, err := r.live.call(ctx, guest.Request{Kind: guest.KindGrow, Grow: &guest.Grow{Bytes: r.vm.Spec.DiskBytes}})
	if err != nil {
		s.Log.WarnContext(ctx, "the file system of a running vm grows when it starts next", logkey.VM, r.vm.ID, logkey.Err, err)
	}
}
