package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"banger/internal/model"
	"banger/internal/paths"
	"banger/internal/store"
)

const (
	listLimit  = 60 // ms
	stoppedVMs = 1000

	crowdKernel, crowdImage = "00000000000a", "00000000000b" // ids
)

// measureList measures `vm list` as a whole process. The floor is a process of
// the same program that asks nobody anything.
func measureList(ctx context.Context, l *lab, n int) ([]Figure, error) {
	if n == 0 {
		n = 30
	}
	state, err := l.crowd(ctx, stoppedVMs)
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(state)
	d, err := l.serve(ctx, state)
	if err != nil {
		return nil, err
	}
	defer d.stop(context.WithoutCancel(ctx))
	out, err := output(d.cli(ctx, "vm", "list"))
	if err != nil {
		return nil, err
	}
	if lines := strings.Count(out, "\n"); lines != stoppedVMs+1 {
		return nil, fmt.Errorf("vm list printed %d lines for %d VMs", lines, stoppedVMs)
	}
	value, floor, err := inTurns(1, n, time.Millisecond,
		func() (time.Duration, error) { return timed(d.cli(ctx, "vm", "list")) },
		func() (time.Duration, error) {
			return timed(exec.CommandContext(ctx, l.program("banger"), "version"))
		})
	if err != nil {
		return nil, err
	}
	f := figure("list-1000", "ms", value, floor, listLimit, onValue)
	f.What, f.FloorIs = "banger vm list with 1,000 stopped VMs, whole process", "banger version"
	return []Figure{f}, nil
}

// crowd makes a state directory in which count VMs were made and stopped.
func (l *lab) crowd(ctx context.Context, count int) (string, error) {
	state, err := os.MkdirTemp(l.scratch, "crowd-")
	if err != nil {
		return "", err
	}
	layout, err := paths.At(state)
	if err != nil {
		return "", err
	}
	db, _, err := store.Open(ctx, layout.Database())
	if err != nil {
		return "", err
	}
	return state, errors.Join(fill(ctx, db, layout, count), db.Close())
}

func fill(ctx context.Context, db *store.Store, layout paths.Layout, count int) error {
	now := time.Now().UTC()
	kernelDir, imageDir := layout.Kernel(crowdKernel), layout.Image(crowdImage)
	kernel := model.Kernel{
		ID: crowdKernel, Name: "debian", Release: "6.1.0-0-amd64", Source: "bench", CreatedAt: now,
		VmlinuxPath: filepath.Join(kernelDir, paths.VmlinuxFile), EarlyDir: filepath.Join(kernelDir, paths.EarlyModulesDir),
	}
	img := model.Image{
		ID: crowdImage, Name: "debian", Managed: true, SizeBytes: 16 << 30, Source: "bench", CreatedAt: now,
		Path: filepath.Join(imageDir, paths.RootfsFile), KernelID: kernel.ID,
	}
	for _, file := range []string{kernel.VmlinuxPath, filepath.Join(kernel.EarlyDir, paths.EarlyOrderFile), img.Path} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o711), os.WriteFile(file, nil, 0o644)); err != nil {
			return err
		}
	}
	if err := errors.Join(db.PutKernel(ctx, kernel), db.PutImage(ctx, img)); err != nil {
		return err
	}
	disk := make([]byte, 256<<10) // as large as an overlay that nobody has written to
	for i := range count {
		v := model.VM{
			ID: fmt.Sprintf("%012x", 0xb000+i), Name: fmt.Sprintf("calm-otter-%d", i), State: model.StateStopped,
			ImageID: img.ID, ImageRef: img.Name, KernelID: kernel.ID, BootID: "bench", StartedAt: now,
			Spec: model.VMSpec{
				CPUs: 2, MemoryMiB: 2048, DiskBytes: 16 << 30, Net: model.NetUser, Driver: "qemu",
				Machine: "pc-q35-7.2", CPUModel: "Westmere-v1", Env: map[string]string{"CI": "1"},
			},
		}
		if err := db.InsertVM(ctx, &v, 0); err != nil {
			return err
		}
		dir := layout.VM(v.ID)
		if err := errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(filepath.Join(dir, paths.RootDiskFile), disk, 0o600)); err != nil {
			return err
		}
	}
	return nil
}
