package rootdisk

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"banger/internal/errdefs"
	"banger/internal/hypervisor"
)

// file is what the methods have in common whose disks are one file that the VMM
// opens by itself. There is nothing to activate.
type file struct {
	name   string // of the file, in the VM directory
	format hypervisor.DiskFormat
	// grow makes the file size bytes large, if it is smaller, and returns what it was.
	grow func(f *os.File, size int64) (was int64, err error)
}

func (m file) path(d Disk) string { return filepath.Join(d.Dir, m.name) }

// GrowsInUse implements Method.
func (file) GrowsInUse() bool { return true }

// Format implements Method.
func (m file) Format() hypervisor.DiskFormat { return m.format }

// View implements Method.
func (m file) View(d Disk) hypervisor.Disk {
	return hypervisor.Disk{Serial: hypervisor.SerialRoot, Path: m.path(d), Format: m.format}
}

// Activate implements Method. A disk is smaller than its row says when the daemon
// ended while it grew.
func (m file) Activate(_ context.Context, d Disk) error {
	_, err := m.resize(d)
	return err
}

// Deactivate implements Method.
func (m file) Deactivate(context.Context, Disk) error { return nil }

// Remove implements Method.
func (m file) Remove(_ context.Context, d Disk) error {
	if err := os.Remove(m.path(d)); !errors.Is(err, fs.ErrNotExist) {
		return wrap(err, "remove root disk")
	}
	return nil
}

// Grow implements Method.
func (m file) Grow(_ context.Context, d Disk) error {
	was, err := m.resize(d)
	if err != nil {
		return err
	}
	return shrinks(d, was)
}

func (m file) resize(d Disk) (was int64, err error) {
	f, err := os.OpenFile(m.path(d), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, errdefs.Precondition("the root disk is missing: %w", err).WithHint("delete the VM and make it anew")
	}
	if err != nil {
		return 0, wrap(err, "open root disk")
	}
	defer f.Close()
	if was, err = m.grow(f, round(d.Size)); err == nil && was < round(d.Size) {
		err = f.Sync()
	}
	return was, wrap(err, "grow root disk")
}

// Freeze implements Method. Sharing the blocks of a file is one moment for whoever
// writes it, copying them is not.
func (m file) Freeze(ctx context.Context, d Disk, into string, running bool) error {
	src, err := os.Open(m.path(d))
	if err != nil {
		return wrap(err, "freeze root disk")
	}
	defer src.Close()
	err = publish(filepath.Join(into, m.name), 0, func(f *os.File) error {
		err := reflink(f, src)
		switch {
		case err == nil:
			return nil
		case running:
			return errdefs.Unsupported("freeze the disk of a running vm: %w", err).
				WithHint("stop the VM first; or keep the state on XFS or btrfs, where files share blocks")
		}
		return copySparse(ctx, f, src)
	})
	return wrap(err, "freeze root disk")
}

// Clone implements Method.
func (m file) Clone(ctx context.Context, from string, d Disk) error {
	image, err := open(&d)
	if err != nil {
		return err
	}
	_ = image.Close()
	src, err := os.Open(filepath.Join(from, m.name))
	if err != nil {
		return wrap(err, "clone root disk")
	}
	defer src.Close()
	err = publish(m.path(d), d.UID, func(f *os.File) error {
		if err := copyFile(ctx, f, src); err != nil {
			return err
		}
		was, err := m.grow(f, d.Size)
		return errors.Join(err, shrinks(d, was))
	})
	return wrap(err, "clone root disk")
}

// Used implements Method.
func (m file) Used(d Disk) (int64, error) {
	n, err := used(m.path(d))
	return n, wrap(err, "measure root disk")
}
