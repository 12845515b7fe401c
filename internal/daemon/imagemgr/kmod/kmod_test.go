package kmod_test

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"banger/internal/daemon/imagemgr/kmod"
)

// module makes an ELF object with nothing but a .modinfo section.
func module(fields ...string) []byte {
	info := []byte(strings.Join(fields, "\x00") + "\x00")
	names := []byte("\x00.modinfo\x00.shstrtab\x00")
	var b bytes.Buffer
	le := binary.LittleEndian
	w := func(v any) { _ = binary.Write(&b, le, v) }
	b.Write([]byte{0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	w(uint16(1))                           // relocatable
	w(uint16(62))                          // x86-64
	w(uint32(1))                           // version
	w([2]uint64{})                         // entry, program headers
	w(uint64(64 + len(info) + len(names))) // section headers
	w([]uint16{0, 0, 64, 0, 0, 64, 3, 2})  // flags (2 words), sizes, counts, index of names
	b.Write(info)
	b.Write(names)
	section := func(name, kind uint32, off, size int) {
		w([]uint32{name, kind})
		w([]uint64{0, 0, uint64(off), uint64(size)})
		w([]uint32{0, 0})
		w([]uint64{1, 0})
	}
	section(0, 0, 0, 0)
	section(1, 1, 64, len(info))
	section(10, 3, 64+len(info), len(names))
	return b.Bytes()
}

func tree(t *testing.T, files map[string][]byte) *kmod.Tree {
	t.Helper()
	dir := t.TempDir()
	for name, data := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	tr, err := kmod.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

func gz(data []byte) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = w.Write(data)
	_ = w.Close()
	return b.Bytes()
}

func TestOrder(t *testing.T) {
	tr := tree(t, map[string][]byte{
		"kernel/virtio/virtio.ko":            module("name=virtio", "depends="),
		"kernel/virtio/virtio_ring.ko":       module("name=virtio_ring", "depends="),
		"kernel/virtio/virtio_pci.ko.gz":     gz(module("name=virtio_pci", "depends=virtio_ring,virtio-pci-modern,virtio", "vermagic=6.1.0 SMP")),
		"kernel/virtio/virtio-pci-modern.ko": module("name=virtio_pci_modern", "depends=virtio,builtin_thing"),
		"kernel/fs/loop_a.ko":                module("name=loop_a", "depends=loop_b"),
		"kernel/fs/loop_b.ko":                module("name=loop_b", "depends=loop_a"),
		"kernel/fs/orphan.ko":                module("name=orphan", "depends=nowhere"),
		"modules.builtin":                    []byte("kernel/lib/builtin-thing.ko\nkernel/fs/ext4/ext4.ko\n"),
	})
	got, err := tr.Order("ext4", "virtio-pci", "virtio")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, m := range got {
		names = append(names, m.Name)
	}
	if want := []string{"virtio_ring", "virtio", "virtio_pci_modern", "virtio_pci"}; !slices.Equal(names, want) {
		t.Errorf("order is %v, want %v", names, want)
	}
	for _, missing := range []string{"nowhere", "orphan"} {
		if _, err := tr.Order(missing); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", missing, err)
		}
	}
	if _, err := tr.Order("loop_a"); err == nil || !strings.Contains(err.Error(), "itself") {
		t.Errorf("a circle: %v", err)
	}
	if !tr.Builtin("ext4") || tr.Builtin("virtio") || !tr.Has("virtio-ring") || tr.Has("ext4") || tr.Len() != 7 {
		t.Error("the tree does not know what it has")
	}
}

func TestTreeWithoutListTakesTheRestForBuiltIn(t *testing.T) {
	tr := tree(t, map[string][]byte{"virtio.ko": module("name=virtio", "depends=ring")})
	got, err := tr.Order("virtio", "ext4")
	if err != nil || len(got) != 1 {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestReadInfoRefuses(t *testing.T) {
	good := module("name=x", "depends=a,b", "vermagic=6.1 SMP")
	info, err := kmod.ReadInfo(bytes.NewReader(good))
	if err != nil || info.Name != "x" || !slices.Equal(info.Depends, []string{"a", "b"}) || info.Vermagic != "6.1 SMP" {
		t.Errorf("got %+v, %v", info, err)
	}
	for n := range good { // cut anywhere
		if _, err := kmod.ReadInfo(bytes.NewReader(good[:n])); err == nil && n < 100 {
			t.Errorf("no error for the first %d bytes", n)
		}
	}
}
