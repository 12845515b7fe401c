package rootdisk_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"banger/internal/daemon/dmsnap"
	"banger/internal/daemon/rootdisk"
	"banger/internal/disktest"
	"banger/internal/errdefs"
	"banger/internal/hypervisor"
	"banger/internal/sysexec"
)

func qemuImg(t *testing.T, args ...string) []byte {
	t.Helper()
	if _, err := sysexec.Look("qemu-img"); err != nil {
		t.Skip("needs qemu-img (package qemu-utils)")
	}
	out, err := sysexec.Output(t.Context(), sysexec.Cmd{Path: "qemu-img", Args: args})
	if err != nil {
		t.Fatalf("qemu-img %v: %v", args, err)
	}
	return out
}

func qemuIO(t *testing.T, path string, value byte, at, n int64) {
	t.Helper()
	out, err := sysexec.Output(t.Context(), sysexec.Cmd{
		Path: "qemu-io", Args: []string{"-f", "qcow2", "-c", fmt.Sprintf("write -P %d %d %d", value, at, n), path},
	})
	if err != nil || strings.Contains(string(out), "fail") {
		t.Fatalf("qemu-io: %v: %s", err, out)
	}
}

// qemuZero has clusters say that they are zero.
func qemuZero(t *testing.T, path string, at, n int64) {
	t.Helper()
	out, err := sysexec.Output(t.Context(), sysexec.Cmd{
		Path: "qemu-io", Args: []string{"-f", "qcow2", "-c", fmt.Sprintf("write -z %d %d", at, n), path},
	})
	if err != nil || strings.Contains(string(out), "fail") {
		t.Fatalf("qemu-io: %v: %s", err, out)
	}
}

// filled is b with n bytes of value at a place.
func filled(b []byte, at, n int64, value byte) []byte {
	b = bytes.Clone(b)
	copy(b[at:], bytes.Repeat([]byte{value}, int(n)))
	return b
}

func (w *world) same(what string, got, want []byte) {
	w.Helper()
	if !bytes.Equal(got, want) {
		w.Errorf("%s: %d bytes differ from the %d that should be there", what, len(got), len(want))
	}
}

// A disk holds its image's content and nothing besides, takes next to nothing, is as
// large as asked, keeps what is written from use to use, and leaves the image alone.
func TestLife(t *testing.T) {
	each(t, func(w *world) {
		for _, size := range []int64{8 * mib, 8*mib + 1, 100 * mib, 3 << 30, 5 << 40} {
			if size > 4<<40 && w.m.Name() == "dmsnap" {
				size = 1 << 40 // ext4 has no larger files
			}
			d := w.made(size)
			n, err := w.m.Used(d)
			if w.must(err); n > mib {
				w.Errorf("an unused disk takes %d bytes", n)
			}
			if v := w.m.View(d); v.Serial != hypervisor.SerialRoot || v.Format != w.m.Format() || filepath.Dir(v.Path) != d.Dir {
				w.Errorf("view %+v", v)
			}
			if size > 100*mib {
				w.use(d, func(u *used) { u.checkSize(size) })
				w.must(w.m.Remove(w.Context(), d))
				continue // content is the same, and takes long
			}
			want := append(bytes.Clone(w.noise), make([]byte, (size+511)/512*512-8*mib)...)
			w.use(d, func(u *used) {
				w.same("a new disk", u.content(), want)
				u.write(mib, mib, 'x')
				u.write(size/2&^4095, 4096, 'y')
			})
			want = filled(filled(want, mib, mib, 'x'), size/2&^4095, 4096, 'y')
			w.must(w.m.Activate(w.Context(), d)) // twice
			w.use(d, func(u *used) { w.same("a used disk", u.content(), want) })
			w.must(w.m.Deactivate(w.Context(), d))
			if n, err := w.m.Used(d); err != nil || n < mib {
				w.Errorf("a used disk takes %d bytes, %v", n, err)
			}
			w.must(w.m.Remove(w.Context(), d))
			w.must(w.m.Remove(w.Context(), d))
			w.only(d.Dir)
		}
		b, err := os.ReadFile(w.image)
		w.must(err)
		w.same("the image", b, w.noise)
	})
}

// only checks that a directory holds nothing but these.
func (w *world) only(dir string, names ...string) {
	w.Helper()
	entries, err := os.ReadDir(dir)
	w.must(err)
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if !slices.Equal(got, names) {
		w.Errorf("%s holds %q, want %q", dir, got, names)
	}
}

func (u *used) checkSize(size int64) {
	u.Helper()
	size = (size + 511) / 512 * 512
	if u.view.Format == hypervisor.FormatRaw {
		f, err := os.Open(u.view.Path)
		u.must(err)
		defer f.Close()
		if at, err := f.Seek(0, 2); err != nil || at != size {
			u.Errorf("size %d, %v; want %d", at, err, size)
		}
		return
	}
	var info struct {
		VirtualSize int64  `json:"virtual-size"`
		Backing     string `json:"backing-filename"`
		BackingFmt  string `json:"backing-filename-format"`
		Cluster     int    `json:"cluster-size"`
		Specific    struct {
			Data struct {
				Compat string `json:"compat"`
			} `json:"data"`
		} `json:"format-specific"`
	}
	u.must(json.Unmarshal(qemuImg(u.T, "info", "--output=json", u.view.Path), &info))
	if info.VirtualSize != size || info.Backing != u.image || info.BackingFmt != "raw" || info.Cluster != 64<<10 || info.Specific.Data.Compat != "1.1" {
		u.Errorf("info %+v", info)
	}
	var check struct {
		Errors      int `json:"check-errors"`
		Leaks       int `json:"leaks"`
		Corruptions int `json:"corruptions"`
	}
	u.must(json.Unmarshal(qemuImg(u.T, "check", "--output=json", u.view.Path), &check))
	if check.Errors+check.Leaks+check.Corruptions > 0 {
		u.Errorf("check %+v", check)
	}
}

// A disk grows and keeps its content, and never shrinks. One whose row says more than
// it is grows when it is used next.
func TestGrow(t *testing.T) {
	each(t, func(w *world) {
		d := w.made(16 * mib)
		w.use(d, func(u *used) { u.write(12*mib, 4*mib, 'a') })
		want := filled(append(bytes.Clone(w.noise), make([]byte, 24*mib)...), 12*mib, 4*mib, 'a')
		d.Size = 24 * mib
		w.must(w.m.Grow(w.Context(), d))
		w.must(w.m.Grow(w.Context(), d))
		w.use(d, func(u *used) { w.same("grown", u.content(), want[:24*mib]) })
		d.Size = 32 * mib
		w.use(d, func(u *used) {
			w.same("grown when it was used", u.content(), want)
			u.write(31*mib, mib, 'b')
		})
		want = filled(want, 31*mib, mib, 'b')
		small := d
		small.Size = 24 * mib
		if err := w.m.Grow(w.Context(), small); !errors.Is(err, errdefs.ErrInvalidArgument) || errdefs.HintOf(err) == "" {
			w.Errorf("shrinking: %v", err)
		}
		w.use(d, func(u *used) { w.same("refused to shrink", u.content(), want) })
		// Far enough for more entries in an overlay's table.
		d.Size = 40 << 30
		w.must(w.m.Grow(w.Context(), d))
		w.use(d, func(u *used) { u.checkSize(d.Size) })
	})
}

// A frozen disk stays what it was, and disks cloned from it begin as that, whatever
// becomes of all others.
func TestFreezeAndClone(t *testing.T) {
	each(t, func(w *world) {
		d := w.made(16 * mib)
		want := append(bytes.Clone(w.noise), make([]byte, 8*mib)...)
		points := []string{filepath.Join(w.dir, "first"), filepath.Join(w.dir, "second")}
		for i, into := range points {
			w.must(os.Mkdir(into, 0o700))
			w.use(d, func(u *used) { u.write(int64(i)*4*mib, 4096, byte('a'+i)) })
			want = filled(want, int64(i)*4*mib, 4096, byte('a'+i))
			w.must(w.m.Freeze(w.Context(), d, into, false))
		}
		w.use(d, func(u *used) {
			w.same("frozen twice", u.content(), want)
			u.write(0, 8*mib, 'z')
		})
		first := filled(want, 4*mib, 4096, 0)
		copy(first[4*mib:], w.noise[4*mib:4*mib+4096])
		c := w.disk(24 * mib)
		w.must(w.m.Clone(w.Context(), points[0], c))
		w.use(c, func(u *used) {
			w.same("a clone of the first", u.content(), append(first, make([]byte, 8*mib)...))
			u.write(0, mib, 'q')
		})
		small := w.disk(12 * mib)
		if err := w.m.Clone(w.Context(), points[1], small); !errors.Is(err, errdefs.ErrInvalidArgument) {
			w.Errorf("a clone that is smaller: %v", err)
		}
		w.only(small.Dir)
		if err := w.m.Clone(w.Context(), points[1], d); !errors.Is(err, errdefs.ErrAlreadyExists) {
			w.Errorf("a clone in the place of a disk: %v", err)
		}
		w.use(d, func(u *used) { w.same("not replaced", u.content(), filled(want, 0, 8*mib, 'z')) })
		lost := w.disk(16 * mib)
		lost.Image += "x"
		if err := w.m.Clone(w.Context(), points[1], lost); !errors.Is(err, errdefs.ErrNotFound) {
			w.Errorf("a clone without its image: %v", err)
		}
		w.only(lost.Dir)
		w.must(w.m.Remove(w.Context(), d))
		c2 := w.disk(16 * mib)
		w.must(w.m.Clone(w.Context(), points[1], c2))
		for _, p := range points {
			w.must(os.RemoveAll(p))
		}
		w.use(c2, func(u *used) { w.same("a clone of the second", u.content(), want) })
		none := w.disk(16 * mib)
		if err := w.m.Clone(w.Context(), points[0], none); !errors.Is(err, errdefs.ErrNotFound) {
			w.Errorf("a clone of nothing: %v", err)
		}
		w.only(none.Dir)
	})
}

// A disk is frozen before it was ever used, and once more before it was used again: it
// and its clones are what it was made as.
func TestFreezeUnused(t *testing.T) {
	each(t, func(w *world) {
		d := w.made(8 * mib)
		disks := []rootdisk.Disk{d}
		for _, name := range []string{"first", "second"} {
			into := filepath.Join(w.dir, name)
			w.must(os.Mkdir(into, 0o700))
			w.must(w.m.Freeze(w.Context(), d, into, false))
			c := w.disk(8 * mib)
			w.must(w.m.Clone(w.Context(), into, c))
			disks = append(disks, c)
		}
		for _, d := range disks {
			for i := range 2 {
				w.use(d, func(u *used) {
					w.same("frozen unused", u.content(), filled(w.noise, mib, int64(i)*4096, 'a'))
					u.write(mib, 4096, 'a')
				})
			}
		}
	})
}

// The files of a disk by device-mapper are whole before the kernel sees one: each layer
// has the header by which it is known.
func TestLayersAreWhole(t *testing.T) {
	w := &world{T: t, m: rootdisk.DMSnap(dmsnap.New(t.TempDir()), slog.New(slog.DiscardHandler)), dir: t.TempDir()}
	w.image = filepath.Join(w.dir, "image")
	w.must(os.WriteFile(w.image, make([]byte, mib), 0o600))
	d, into := w.made(mib), filepath.Join(w.dir, "into")
	w.must(os.Mkdir(into, 0o700))
	w.must(w.m.Freeze(t.Context(), d, into, false))
	w.must(w.m.Freeze(t.Context(), d, t.TempDir(), false))
	c := w.disk(mib)
	w.must(w.m.Clone(t.Context(), into, c))
	w.only(c.Dir, "root.cow", "root.cow.0")
	files, _ := filepath.Glob(w.dir + "/*/root.cow*")
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil || !strings.HasPrefix(string(b), "SnAp\x01") || int64(len(b)) != dmsnap.LayerSize(mib) {
			t.Errorf("%s has %d bytes, %q, %v", f, len(b), b[:min(16, len(b))], err)
		}
	}
	if len(files) != 6 {
		t.Errorf("the layers are %q", files)
	}
}

// A disk in use is frozen as well, or that is refused, and it goes on in any case.
func TestFreezeRunning(t *testing.T) {
	each(t, func(w *world) {
		d := w.made(16 * mib)
		into := filepath.Join(w.dir, "point")
		w.must(os.Mkdir(into, 0o700))
		want := append(bytes.Clone(w.noise), make([]byte, 8*mib)...)
		before := filled(want, 0, mib, 'a')
		frozen := false
		w.use(d, func(u *used) {
			u.write(0, mib, 'a')
			if m, ok := w.m.(rootdisk.Watcher); ok {
				watch, err := m.Watch(d)
				w.must(err)
				defer func() { w.must(watch.Close()) }()
			}
			err := w.m.Freeze(w.Context(), d, into, true)
			if frozen = w.place.shares() || w.m.Name() == "dmsnap"; !frozen {
				if !errors.Is(err, errdefs.ErrUnsupported) || errdefs.HintOf(err) == "" {
					w.Errorf("freeze: %v", err)
				}
				w.only(into)
			} else if err != nil {
				w.Fatal(err)
			}
			u.write(0, mib, 'b')
			w.same("in use", u.content(), filled(want, 0, mib, 'b'))
		})
		w.use(d, func(u *used) { w.same("used again", u.content(), filled(want, 0, mib, 'b')) })
		if frozen {
			c := w.disk(16 * mib)
			w.must(w.m.Clone(w.Context(), into, c))
			w.use(c, func(u *used) { w.same("the clone", u.content(), before) })
		}
	})
}

func TestRefusals(t *testing.T) {
	each(t, func(w *world) {
		taken := w.made(8 * mib)
		for _, c := range []struct {
			name  string
			bend  func(*rootdisk.Disk)
			class errdefs.Class
			hint  string
		}{
			{"too small", func(d *rootdisk.Disk) { d.Size-- }, errdefs.ClassInvalidArgument, "--disk 8M"},
			{"zero", func(d *rootdisk.Disk) { d.Size = 0 }, errdefs.ClassInvalidArgument, ""},
			{"negative", func(d *rootdisk.Disk) { d.Size = -1 }, errdefs.ClassInvalidArgument, ""},
			{"absurd", func(d *rootdisk.Disk) { d.Size = 1 << 62 }, errdefs.ClassInvalidArgument, ""},
			{"relative image", func(d *rootdisk.Disk) { d.Image = "rootdisk_test.go" }, errdefs.ClassInvalidArgument, ""},
			{"no image", func(d *rootdisk.Disk) { d.Image += "x" }, errdefs.ClassNotFound, "pull"},
			{"a directory", func(d *rootdisk.Disk) { d.Image = d.Dir }, errdefs.ClassInvalidArgument, ""},
			{"taken", func(d *rootdisk.Disk) { d.Dir = taken.Dir }, errdefs.ClassAlreadyExists, ""},
		} {
			d := w.disk(8 * mib)
			dir := d.Dir
			c.bend(&d)
			err := w.m.Create(w.Context(), d)
			if err == nil || errdefs.ClassOf(err) != c.class || !strings.Contains(errdefs.HintOf(err), c.hint) {
				w.Errorf("%s: got %v (class %s, hint %q)", c.name, err, errdefs.ClassOf(err), errdefs.HintOf(err))
			}
			w.only(dir)
		}
		w.use(taken, func(u *used) { w.same("an existing disk", u.content(), w.noise) })
		gone := w.disk(8 * mib)
		if err := w.m.Activate(w.Context(), gone); !errors.Is(err, errdefs.ErrFailedPrecondition) || !strings.Contains(errdefs.HintOf(err), "make it anew") {
			w.Errorf("a disk that is not there: %v", err)
		}
		w.must(w.m.Deactivate(w.Context(), gone))
	})
}

func TestCancel(t *testing.T) {
	each(t, func(w *world) {
		ctx, cancel := context.WithCancel(w.Context())
		cancel()
		d := w.disk(8 * mib)
		if err := w.m.Create(ctx, d); err == nil {
			return // it takes no time that could be cut short
		} else if errdefs.ClassOf(err) != errdefs.ClassCanceled {
			w.Errorf("got %v", err)
		}
		w.only(d.Dir)
	})
}

// With any amount of space too little a disk is an error with a remedy, and leaves
// nothing; with enough it is made.
func TestNoSpace(t *testing.T) {
	dir, leave := disktest.Small(t, 32*mib)
	img := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(img, bytes.Repeat([]byte("full"), mib), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, m := range []rootdisk.Method{rootdisk.QCOW2(), rootdisk.Sparse()} {
		failures := 0
		for _, free := range []int64{0, 4 << 10, 8 << 10, 12 << 10, 16 << 10, 64 << 10, 256 << 10, mib, 3 * mib, 4*mib - 4096, 4 * mib, 16 * mib} {
			leave(free)
			d := rootdisk.Disk{Dir: dir, Image: img, Size: 8 * mib}
			err := m.Create(t.Context(), d)
			if err == nil {
				if err := m.Remove(t.Context(), d); err != nil {
					t.Fatal(err)
				}
				continue
			}
			failures++
			if errdefs.ClassOf(err) != errdefs.ClassExhausted || errdefs.HintOf(err) == "" {
				t.Errorf("%s with %d free: %v", m.Name(), free, err)
			}
			if entries, _ := os.ReadDir(dir); len(entries) > 0 {
				t.Errorf("%s with %d free: left %v", m.Name(), free, entries)
			}
			if m.Name() == "sparse" && free >= 4*mib || free >= mib && m.Name() == "qcow2" {
				t.Errorf("%s: %d free is enough: %v", m.Name(), free, err)
			}
		}
		if failures < 2 {
			t.Errorf("%s: only %d failures", m.Name(), failures)
		}
	}
}
