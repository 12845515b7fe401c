package imagemgr

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"banger/internal/daemon/imagemgr/ocitest"
	"banger/internal/disktest"
	"banger/internal/errdefs"
	"banger/internal/model"
	"banger/internal/sysexec"
)

const kib, mib = int64(1) << 10, int64(1) << 20

// state is all that a failure must leave as it was: rows, and names of files.
func (w *world) state() []string {
	w.t.Helper()
	images, err := w.db.ListImages(w.t.Context())
	kernels, err2 := w.db.ListKernels(w.t.Context())
	archives, err3 := os.ReadDir(w.layout.Initramfs())
	if err := errors.Join(err, err2, err3); err != nil {
		w.t.Fatal(err)
	}
	all := []string{w.files()}
	for _, i := range images {
		all = append(all, i.ID+" "+i.Name)
	}
	for _, k := range kernels {
		all = append(all, k.ID+" "+k.Name)
	}
	for _, a := range archives {
		all = append(all, a.Name())
	}
	return all
}

// elfKernel is as much of a kernel as an import looks at, with padding.
func elfKernel(size int64) []byte {
	b := make([]byte, size)
	copy(b, "\x7fELF\x02\x01\x01")
	le := binary.LittleEndian
	le.PutUint16(b[16:], 2)  // an executable
	le.PutUint16(b[18:], 62) // for x86-64
	le.PutUint32(b[20:], 1)
	le.PutUint16(b[52:], 64)
	copy(b[100:], "Linux version 6.9.0-mine (me@here) with virtio_blk and virtio_pci built in")
	return b
}

// elfModule is a module that needs no other.
func elfModule(name string) []byte {
	info, names := []byte("name="+name+"\x00depends=\x00"), []byte("\x00.modinfo\x00.shstrtab\x00")
	var b bytes.Buffer
	w := func(v any) { _ = binary.Write(&b, binary.LittleEndian, v) }
	b.WriteString("\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	w([]uint16{1, 62, 1, 0}) // relocatable, x86-64, version
	w([2]uint64{})
	w(uint64(64 + len(info) + len(names)))
	w([]uint16{0, 0, 64, 0, 0, 64, 3, 2})
	b.Write(info)
	b.Write(names)
	for _, s := range [][4]uint64{{}, {1, 1, 64, uint64(len(info))}, {10, 3, uint64(64 + len(info)), uint64(len(names))}} {
		w([]uint32{uint32(s[0]), uint32(s[1])})
		w([]uint64{0, 0, s[2], s[3]})
		w([]uint32{0, 0})
		w([]uint64{1, 0})
	}
	return b.Bytes()
}

// kernelTree is a directory to import a kernel from.
func kernelTree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	modules := filepath.Join(dir, "lib/modules/6.9.0-mine/kernel")
	if err := os.MkdirAll(modules, 0o755); err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{filepath.Join(dir, "vmlinux"): elfKernel(mib)}
	for n := range 300 {
		files[filepath.Join(modules, fmt.Sprintf("other%d.ko", n))] = append(elfModule(fmt.Sprint("other", n)), make([]byte, 2*kib)...)
	}
	for _, m := range append(append(neededModules, ext4Helpers...), lateModules...) {
		files[filepath.Join(modules, m+".ko")] = append(elfModule(m), make([]byte, 16*kib)...)
	}
	for path, data := range files {
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// Whatever is made, and however little space there is: the error says so and what
// to do, the state is what it was, and with enough space it works.
func TestNoSpace(t *testing.T) {
	registry := ocitest.Serve(t)
	registry.Put("a:1", large(t, "there", 1<<20))
	for name, c := range map[string]struct {
		tools []string
		make  func(ctx context.Context, w *world, from string) error
	}{
		"pull image": {make: func(ctx context.Context, w *world, _ string) error {
			_, err := w.s.PullImage(ctx, Pull{From: "debian:trixie"}, nobody{})
			return err
		}},
		"pull image again": {make: func(ctx context.Context, w *world, _ string) error {
			_, err := w.s.PullImage(ctx, Pull{From: "debian", Force: true}, nobody{})
			return err
		}},
		"pull layers": {make: func(ctx context.Context, w *world, _ string) error {
			_, err := w.s.PullImage(ctx, Pull{From: registry.Host + "/a:1"}, nobody{})
			return err
		}},
		"pull kernel": {make: func(ctx context.Context, w *world, _ string) error {
			_, err := w.s.PullKernel(ctx, "debian:trixie", false, nobody{})
			return err
		}},
		"pull kernel again": {make: func(ctx context.Context, w *world, _ string) error {
			_, err := w.s.PullKernel(ctx, "debian", true, nobody{})
			return err
		}},
		"import kernel": {tools: []string{"mke2fs", "debugfs", "depmod"}, make: func(ctx context.Context, w *world, from string) error {
			_, err := w.s.ImportKernel(ctx, "mine", KernelFrom{Dir: from}, nobody{})
			return err
		}},
		"initramfs": {make: func(ctx context.Context, w *world, _ string) error {
			k, err := w.s.GetKernel(ctx, "debian")
			if err == nil {
				_, err = w.s.BootFiles(ctx, k)
			}
			return err
		}},
	} {
		t.Run(name, func(t *testing.T) {
			for _, tool := range c.tools {
				if _, err := sysexec.Look(tool); err != nil {
					t.Skip(err)
				}
			}
			dir, leave := disktest.Small(t, 32*mib)
			from := kernelTree(t)
			w := worldAt(t, dir)
			w.write(w.s.AgentPath, strings.Repeat("agent", 100_000))
			w.image("debian")
			w.kernel("debian")
			w.fill(512 * kib)
			before := w.state()
			failed, enough := 0, false
			for _, free := range []int64{0, 4 * kib, 16 * kib, 64 * kib, 256 * kib, 512 * kib, 768 * kib, mib, 1280 * kib, 1536 * kib,
				2 * mib, 2304 * kib, 2560 * kib, 2816 * kib, 3 * mib, 3328 * kib, 3584 * kib, 4 * mib, 16 * mib} {
				leave(free)
				err := c.make(t.Context(), w, from)
				if err == nil {
					enough = true
					break
				}
				failed++
				if errdefs.ClassOf(err) != errdefs.ClassExhausted || !strings.Contains(errdefs.HintOf(err), "free some space") {
					t.Errorf("with %d free: %v (%s, %q)", free, err, errdefs.ClassOf(err), errdefs.HintOf(err))
				}
				if after := w.state(); !reflect.DeepEqual(after, before) {
					t.Errorf("with %d free it left %q, before %q", free, after, before)
				}
			}
			if failed < 3 || !enough {
				t.Errorf("it failed %d times, and succeeded: %v", failed, enough)
			}
			if t.Failed() {
				return
			}
			// It also works for the next daemon.
			w.start(w.db)
			if _, err := w.s.GetImage(t.Context(), "debian"); err != nil {
				t.Error(err)
			}
		})
	}
}

// The same for what is made of images that are here.
func TestNoSpaceForMore(t *testing.T) {
	for name, work := range map[string]func(w *world, out string) error{
		"tag": func(w *world, _ string) error {
			_, err := w.s.Tag(t.Context(), "debian", "further", false)
			return err
		},
		"promote": func(w *world, _ string) error {
			_, err := w.promote(Promotion{Image: "mine", Name: "further"})
			return err
		},
		"save": func(w *world, out string) error {
			_, err := w.save("mine", "oci-archive:"+out+"/further.tar", false)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir, leave := disktest.Small(t, 32*mib)
			w := worldAt(t, dir)
			w.image("debian")
			w.registered("mine", rand.Text()+strings.Repeat(rand.Text(), 10_000))
			out := filepath.Join(dir, "out")
			if err := os.Mkdir(out, 0o755); err != nil {
				t.Fatal(err)
			}
			before := w.state()
			failed, enough := 0, false
			for _, free := range []int64{0, 4 * kib, 16 * kib, 64 * kib, 256 * kib, mib, 4 * mib, 16 * mib} {
				leave(free)
				err := work(w, out)
				if err == nil {
					enough = true
					break
				}
				failed++
				if errdefs.ClassOf(err) != errdefs.ClassExhausted || !strings.Contains(errdefs.HintOf(err), "free some space") {
					t.Errorf("with %d free: %v (%s, %q)", free, err, errdefs.ClassOf(err), errdefs.HintOf(err))
				}
				left, err := os.ReadDir(out)
				if after := w.state(); !reflect.DeepEqual(after, before) || len(left) > 0 || err != nil {
					t.Errorf("with %d free it left %q and %v, before %q", free, after, left, before)
				}
			}
			if failed == 0 && name != "tag" || !enough { // a name may well fit into what the database has
				t.Errorf("it failed %d times, and succeeded: %v", failed, enough)
			}
		})
	}
}

// fill makes what is pulled from now on take that many bytes.
func (w *world) fill(size int64) {
	w.s.makeImage = func(_ context.Context, _ recipe, dir string, _ model.Progress) (madeImage, error) {
		made := madeImage{path: filepath.Join(dir, "half"), digest: "d"}
		return made, os.WriteFile(made.path, make([]byte, size), 0o644)
	}
	w.s.makeKernel = func(_ context.Context, suite, dir string, _ model.Progress) (madeKernel, error) {
		made := madeKernel{release: "6.1-" + suite, vmlinux: filepath.Join(dir, "v"), bzImage: filepath.Join(dir, "b"), source: "here"}
		return made, errors.Join(os.WriteFile(made.vmlinux, elfKernel(size), 0o644), os.WriteFile(made.bzImage, []byte("bzImage"), 0o644))
	}
}

// What the hint says to do works although nothing is free.
func TestRemoveWithoutSpace(t *testing.T) {
	dir, leave := disktest.Small(t, 32*mib)
	w := worldAt(t, dir)
	w.fill(512 * kib)
	v := w.vm("box", w.image("debian"), w.kernel("debian"))
	leave(0)
	before := w.state()
	if err := w.s.RemoveImage(t.Context(), "debian"); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("in use: %v", err)
	}
	if after := w.state(); !reflect.DeepEqual(after, before) {
		t.Errorf("in use: left %q, before %q", after, before)
	}
	leave(mib)
	if err := w.db.DeleteVM(t.Context(), v.ID); err != nil {
		t.Fatal(err)
	}
	leave(0)
	if err := errors.Join(w.s.RemoveImage(t.Context(), "debian"), w.s.RemoveKernel(t.Context(), "debian")); err != nil {
		t.Error(err)
	}
	if left := w.state(); len(left) > 1 || left[0] != "" {
		t.Errorf("left %q", left)
	}
}
