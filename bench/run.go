package main

import (
	"context"
	"errors"
	"os"
	"time"

	"banger/internal/daemon/rootdisk"
)

const runLimit = 1.4

// measureRun compares `vm run --rm -- true` with its floor: the same QEMU with
// the same arguments, kernel and initramfs and a fresh overlay of the same image,
// started by hand, until the agent says that it is ready. The overlay is made
// before the clock starts, and nothing after the ready event counts: configuring
// the guest, running the command and deleting the VM are banger's to pay for.
func measureRun(ctx context.Context, l *lab, n int) ([]Figure, error) {
	if n == 0 {
		n = 9
	}
	d, err := l.ready(ctx)
	if err != nil {
		return nil, err
	}
	model, err := l.create(ctx, "bench-model")
	if err != nil {
		return nil, err
	}
	t, err := model.template(ctx)
	if err = errors.Join(err, model.remove(ctx)); err != nil {
		return nil, err
	}
	value, floor, err := inTurns(1, n, time.Millisecond,
		func() (time.Duration, error) { return timed(d.cli(ctx, "vm", "run", "--rm", "--", "true")) },
		func() (time.Duration, error) { return l.bootOnce(ctx, t) })
	if err != nil {
		return nil, err
	}
	f := figure("run", "ms", value, floor, runLimit, onRatio)
	f.What = "banger vm run --rm -- true, whole process"
	f.FloorIs = "same QEMU by hand, to the agent's ready event"
	used, err := l.measureUsedDaemon(ctx, d)
	return []Figure{f, used}, err
}

// bootOnce boots a guest by hand, ends it, and returns how long the boot took.
func (l *lab) bootOnce(ctx context.Context, t template) (time.Duration, error) {
	dir, err := os.MkdirTemp(l.scratch, "floor-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	v, err := l.bootIn(ctx, t, dir)
	if err != nil {
		return 0, err
	}
	v.kill()
	return v.took, nil
}

// bootIn boots a guest by hand, with a disk and everything else in dir.
func (l *lab) bootIn(ctx context.Context, t template, dir string) (*handVM, error) {
	err := rootdisk.QCOW2().Create(ctx, rootdisk.Disk{Dir: dir, Image: t.imagePath, Size: t.diskBytes})
	if err != nil {
		return nil, err
	}
	return boot(ctx, l.thread, t, dir)
}
