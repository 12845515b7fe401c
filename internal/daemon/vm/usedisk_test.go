package vm_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/daemon/rootdisk"
	"banger/internal/daemon/vmlock"
	"banger/internal/errdefs"
	"banger/internal/model"
)

// The disk of a stopped VM can be used, and the VM does not start meanwhile.
func TestUseDisk(t *testing.T) {
	w := newWorld(t)
	w.must(w.create("dev", false))
	id, ctx := w.vms()[0].ID, context.Background()
	used := false
	w.must(w.svc.UseDisk(ctx, "dev", "promote", func(ctx context.Context, v model.VM, image model.Image, flat func(context.Context, *os.File) error) error {
		used = true
		if v.ID != id || image.ID != v.ImageID || !strings.HasPrefix(w.locks.Holder(id), "promote since ") {
			t.Errorf("%+v of %+v; held by %q", v, image, w.locks.Holder(id))
		}
		f, err := os.Create(filepath.Join(t.TempDir(), "flat"))
		w.must(err)
		defer f.Close()
		w.must(flat(ctx, f))
		if st, err := f.Stat(); err != nil || st.Size() != v.Spec.DiskBytes {
			t.Errorf("%v, %v; the disk has %d bytes", st, err, v.Spec.DiskBytes)
		}
		return nil
	}))
	if err := w.svc.UseDisk(ctx, id, "promote", func(context.Context, model.VM, model.Image, func(context.Context, *os.File) error) error {
		return errInjected
	}); !used || !errors.Is(err, errInjected) {
		t.Errorf("used: %v, %v", used, err)
	}
	w.checkLegal()
	w.must(w.start("dev"))
	unused := func(context.Context, model.VM, model.Image, func(context.Context, *os.File) error) error {
		t.Error("the disk is used")
		return nil
	}
	if err := w.svc.UseDisk(ctx, "dev", "promote", unused); !errors.Is(err, errdefs.ErrFailedPrecondition) || errdefs.HintOf(err) != "stop it first: banger vm stop dev" {
		t.Errorf("of a running one: %v (%s)", err, errdefs.HintOf(err))
	}
	if err := w.svc.UseDisk(ctx, "nobody", "promote", unused); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("of no vm: %v", err)
	}
}

// Whoever deletes the VM by force takes the disk away.
func TestUseDiskIsSeized(t *testing.T) {
	w := newWorld(t)
	w.must(w.create("dev", false))
	inside, deleted := make(chan struct{}), make(chan error, 1)
	go func() {
		<-inside
		deleted <- w.delete("dev", true)
	}()
	err := w.svc.UseDisk(context.Background(), "dev", "promote", func(ctx context.Context, _ model.VM, _ model.Image, _ func(context.Context, *os.File) error) error {
		close(inside)
		<-ctx.Done()
		return context.Cause(ctx)
	})
	if !errors.Is(err, vmlock.ErrPreempted) {
		t.Errorf("%v", err)
	}
	w.must(<-deleted)
	w.checkLegal()
}

// A disk that was put up to be read when a daemon died is taken down by the next one.
func TestUsedDiskAfterCrash(t *testing.T) {
	w := newWorld(t)
	w.must(w.create("dev", false))
	v := w.vms()[0]
	w.must(w.disks.Activate(context.Background(), rootdisk.Disk{VMID: v.ID, Dir: w.layout.VM(v.ID), Image: filepath.Join(w.layout.State, "rootfs.ext4"), Size: v.Spec.DiskBytes}))
	w.restart()
	w.checkLegal()
	w.disks.mu.Lock()
	defer w.disks.mu.Unlock()
	if w.disks.active[v.ID] {
		t.Error("it is still up")
	}
}
