package imagemgr

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"banger/internal/errdefs"
)

// ext4File writes a superblock that says the filesystem has that many blocks.
func (w *world) ext4File(blocks uint32, size int64) string {
	w.t.Helper()
	path := filepath.Join(w.t.TempDir(), "mine.ext4")
	sb := make([]byte, 2048)
	le := binary.LittleEndian
	le.PutUint32(sb[1024+4:], blocks)
	le.PutUint32(sb[1024+0x18:], 2)
	le.PutUint16(sb[1024+0x38:], 0xef53)
	le.PutUint32(sb[1024+0x60:], 0x40)
	w.write(path, string(sb))
	if err := os.Truncate(path, size); err != nil {
		w.t.Fatal(err)
	}
	return path
}

func TestRegister(t *testing.T) {
	w := newWorld(t)
	k := w.kernel("debian")
	path := w.ext4File(256, 1<<20)
	i, err := w.s.Register(t.Context(), Registration{Name: "mine", Rootfs: path, Kernel: "debian", User: "me", Workdir: "/src"})
	if err != nil || i.Managed || i.Path != path || i.SizeBytes != 1<<20 || i.KernelID != k.ID || i.Config.User != "me" {
		t.Fatalf("%+v, %v", i, err)
	}
	if got := w.image("mine"); got.ID != i.ID {
		t.Errorf("ensure gives %+v", got)
	}
	if err := w.s.RemoveKernel(t.Context(), "debian"); !errors.Is(err, errdefs.ErrFailedPrecondition) || !strings.Contains(err.Error(), "mine") {
		t.Errorf("removing the kernel it boots with: %v", err)
	}
	k2, err := w.s.PullKernel(t.Context(), "debian", true, nobody{})
	if err != nil {
		t.Fatal(err)
	}
	if got := w.image("mine"); got.KernelID != k2.ID {
		t.Error("the image still wants the kernel that was replaced")
	}
	for name, r := range map[string]Registration{
		"taken":          {Name: "mine", Rootfs: path},
		"reserved":       {Name: "debian:mine", Rootfs: path},
		"relative":       {Name: "x", Rootfs: "mine.ext4"},
		"absent":         {Name: "x", Rootfs: path + "x"},
		"a directory":    {Name: "x", Rootfs: filepath.Dir(path)},
		"no filesystem":  {Name: "x", Rootfs: filepath.Join(w.layout.State, "agent")},
		"cut short":      {Name: "x", Rootfs: w.ext4File(1<<20, 1<<20)},
		"empty":          {Name: "x", Rootfs: w.ext4File(0, 1<<20)},
		"unknown kernel": {Name: "x", Rootfs: path, Kernel: "nope"},
		"workdir":        {Name: "x", Rootfs: path, Workdir: "src"},
	} {
		if got, err := w.s.Register(t.Context(), r); err == nil || errdefs.ClassOf(err) == errdefs.ClassInternal || errdefs.HintOf(err) == "" {
			t.Errorf("%s: %+v, %v (%s)", name, got, err, errdefs.HintOf(err))
		}
	}
	if _, err := w.s.PullImage(t.Context(), Pull{From: "mine", Force: true}, nobody{}); !errors.Is(err, errdefs.ErrInvalidArgument) || errdefs.HintOf(err) == "" {
		t.Errorf("pulling it: %v", err)
	}
	if err := w.s.RemoveImage(t.Context(), "mine"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Error("removing the image took the user's file:", err)
	}
}

// An image with more packages has a name of its own, which says nothing of them.
func TestPullWithPackages(t *testing.T) {
	w := newWorld(t)
	tools := Pull{From: "debian:trixie", As: "tools", Include: []string{"golang-go", "libstdc++6"}}
	i, err := w.s.PullImage(t.Context(), tools, nobody{})
	if err != nil || !i.Managed || i.Name != "tools" {
		t.Fatalf("%+v, %v", i, err)
	}
	if b, err := os.ReadFile(i.Path); err != nil || string(b) != "root of trixie golang-go libstdc++6" {
		t.Errorf("made of %q, %v", b, err)
	}
	if again, err := w.s.PullImage(t.Context(), tools, nobody{}); err != nil || again.ID != i.ID {
		t.Errorf("a second pull gives %s, %v; was %s", again.ID, err, i.ID)
	}
	if got := w.image("tools"); got.ID != i.ID {
		t.Errorf("ensure gives %+v", got)
	}
	tools.Force = true
	if again, err := w.s.PullImage(t.Context(), tools, nobody{}); err != nil || again.ID == i.ID {
		t.Errorf("a forced pull gives %s, %v", again.ID, err)
	}
	for name, p := range map[string]Pull{
		"no name":       {From: "debian", Include: []string{"golang-go"}},
		"reserved name": {From: "debian", As: "debian:trixie", Include: []string{"golang-go"}},
		"bad name":      {From: "debian", As: "../x"},
		"an option":     {From: "debian", As: "x", Include: []string{"--force-yes"}},
		"two in one":    {From: "debian", As: "x", Include: []string{"a b"}},
		"many":          {From: "debian", As: "x", Include: slices.Repeat([]string{"golang-go"}, 501)},
		"by its name":   {From: "tools", Force: true},
	} {
		if got, err := w.s.PullImage(t.Context(), p, nobody{}); !errors.Is(err, errdefs.ErrInvalidArgument) || errdefs.HintOf(err) == "" {
			t.Errorf("%s: %+v, %v (%s)", name, got, err, errdefs.HintOf(err))
		}
	}
	if err := os.Remove(w.image("tools").Path); err != nil {
		t.Fatal(err)
	}
	if _, err := w.s.EnsureImage(t.Context(), "tools", nobody{}); !errors.Is(err, errdefs.ErrFailedPrecondition) || !strings.Contains(errdefs.HintOf(err), "image rm tools") {
		t.Errorf("without its file: %v (%s)", err, errdefs.HintOf(err))
	}
}

func TestImportKernel(t *testing.T) {
	w := newWorld(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	elf, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	elf = append(elf, bytes.Repeat([]byte{0}, 100)...)
	elf = append(elf, "Linux version 6.9.0-mine (me@here) "...)
	modular := bytes.ReplaceAll(elf, []byte("virtio"), []byte("vortio")) // the test program has the names as well
	elf = append(elf, "\x00virtio_blk\x00virtio-pci\x00"...)
	dir := filepath.Join(t.TempDir(), "a [strange] name")
	w.write(filepath.Join(dir, "vmlinux"), string(elf))
	w.write(filepath.Join(dir, ".config"), "CONFIG_X=y")
	k, err := w.s.ImportKernel(t.Context(), "mine", KernelFrom{Dir: dir}, nobody{})
	if err != nil {
		t.Fatal(err)
	}
	// The test program is the stand-in for a kernel; its own banner may be an earlier string.
	if k.ModulesPath != "" || k.BzImagePath != "" || k.Release == "" {
		t.Errorf("%+v", k)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(k.VmlinuxPath); err != nil || !bytes.Equal(got, elf) {
		t.Errorf("it was not copied: %v", err)
	}
	two := t.TempDir()
	w.write(filepath.Join(two, "vmlinuz-1"), "x")
	w.write(filepath.Join(two, "vmlinuz-2"), "x")
	bad := t.TempDir()
	w.write(filepath.Join(bad, "vmlinux"), "no ELF")
	other := t.TempDir()
	w.write(filepath.Join(other, "vmlinux"), string(elf))
	w.write(filepath.Join(other, "lib/modules/1.2.3-other/modules.order"), "")
	bare := t.TempDir()
	w.write(filepath.Join(bare, "vmlinux"), string(modular))
	device := t.TempDir()
	if err := os.Symlink("/dev/null", filepath.Join(device, "vmlinux")); err != nil {
		t.Fatal(err)
	}
	for name, dir := range map[string]string{"modules of another": other, "nothing built in": bare, "a device": device, "gone": dir, "empty": t.TempDir(), "two kernels": two, "no kernel": bad, "relative": "x"} {
		if _, err := w.s.ImportKernel(t.Context(), "other", KernelFrom{Dir: dir}, nobody{}); err == nil || errdefs.ClassOf(err) == errdefs.ClassInternal || errdefs.HintOf(err) == "" {
			t.Errorf("%s: %v (%s)", name, err, errdefs.HintOf(err))
		}
	}
	if _, err := w.s.ImportKernel(t.Context(), "debian", KernelFrom{Dir: bad}, nobody{}); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("a reserved name: %v", err)
	}
	if got := w.files(); got != "kernels/"+k.ID {
		t.Errorf("files %s", got)
	}
}
