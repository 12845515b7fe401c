package vm

import (
	"cmp"
	"context"
	"errors"
	"io/fs"

	"banger/internal/daemon/rootdisk"
	"banger/internal/hypervisor"
	"banger/internal/logkey"
	"banger/internal/model"
)

// Disks are the methods of making root disks.
type Disks interface {
	// Choose picks the method for a new VM whose driver reads these formats, and says
	// why for people.
	Choose(ctx context.Context, formats ...hypervisor.DiskFormat) (m rootdisk.Method, why string, err error)
	// Method finds the one a VM was made with.
	Method(name string) (rootdisk.Method, error)
}

// firstMethod is what the disks of VMs were made with before there was a choice.
const firstMethod = "qcow2"

// method is how the VM's disk was made, which stays.
func (s *Service) method(v *model.VM) (rootdisk.Method, error) {
	return s.Disks.Method(cmp.Or(v.Spec.DiskMethod, firstMethod))
}

// disk names the VM's disk. image may be empty where nothing is made.
func (s *Service) disk(v *model.VM, image string) rootdisk.Disk {
	return rootdisk.Disk{VMID: v.ID, Dir: s.Layout.VM(v.ID), Image: image, Size: v.Spec.DiskBytes, UID: v.VMMUID}
}

// chooseDisk settles how the disk of a new VM is made.
func (s *Service) chooseDisk(ctx context.Context, c *creation, can hypervisor.Capabilities) error {
	formats := []hypervisor.DiskFormat{hypervisor.FormatRaw}
	if can.QcowDisks {
		formats = append(formats, hypervisor.FormatQcow2)
	}
	m, why, err := s.Disks.Choose(ctx, formats...)
	if err != nil {
		return err
	}
	c.method, c.vm.Spec.DiskMethod, c.vm.Spec.DiskWhy = m, m.Name(), why
	return nil
}

func (s *Service) makeDisk(ctx context.Context, c *creation) error {
	return c.method.Create(ctx, s.disk(c.vm, c.image.Path))
}

func (s *Service) unmakeDisk(ctx context.Context, c *creation) error {
	return c.method.Remove(ctx, s.disk(c.vm, c.image.Path))
}

func (s *Service) attachDisk(ctx context.Context, c *creation) error {
	return c.method.Activate(ctx, s.disk(c.vm, c.image.Path))
}

func (s *Service) unattachDisk(ctx context.Context, c *creation) error {
	return c.method.Deactivate(ctx, s.disk(c.vm, c.image.Path))
}

// detachDisk takes down the disk of a VM whose VMM has ended.
func (s *Service) detachDisk(ctx context.Context, e *ending) error {
	m, err := s.method(e.vm)
	if err != nil {
		return err
	}
	return m.Deactivate(ctx, s.disk(e.vm, ""))
}

func (s *Service) removeDisk(ctx context.Context, v *model.VM) error {
	m, err := s.method(v)
	if err != nil {
		return err
	}
	return m.Remove(ctx, s.disk(v, ""))
}

// usedBytes is what the VM's disk takes of the host's; 0 when there is none (yet).
func (s *Service) usedBytes(ctx context.Context, v *model.VM) int64 {
	m, err := s.method(v)
	var n int64
	if err == nil {
		n, err = m.Used(s.disk(v, ""))
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.Log.WarnContext(ctx, "measure root disk", logkey.VM, v.ID, logkey.Err, err)
	}
	return n
}
