// Package rootdisk makes a VM's root disk: its private, writable view of an image
// that other VMs use too.
//
// A driver that can read qcow2 gets an overlay: a few kilobytes that name the
// image as backing file. Every other driver gets a raw file of its own: a reflink
// where the file system shares blocks, else a sparse copy. What Create returns is
// on stable storage, whole, or was never there.
package rootdisk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
	"banger/internal/hypervisor"
	"banger/internal/paths"
)

// Request says what disk to make.
type Request struct {
	ImagePath   string                // absolute
	ImageFormat hypervisor.DiskFormat // of the image; empty: raw
	Dest        string                // absolute; must not exist
	SizeBytes   int64                 // what the guest sees; rounded up to sectors
	Format      hypervisor.DiskFormat // of the disk: what the driver can read
}

// sector is what the size of a disk is a multiple of, in bytes.
const sector = 512

// maxSize bounds a disk, in bytes; it keeps the overlay's first-level table small.
const maxSize = 64 << 40

// Create makes the disk and returns how the VMM reaches it.
func Create(ctx context.Context, r Request) (hypervisor.Disk, error) {
	if r.ImageFormat == "" {
		r.ImageFormat = hypervisor.FormatRaw
	}
	if !filepath.IsAbs(r.ImagePath) || !filepath.IsAbs(r.Dest) {
		return hypervisor.Disk{}, errdefs.Invalid("make root disk: paths %q and %q must be absolute", r.ImagePath, r.Dest)
	}
	image, err := os.Open(r.ImagePath)
	if err != nil {
		return hypervisor.Disk{}, wrap(err, "open image")
	}
	defer image.Close()
	if err := check(&r, image); err != nil {
		return hypervisor.Disk{}, err
	}
	fill := func(f *os.File) error { return copyRaw(ctx, f, image, r.SizeBytes) }
	if r.Format == hypervisor.FormatQcow2 {
		fill = func(f *os.File) error { return writeOverlay(f, r.ImagePath, r.ImageFormat, r.SizeBytes) }
	}
	if err := publish(r.Dest, fill); err != nil {
		return hypervisor.Disk{}, wrap(err, "make root disk")
	}
	return hypervisor.Disk{Serial: hypervisor.SerialRoot, Path: r.Dest, Format: r.Format}, nil
}

// Method says, for people, how Create makes disks of a format in dir, and why so.
// It tries what depends on the file system; dir need not exist yet.
func Method(format hypervisor.DiskFormat, dir string) string {
	if format == hypervisor.FormatQcow2 {
		return "qcow2 views of the image: the driver reads them, on every file system"
	}
	const because = "the driver reads raw disks only"
	err := tryReflink(dir)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return "reflinks of the image where the file system shares blocks, else sparse copies: " + because
	case err != nil:
		return fmt.Sprintf("sparse copies of the image: %s, and files here share no blocks (%v)", because, err)
	}
	return fmt.Sprintf("reflinks of the image: %s, and files here share blocks", because)
}

// Used returns how many bytes of the host's disk a disk file takes, not counting
// the image it is a view of. Blocks shared by a reflink count for both.
func Used(path string) (int64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, wrap(&os.PathError{Op: "stat", Path: path, Err: err}, "measure disk")
	}
	return st.Blocks * 512, nil // st_blocks counts these whatever the block size
}

// check refuses what cannot become a disk, and rounds the size.
func check(r *Request, image *os.File) error {
	switch {
	case r.Format != hypervisor.FormatRaw && r.Format != hypervisor.FormatQcow2:
		return errdefs.Invalid("make root disk: unknown format %q", r.Format)
	case r.ImageFormat != hypervisor.FormatRaw && r.ImageFormat != hypervisor.FormatQcow2:
		return errdefs.Invalid("make root disk: image has unknown format %q", r.ImageFormat)
	case r.Format == hypervisor.FormatRaw && r.ImageFormat != hypervisor.FormatRaw:
		return errdefs.Unsupported("make root disk: a raw disk cannot be a view of a %s image", r.ImageFormat)
	case len(r.ImagePath) > maxBacking:
		return errdefs.Invalid("make root disk: the image's path has %d bytes, qcow2 allows %d", len(r.ImagePath), maxBacking).
			WithHint("use a shorter state directory")
	case r.SizeBytes <= 0 || r.SizeBytes > maxSize:
		return errdefs.Invalid("disk of %d bytes: it must be between the image's size and %d TiB", r.SizeBytes, int64(maxSize)>>40)
	}
	st, err := image.Stat()
	if err != nil {
		return wrap(err, "open image")
	}
	if !st.Mode().IsRegular() {
		return errdefs.Invalid("image %s is not a regular file", r.ImagePath)
	}
	need := st.Size()
	if r.ImageFormat == hypervisor.FormatQcow2 {
		if need, err = virtualSize(image); err != nil {
			return err
		}
	}
	if r.SizeBytes < need {
		mib := (need + 1<<20 - 1) >> 20
		return errdefs.Invalid("a disk of %d MiB is smaller than its image, which has %d MiB", r.SizeBytes>>20, mib).
			WithHint("use --disk %dM or more", mib)
	}
	r.SizeBytes = (r.SizeBytes + sector - 1) / sector * sector
	return nil
}

// publish makes dest in one step: filled and synced under another name first.
func publish(dest string, fill func(*os.File) error) (err error) {
	dir := filepath.Dir(dest)
	f, err := os.CreateTemp(dir, paths.StagingPrefix+filepath.Base(dest)+"-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	err = fill(f)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := unix.Renameat2(unix.AT_FDCWD, f.Name(), unix.AT_FDCWD, dest, unix.RENAME_NOREPLACE); err != nil {
		return &os.LinkError{Op: "rename", Old: f.Name(), New: dest, Err: err}
	}
	return syncDir(dir)
}

// syncDir makes the new name as durable as the content.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// wrap gives the errors of the operating system their class and remedy.
func wrap(err error, what string) error {
	switch {
	case errors.Is(err, os.ErrNotExist):
		return errdefs.NotFound("%s: %w", what, err).WithHint("the image's file is gone: pull it again")
	case errors.Is(err, os.ErrExist):
		return errdefs.AlreadyExists("%s: %w", what, err)
	case errors.Is(err, os.ErrPermission):
		return errdefs.Permission("%s: %w", what, err)
	}
	return errdefs.Wrap(err, "%s", what) // a full disk and a lost context have a class of their own
}
