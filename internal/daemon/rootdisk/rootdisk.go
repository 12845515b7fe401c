// Package rootdisk makes a VM's root disk: its private, writable view of an image
// that other VMs use too.
//
// There are several methods of making one; which of them a host and a driver allow
// is Set's to say. The words:
//
//	Disk      names one disk: whose it is, of which image, how large
//	Method    makes disks in one way
//	active    ready to be opened by a VMM
//
// Life: Create makes the files, in the VM directory. Activate comes before each
// start of a VMM, Deactivate after its end; between the two only VMM and kernel
// touch the disk. What lives in the kernel is gone after the host has booted again,
// and may be lost or left half made at any moment, so it is found by names that
// follow from the VM's id, and Activate and Deactivate put right whatever they find.
// Remove takes everything away. The image is never written.
//
// Every method passes the same tests.
package rootdisk

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"banger/internal/durable"
	"banger/internal/errdefs"
	"banger/internal/hypervisor"
	"banger/internal/paths"
)

// Disk names one VM's root disk.
type Disk struct {
	VMID  string // what is made in the kernel is named after it
	Dir   string // the VM directory, absolute; the disk's files lie there
	Image string // absolute path of the raw image it is a view of
	Size  int64  // what the guest sees, in bytes
	UID   int    // user (and group) whose VMM opens it; 0: the daemon's own
}

// Method makes root disks in one way.
type Method interface {
	// Name is the method's name, as stored in a VM's row.
	Name() string
	// Format is what a driver must be able to read.
	Format() hypervisor.DiskFormat
	// Check says for people what lets disks be made so in dir, or what keeps them from
	// it, with class unsupported or permission and a hint. It tries, and leaves nothing.
	// dir need not exist: what depends on it is then taken for granted.
	Check(ctx context.Context, dir string) (why string, err error)
	// Create makes the disk. When it returns the disk is on stable storage, whole; when
	// it fails nothing is left. Size is rounded up to sectors.
	Create(ctx context.Context, d Disk) error
	// View is what an active disk is to a driver.
	View(d Disk) hypervisor.Disk
	// Activate makes the disk ready for a VMM, and as large as Size says if it is
	// smaller. It is idempotent; when it fails, Deactivate undoes what it did.
	Activate(ctx context.Context, d Disk) error
	// Deactivate takes away what Activate, whole or interrupted, has made. No VMM may
	// use the disk. It is idempotent, and safe when there is no such disk.
	Deactivate(ctx context.Context, d Disk) error
	// Remove deactivates the disk and removes its files. It is idempotent.
	Remove(ctx context.Context, d Disk) error
	// Grow makes a disk that is not active as large as Size says. One that is larger
	// is refused with class invalid_argument.
	Grow(ctx context.Context, d Disk) error
	// GrowsInUse says whether a VMM may make an active disk larger by itself.
	GrowsInUse() bool
	// Freeze puts a point in time of the disk into the directory into, which must be on
	// the file system of d.Dir. What was flushed before is in it, and it never changes.
	// It is whole when Freeze returns nil; into is the caller's to remove, in any case.
	// running says that a VMM uses the disk, which goes on after a moment; a method
	// that needs it to stand still refuses with class unsupported, one whose disk is held
	// for want of space with class exhausted.
	Freeze(ctx context.Context, d Disk, into string, running bool) error
	// Clone makes the disk from what Freeze has put into a directory. Image must be the
	// frozen disk's. It is otherwise as Create.
	Clone(ctx context.Context, from string, d Disk) error
	// Flat writes what the guest sees into f, which is empty, as a plain file. Where the
	// file system can, it shares the blocks of disk and image; holes stay holes. No VMM
	// may use the disk. What is in f after an error is of no use. It is not synced.
	Flat(ctx context.Context, d Disk, f *os.File) error
	// Used returns how many bytes of the host's disk the disk takes, not counting the
	// image. What several disks share counts for each.
	Used(d Disk) (int64, error)
}

// sector is what the size of a disk is a multiple of, in bytes.
const sector = 512

// maxSize bounds a disk, in bytes; it keeps the overlay's first-level table small.
const maxSize = 64 << 40

// open opens the image of a disk that is to be made, refuses what cannot become one,
// and rounds its size.
func open(d *Disk) (*os.File, error) {
	if !filepath.IsAbs(d.Image) || !filepath.IsAbs(d.Dir) {
		return nil, errdefs.Invalid("make root disk: paths %q and %q must be absolute", d.Image, d.Dir)
	}
	if d.Size <= 0 || d.Size > maxSize {
		return nil, errdefs.Invalid("disk of %d bytes: it must be between the image's size and %d TiB", d.Size, int64(maxSize)>>40)
	}
	image, err := os.Open(d.Image)
	if err != nil {
		return nil, wrap(err, "open image")
	}
	if err := fits(d, image); err != nil {
		_ = image.Close()
		return nil, err
	}
	d.Size = round(d.Size)
	return image, nil
}

func fits(d *Disk, image *os.File) error {
	st, err := image.Stat()
	if err != nil {
		return wrap(err, "open image")
	}
	if !st.Mode().IsRegular() {
		return errdefs.Invalid("image %s is not a regular file", d.Image)
	}
	if d.Size < st.Size() {
		mib := (st.Size() + 1<<20 - 1) >> 20
		return errdefs.Invalid("a disk of %d MiB is smaller than its image, which has %d MiB", d.Size>>20, mib).
			WithHint("use --disk %dM or more", mib)
	}
	return nil
}

func round(n int64) int64 { return (n + sector - 1) / sector * sector }

// shrinks refuses to make a disk smaller.
func shrinks(d Disk, have int64) error {
	if round(d.Size) >= have {
		return nil
	}
	return errdefs.Invalid("a disk of %d MiB cannot become smaller (%d MiB)", have>>20, d.Size>>20).
		WithHint("a file system in use cannot shrink; make a VM with a smaller --disk and copy what you need")
}

// publish makes dest in one step: filled, given to the VMM's user and synced under
// another name first.
func publish(dest string, uid int, fill func(*os.File) error) (err error) {
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
	if err == nil && uid != 0 {
		err = f.Chown(uid, uid)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := unix.Renameat2(unix.AT_FDCWD, f.Name(), unix.AT_FDCWD, dest, unix.RENAME_NOREPLACE); err != nil {
		return &os.LinkError{Op: "rename", Old: f.Name(), New: dest, Err: err}
	}
	return durable.SyncDir(dir)
}

// used returns how many bytes of the host's disk a file takes.
func used(path string) (int64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return st.Blocks * 512, nil // st_blocks counts these whatever the block size
}

// wrap gives the errors of the operating system their class and remedy.
func wrap(err error, what string) error {
	if err == nil {
		return nil
	}
	var known *errdefs.Error
	switch {
	case errors.As(err, &known): // by who knows better
	case errors.Is(err, os.ErrNotExist):
		return errdefs.NotFound("%s: %w", what, err).WithHint("the image's file is gone: pull it again")
	case errors.Is(err, os.ErrExist):
		return errdefs.AlreadyExists("%s: %w", what, err)
	case errors.Is(err, os.ErrPermission):
		return errdefs.Permission("%s: %w", what, err)
	}
	return errdefs.Wrap(err, "%s", what) // a full disk and a lost context have a class of their own
}
