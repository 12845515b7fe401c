package rootdisk

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/daemon/dmsnap"
	"banger/internal/durable"
	"banger/internal/errdefs"
	"banger/internal/hypervisor"
	"banger/internal/paths"
)

// DMSnap makes disks with device-mapper: what differs from the image is kept in a file
// for each layer, the newest of which is root.cow and is written. The older ones,
// root.cow.0 and so on, were frozen. Its disks are watched while they are used.
func DMSnap(host *dmsnap.Host, log *slog.Logger) Watcher {
	s := &snap{host: host}
	s.guard = newGuard(host, log)
	return s
}

type snap struct {
	host  *dmsnap.Host
	guard *guard
}

// Name implements Method.
func (*snap) Name() string { return "dmsnap" }

// Format implements Method.
func (*snap) Format() hypervisor.DiskFormat { return hypervisor.FormatRaw }

// Check implements Method.
func (s *snap) Check(_ context.Context, dir string) (string, error) {
	if os.Geteuid() != 0 {
		return "", errdefs.Permission("device-mapper is for root").WithHint("run the daemon as root")
	}
	if err := s.host.Check(); err != nil {
		return "", err
	}
	var st unix.Statfs_t
	err := unix.Statfs(dir, &st)
	if err == nil && st.Flags&unix.ST_NODEV != 0 {
		return "", errdefs.Unsupported("the file system of %s allows no device nodes (nodev)", dir).
			WithHint("mount it without nodev, or keep the state elsewhere: set %s", paths.EnvStateDir)
	}
	return "device-mapper is here", nil
}

func (s *snap) cow(d Disk) string  { return filepath.Join(d.Dir, paths.RootCOWFile) }
func (s *snap) node(d Disk) string { return filepath.Join(d.Dir, paths.RootNode) }

// View implements Method.
func (s *snap) View(d Disk) hypervisor.Disk {
	return hypervisor.Disk{Serial: hypervisor.SerialRoot, Path: s.node(d), Format: hypervisor.FormatRaw}
}

// Create implements Method.
func (s *snap) Create(_ context.Context, d Disk) error {
	image, err := open(&d)
	if err != nil {
		return err
	}
	defer image.Close()
	st, err := image.Stat()
	if err != nil {
		return wrap(err, "open image")
	}
	if st.Size()%sector != 0 {
		return errdefs.Invalid("image %s is no block device's: it has %d bytes, not a multiple of %d", d.Image, st.Size(), sector).
			WithHint("set root_disk: auto in the config")
	}
	err = publish(s.cow(d), 0, func(f *os.File) error { return dmsnap.MakeLayer(f, d.Size) })
	return wrap(err, "make root disk")
}

// layers lists the files of the disk's layers in dir, the oldest first.
func layers(dir string) ([]string, error) {
	current := filepath.Join(dir, paths.RootCOWFile)
	st, err := os.Lstat(current)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errdefs.Precondition("the root disk is missing: %w", err).WithHint("delete the VM and make it anew")
	}
	if err != nil {
		return nil, err
	}
	var list []string
	for {
		frozen := fmt.Sprintf("%s.%d", current, len(list))
		fst, err := os.Lstat(frozen)
		if errors.Is(err, fs.ErrNotExist) {
			return append(list, current), nil
		}
		if err != nil {
			return nil, err
		}
		if os.SameFile(st, fst) {
			// The daemon ended while it froze the disk: the layer is still written.
			return append(list, current), os.Remove(frozen)
		}
		list = append(list, frozen)
	}
}

func (s *snap) volume(d Disk, layers []string) dmsnap.Volume {
	return dmsnap.Volume{Name: "banger-" + d.VMID, Owner: d.Dir, Image: d.Image, Layers: layers, Size: round(d.Size)}
}

// Activate implements Method. The VMM reaches the device by a node of its own: it
// must not open others of the host's, and in a jail sees its directory alone.
func (s *snap) Activate(ctx context.Context, d Disk) error {
	files, err := layers(d.Dir)
	if err != nil {
		return wrap(err, "activate root disk")
	}
	if err := s.fit(d); err != nil {
		return err
	}
	if err := s.unlink(d); err != nil {
		return err
	}
	dev, err := s.host.Up(ctx, s.volume(d, files))
	if err != nil {
		return errdefs.Wrap(err, "activate root disk")
	}
	if err := unix.Mknod(s.node(d), unix.S_IFBLK|0o600, int(dev)); err != nil {
		return wrap(&os.PathError{Op: "make node", Path: s.node(d), Err: err}, "activate root disk")
	}
	if d.UID != 0 {
		return wrap(os.Lchown(s.node(d), d.UID, d.UID), "activate root disk")
	}
	return nil
}

// fit makes the layer that is written large enough for the disk, if it is not.
func (s *snap) fit(d Disk) error {
	st, err := os.Stat(s.cow(d))
	if err == nil && st.Size() < dmsnap.LayerSize(round(d.Size)) {
		err = os.Truncate(s.cow(d), dmsnap.LayerSize(round(d.Size)))
	}
	return wrap(err, "grow root disk")
}

func (s *snap) unlink(d Disk) error {
	if err := os.Remove(s.node(d)); !errors.Is(err, fs.ErrNotExist) {
		return wrap(err, "remove the disk's node")
	}
	return nil
}

// Deactivate implements Method. The number of a node of a device that is gone may
// soon be another's, so the node goes first.
func (s *snap) Deactivate(ctx context.Context, d Disk) error {
	if err := s.unlink(d); err != nil {
		return err
	}
	return errdefs.Wrap(s.host.Down(ctx, s.volume(d, nil)), "deactivate root disk")
}

// Remove implements Method.
func (s *snap) Remove(ctx context.Context, d Disk) error {
	if err := s.Deactivate(ctx, d); err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(escape(d.Dir), paths.RootCOWFile+"*"))
	for _, f := range files {
		err = errors.Join(err, os.Remove(f))
	}
	return wrap(err, "remove root disk")
}

// escape makes a path a pattern that matches only itself.
func escape(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}

// GrowsInUse implements Method.
func (*snap) GrowsInUse() bool { return false }

// Grow implements Method. What the disk was is seen by its layer's size.
func (s *snap) Grow(_ context.Context, d Disk) error {
	st, err := os.Stat(s.cow(d))
	if err != nil {
		return wrap(err, "grow root disk")
	}
	if st.Size() > dmsnap.LayerSize(round(d.Size)) {
		return shrinks(d, st.Size())
	}
	return s.fit(d)
}

// Freeze implements Method. The layer that was written until now is done with: it
// gets a name, and a new one takes its place. That is on the disk before the VMM's
// next write is let through, so a crash at any moment leaves a stack that holds what
// the guest wrote.
func (s *snap) Freeze(ctx context.Context, d Disk, into string, running bool) error {
	files, err := layers(d.Dir)
	if err != nil {
		return wrap(err, "freeze root disk")
	}
	frozen := fmt.Sprintf("%s.%d", s.cow(d), len(files)-1)
	staged := filepath.Join(d.Dir, paths.StagingPrefix+paths.RootCOWFile)
	if err := s.newLayer(d, staged); err != nil {
		return wrap(err, "freeze root disk")
	}
	commit := func() error {
		if err := os.Link(s.cow(d), frozen); err != nil {
			return err
		}
		if err := os.Rename(staged, s.cow(d)); err != nil {
			return errors.Join(err, os.Remove(frozen))
		}
		return durable.SyncDir(d.Dir)
	}
	if running {
		err = s.guard.freeze(ctx, d, func() error { return s.host.Freeze(ctx, s.volume(d, files), staged, commit) })
	} else {
		err = commit()
	}
	if err != nil {
		_ = os.Remove(staged) // not there, if it is the new layer
		return wrap(err, "freeze root disk")
	}
	files[len(files)-1] = frozen
	return wrap(link(files, into), "freeze root disk")
}

// newLayer makes the file of a layer that is to become a disk's newest.
func (s *snap) newLayer(d Disk, path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	err = dmsnap.MakeLayer(f, round(d.Size))
	st, serr := os.Stat(s.cow(d))
	if err = errors.Join(err, serr); err == nil && st.Size() > dmsnap.LayerSize(round(d.Size)) {
		err = f.Truncate(st.Size())
	}
	return errors.Join(err, f.Sync(), f.Close())
}

// link gives frozen layers a name in another directory as well: they are the same for
// all who build on them, and go with the last.
func link(files []string, into string) error {
	for i, f := range files {
		if err := os.Link(f, filepath.Join(into, fmt.Sprintf("%s.%d", paths.RootCOWFile, i))); err != nil {
			return err
		}
	}
	return durable.SyncDir(into)
}

// Clone implements Method.
func (s *snap) Clone(ctx context.Context, from string, d Disk) error {
	if _, err := os.Lstat(s.cow(d)); !errors.Is(err, fs.ErrNotExist) {
		return wrap(cmp.Or(err, error(&os.PathError{Op: "make", Path: s.cow(d), Err: fs.ErrExist})), "clone root disk")
	}
	var files []string
	for {
		f := filepath.Join(from, fmt.Sprintf("%s.%d", paths.RootCOWFile, len(files)))
		st, err := os.Lstat(f)
		if errors.Is(err, fs.ErrNotExist) && len(files) > 0 {
			break
		}
		if err != nil {
			return wrap(err, "clone root disk")
		}
		if st.Size() > dmsnap.LayerSize(round(d.Size)) {
			return shrinks(d, st.Size())
		}
		files = append(files, f)
	}
	err := link(files, d.Dir)
	if err == nil {
		err = s.Create(ctx, d)
	}
	if err != nil {
		return errors.Join(wrap(err, "clone root disk"), s.Remove(context.WithoutCancel(ctx), d))
	}
	return nil
}

// Used implements Method.
func (s *snap) Used(d Disk) (int64, error) {
	files, err := layers(d.Dir)
	var sum int64
	for _, f := range files {
		n, ferr := used(f)
		sum, err = sum+n, errors.Join(err, ferr)
	}
	return sum, wrap(err, "measure root disk")
}

// Watch implements Watcher.
func (s *snap) Watch(d Disk) (Watch, error) { return s.guard.watch(d, s.volume(d, nil)) }

// Release implements Watcher.
func (s *snap) Release(d Disk) error { return s.host.Release(s.volume(d, nil)) }
