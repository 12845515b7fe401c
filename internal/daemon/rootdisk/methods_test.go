package rootdisk_test

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"banger/internal/daemon/dmsnap"
	"banger/internal/daemon/rootdisk"
	"banger/internal/errdefs"
	"banger/internal/hypervisor"
	"banger/internal/sysexec"
)

const mib = 1 << 20

// place is a file system on which a method is tested.
type place struct {
	name   string
	fs     string // "": where temporary files lie
	method func() rootdisk.Method
}

func places() []place {
	dm := func() rootdisk.Method {
		return rootdisk.DMSnap(dmsnap.New("/dev"), slog.New(slog.DiscardHandler))
	}
	return []place{
		{"qcow2", "", rootdisk.QCOW2},
		{"qcow2 on xfs", "xfs", rootdisk.QCOW2},
		{"sparse", "", rootdisk.Sparse},
		{"sparse on xfs", "xfs", rootdisk.Sparse},
		{"reflink on xfs", "xfs", rootdisk.Reflink},
		{"reflink on btrfs", "btrfs", rootdisk.Reflink},
		{"dmsnap", "", dm},
		{"dmsnap on xfs", "xfs", dm},
	}
}

// shares says whether files there share blocks.
func (p place) shares() bool { return p.fs != "" }

// world is where one disk and its image lie.
type world struct {
	*testing.T
	m     rootdisk.Method
	place place
	dir   string // VM directories lie in it
	image string
	noise []byte // what the image holds
}

// each runs fn for every method, wherever it is to be tested. One that does not work
// here is skipped.
func each(t *testing.T, fn func(w *world)) {
	for _, p := range places() {
		t.Run(p.name, func(t *testing.T) {
			w := &world{T: t, m: p.method(), place: p, dir: t.TempDir()}
			if p.fs != "" {
				w.dir = mounted(t, p.fs)
			}
			if _, err := w.m.Check(t.Context(), w.dir); err != nil {
				if errdefs.HintOf(err) == "" {
					t.Errorf("no hint with %v", err)
				}
				t.Skipf("does not work here: %v", err)
			}
			w.image = filepath.Join(w.dir, "an image: with, odd \"name\".ext4")
			w.noise = make([]byte, 8*mib)
			f, err := os.Create(w.image)
			w.must(err)
			for _, at := range []int{0, 3 * mib, 8*mib - 4096} { // holes between
				part := w.noise[at : at+4096]
				_, _ = rand.Read(part)
				_, err = f.WriteAt(part, int64(at))
				w.must(err)
			}
			w.must(f.Close())
			fn(w)
		})
	}
}

// mounted makes a small file system of that kind. It goes with the test.
func mounted(t *testing.T, kind string) string {
	t.Helper()
	mkfs, err := sysexec.Look("mkfs." + kind)
	if err != nil || os.Geteuid() != 0 {
		t.Skipf("needs root and mkfs.%s (packages xfsprogs, btrfs-progs)", kind)
	}
	file := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(file)
	if err == nil {
		err = errors.Join(f.Truncate(512*mib), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, c := range []sysexec.Cmd{{Path: mkfs, Args: []string{file}}, {Path: "mount", Args: []string{"-o", "loop", file, dir}}} {
		if err := sysexec.Run(t.Context(), c); err != nil {
			t.Skipf("no %s here: %v", kind, err)
		}
	}
	t.Cleanup(func() {
		// Loop devices of ours may have files there open for a moment longer: see dmsnap.
		if err := sysexec.Run(context.Background(), sysexec.Cmd{Path: "umount", Args: []string{"-l", dir}}); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// disk names a new disk. Whatever a test leaves of it in the kernel is removed.
func (w *world) disk(size int64) rootdisk.Disk {
	w.Helper()
	var id [6]byte
	_, _ = rand.Read(id[:])
	d := rootdisk.Disk{VMID: hex.EncodeToString(id[:]), Image: w.image, Size: size}
	d.Dir = filepath.Join(w.dir, d.VMID)
	w.must(os.Mkdir(d.Dir, 0o700))
	w.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		w.must(w.m.Deactivate(ctx, d))
	})
	return d
}

func (w *world) made(size int64) rootdisk.Disk {
	w.Helper()
	d := w.disk(size)
	w.must(w.m.Create(w.Context(), d))
	return d
}

// use does something with a disk as a VMM does, between Activate and Deactivate.
func (w *world) use(d rootdisk.Disk, do func(*used)) {
	w.Helper()
	w.must(w.m.Activate(w.Context(), d))
	u := &used{world: w, view: w.m.View(d)}
	do(u)
	w.must(w.m.Deactivate(w.Context(), d))
}

// used is an active disk. It is read and written by name, as nothing keeps it open.
type used struct {
	*world
	view hypervisor.Disk
}

// content is the whole of the disk.
func (u *used) content() []byte {
	u.Helper()
	if u.view.Format == hypervisor.FormatQcow2 {
		plain := filepath.Join(u.TempDir(), "plain")
		qemuImg(u.T, "convert", "-f", "qcow2", "-O", "raw", u.view.Path, plain)
		b, err := os.ReadFile(plain)
		u.must(err)
		return b
	}
	f, err := os.Open(u.view.Path)
	u.must(err)
	defer f.Close()
	b, err := io.ReadAll(f)
	u.must(err)
	return b
}

// write writes so many bytes of value n, and flushes them.
func (u *used) write(at, n int64, value byte) {
	u.Helper()
	if u.view.Format == hypervisor.FormatQcow2 {
		qemuIO(u.T, u.view.Path, value, at, n)
		return
	}
	f, err := os.OpenFile(u.view.Path, os.O_RDWR, 0)
	u.must(err)
	defer f.Close()
	if _, err := f.WriteAt([]byte(strings.Repeat(string(rune(value)), int(n))), at); err != nil {
		u.Fatal(err)
	}
	u.must(f.Sync())
}
