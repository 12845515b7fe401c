package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

const (
	sizeLimit    = 50   // ms that a large image may cost a start
	sharedLimit  = 3300 // MB for the image and its VMs
	largeMB      = 3000 // of the large image
	smallMB      = 30   // of the small one
	sharingCount = 10   // VMs
	filesPerMB   = 20   // about as a distribution has
)

// measureImageSize compares a start from a large image with one from a small image, and
// measures the disk that many idle VMs of the large one use together with it.
func measureImageSize(ctx context.Context, l *lab, n int) ([]Figure, error) {
	if n == 0 {
		n = 9
	}
	d, err := l.ready(ctx)
	if err != nil {
		return nil, err
	}
	small, err := d.pulled(ctx, "bench-small", smallMB)
	if err != nil {
		return nil, err
	}
	defer small.remove(ctx, d)
	large, err := d.pulled(ctx, "bench-large", largeMB)
	if err != nil {
		return nil, err
	}
	defer large.remove(ctx, d)
	run := func(i image) func() (time.Duration, error) {
		return func() (time.Duration, error) {
			return timed(d.cli(ctx, "vm", "run", "--rm", "--image", i.Name, "--", "/bin/true"))
		}
	}
	value, floor, err := inTurns(1, n, time.Millisecond, run(large), run(small))
	if err != nil {
		return nil, err
	}
	more := make(samples, len(value))
	for i := range value {
		more[i] = value[i] - floor[i]
	}
	size := figure("image-size", "ms", more, samples{0}, sizeLimit, onValue)
	size.What = fmt.Sprintf("what a start from an image of %d MB takes longer than from one of %d MB", largeMB, smallMB)
	size.Notes = fmt.Sprintf("%s ms and %s ms", number(value.median()), number(floor.median()))

	used, err := d.sharing(ctx, large)
	if err != nil {
		return nil, err
	}
	shared := figure("image-shared", "MB", samples{used}, samples{float64(large.SizeBytes) / 1e6}, sharedLimit, onValue)
	shared.What, shared.FloorIs = fmt.Sprintf("disk used by %d idle VMs of that image, and by it", sharingCount), "its files and one program"
	return []Figure{size, shared}, nil
}

// pulled is an image of so many bytes, in which one program does nothing.
func (d *daemon) pulled(ctx context.Context, name string, sizeMB int) (image, error) {
	dir, err := os.MkdirTemp(d.lab.scratch, "image-")
	if err != nil {
		return image{}, err
	}
	defer os.RemoveAll(dir)
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return image{}, fmt.Errorf("%w: scripts/bootstrap bench installs it", err)
	}
	content, err := os.ReadFile(busybox)
	if err != nil {
		return image{}, err
	}
	if _, err := writeImage(dir, int64(sizeMB)*1e6, sizeMB*filesPerMB, program{"bin/true", content}); err != nil {
		return image{}, err
	}
	if _, err := output(d.cli(ctx, "image", "pull", "--force", "--name", name, "oci:"+dir+":1")); err != nil {
		return image{}, err
	}
	var i image
	return i, d.decode(ctx, &i, "image", "show", "--json", name)
}

// remove removes an image and what the layer cache has of it.
func (i image) remove(ctx context.Context, d *daemon) {
	_, _ = output(d.cli(context.WithoutCancel(ctx), "image", "rm", i.Name))
	_, _ = output(d.cli(context.WithoutCancel(ctx), "image", "cache", "prune", "--all"))
}

// sharing is the disk in MB that VMs of an image use together with it, a moment after
// their starts.
func (d *daemon) sharing(ctx context.Context, i image) (mb float64, err error) {
	var names []string
	defer func() {
		for _, name := range names {
			_, _ = output(d.cli(context.WithoutCancel(ctx), "vm", "delete", "--force", name))
		}
	}()
	for n := range sharingCount {
		name := fmt.Sprint("bench-sharing-", n)
		names = append(names, name)
		if _, err := output(d.cli(ctx, "vm", "create", "--name", name, "--image", i.Name, "--memory", "256M")); err != nil {
			return 0, err
		}
	}
	for _, dir := range []string{d.layout.Image(i.ID), d.layout.VMs()} {
		used, err := diskUse(dir)
		if err != nil {
			return 0, err
		}
		mb += float64(used) / 1e6
	}
	return mb, nil
}

// diskUse is how many bytes the files of a directory take on the disk.
func diskUse(dir string) (used int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		used += info.Sys().(*syscall.Stat_t).Blocks * 512
		return nil
	})
	return used, err
}
