package vm

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"banger/internal/daemon/vmlock"
	"banger/internal/errdefs"
	"banger/internal/hypervisor"
	"banger/internal/logkey"
	"banger/internal/model"
)

// Restore brings every VM to a legal state after the daemon ended, however it
// ended. It assumes:
//
//  1. The row is written before anything is made and removed after everything is
//     gone, so whatever a VM has can be found from its row. Where undoing fails, it
//     ends, and the row stays as it was meanwhile.
//  2. VMMs outlive the daemon. One is ours only if its pid has the recorded start
//     time and its API socket answers; handles.json is a hint, and when it is lost,
//     damaged or stale Driver.Find knows the VMM by its socket.
//  3. creating: nobody was told that the VM exists, so it is undone, VMM and all: a
//     VM that is made and started in one go is creating until it runs.
//  4. starting: it was there before, and nobody was told that it runs, so its VMM
//     is ended and it is stopped.
//  5. running, stopping: if the VMM lives it runs on. A stop that was in progress
//     either ends the guest, which the watcher sees, or was never acknowledged. One
//     that does not answer is left alone, and looked for again when its disk was held.
//  6. deleting: finished now. stopped: nothing uses its disk, which may have been put up
//     to be read.
//  7. A VM that was to vanish with its client (auto_remove) has lost it: the
//     client's stream ended with the old daemon. It is deleted.
//  8. A directory without a row belongs to a database that was lost. It is left
//     alone and reported: files of a user are never deleted on a guess.
func (s *Service) Restore(ctx context.Context) error {
	all, err := s.Store.ListVMs(ctx)
	if err != nil {
		return err
	}
	known := make(map[string]bool, len(all))
	var running []*model.VM
	for i := range all {
		v := &all[i]
		known[v.ID] = true
		if ctx.Err() != nil {
			return context.Cause(ctx) // what we did not look at must not count as gone
		}
		if err := s.restore(ctx, v); err != nil {
			// One VM that cannot be settled must not keep the daemon from serving the others.
			s.Log.ErrorContext(ctx, "recover vm", logkey.VM, v.ID, logkey.State, v.State, logkey.Err, err)
		}
		// One that could not be reached may run all the same.
		if v.State.Live() {
			running = append(running, v)
		}
	}
	if err := s.Caps.Restore(ctx, running); err != nil {
		s.Log.ErrorContext(ctx, "recover what running vms have", logkey.Err, err)
	}
	entries, err := os.ReadDir(s.Layout.VMs())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		if !known[e.Name()] {
			s.Log.WarnContext(ctx, "vm directory without a row is left alone", logkey.Dir, filepath.Join(s.Layout.VMs(), e.Name()))
		}
	}
	return nil
}

func (s *Service) restore(ctx context.Context, v *model.VM) error {
	if v.State == model.StateCreating || v.State == model.StateDeleting || v.Spec.AutoRemove {
		return s.underClaim(ctx, v, s.deleteHeld)
	}
	if !v.State.Live() {
		return s.detachDisk(ctx, &ending{vm: v, from: v.State})
	}
	return s.underClaim(ctx, v, func(ctx context.Context, held *vmlock.Held, v *model.VM) error {
		if v.State == model.StateStarting {
			return s.settle(ctx, &ending{held: held, vm: v, from: v.State})
		}
		return s.rejoin(ctx, held, v)
	})
}

// rejoin makes a VM whose row says that it runs one that is live, or settles it.
func (s *Service) rejoin(ctx context.Context, held *vmlock.Held, v *model.VM) error {
	l, err := s.reattach(ctx, v)
	if errors.Is(err, errdefs.ErrNotFound) {
		if v.State != model.StateStopping { // then it was to go
			v.LastError = "the VMM was gone when the daemon started"
		}
		return s.settle(ctx, &ending{held: held, vm: v, from: v.State})
	}
	if err != nil {
		return err
	}
	v.State = model.StateRunning
	if err := s.Store.UpdateVM(ctx, v); err != nil {
		return errors.Join(err, l.close())
	}
	s.adopt(v, l)
	s.Log.InfoContext(ctx, "found a running vm again", logkey.VM, v.ID, logkey.PID, l.machine.Handle().PID)
	return nil
}

func (s *Service) underClaim(ctx context.Context, v *model.VM, fn func(context.Context, *vmlock.Held, *model.VM) error) error {
	ctx, held, err := s.claim(ctx, v.ID, "recover")
	if err != nil {
		return err
	}
	defer held.Release()
	return fn(ctx, held, v)
}

// reattach finds the VMM of a VM again. Its disk is watched first: a VMM whose disk is
// held may not answer, and nobody else lets it go on. ErrNotFound: it is gone.
func (s *Service) reattach(ctx context.Context, v *model.VM) (*live, error) {
	disk, werr := s.watchDisk(v)
	m, err := s.attach(ctx, v)
	switch {
	case errors.Is(err, errdefs.ErrNotFound):
		if disk != nil {
			err = errors.Join(err, disk.Close())
		}
		return nil, err // there is nothing to watch, whatever came of it
	case err != nil:
		if disk != nil {
			s.goneAstray(v.ID, disk)
		}
		return nil, errors.Join(err, werr)
	case werr != nil:
		return nil, errors.Join(werr, m.Close())
	}
	l := newLive(m)
	if disk != nil {
		l.guard(disk)
	}
	return l, nil
}

// attach finds a VMM by its handle, else by its socket.
func (s *Service) attach(ctx context.Context, v *model.VM) (hypervisor.Machine, error) {
	d, err := s.driver(v)
	if err != nil {
		return nil, err
	}
	dir := s.Layout.VM(v.ID)
	k, err := s.Store.KernelByID(ctx, v.KernelID)
	if err != nil {
		return nil, err
	}
	method, err := s.method(v)
	if err != nil {
		return nil, err
	}
	spec := s.spec(v, method.View(s.disk(v, "")), model.BootFiles{Vmlinux: k.VmlinuxPath, BzImage: k.BzImagePath, Modules: k.ModulesPath})
	h := readHandles(dir).VMM
	m, err := d.Attach(ctx, spec, h)
	if err == nil {
		return m, nil
	}
	found, ferr := d.Find(ctx, dir)
	switch {
	case ferr != nil && !errors.Is(ferr, errdefs.ErrNotFound):
		return nil, ferr // somebody is there: not gone, whatever the handle says
	case ferr != nil || found.PID == h.PID && found.StartTime == h.StartTime:
		return nil, err
	}
	s.Log.WarnContext(ctx, "the handle of a vm was lost; its vmm is known by its socket", logkey.VM, v.ID, logkey.PID, found.PID)
	if m, err = d.Attach(ctx, spec, found); err != nil {
		return nil, err
	}
	if err := writeHandles(dir, handles{BootID: v.BootID, VMM: m.Handle()}); err != nil {
		s.Log.WarnContext(ctx, "record a found vmm", logkey.VM, v.ID, logkey.Err, err) // found again the same way
	}
	return m, nil
}
