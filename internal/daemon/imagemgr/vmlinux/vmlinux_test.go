package vmlinux_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"banger/internal/daemon/imagemgr/vmlinux"
	"banger/internal/errdefs"
)

// bzImage wraps packed as a boot loader would find it, with its size after it
// unless the format carries that.
func bzImage(t *testing.T, packed []byte, sizeAfter bool) string {
	t.Helper()
	if sizeAfter {
		packed = append(bytes.Clone(packed), 1, 2, 3, 4)
	}
	const setup, offset = 3, 100
	img := make([]byte, (setup+1)*512+offset)
	img[0x1f1] = setup
	copy(img[0x202:], "HdrS")
	le := binary.LittleEndian
	le.PutUint16(img[0x206:], 0x20f)
	le.PutUint16(img[0x20e:], 0x300)
	copy(img[0x500:], "6.1.0-test (builder@host) #1 SMP\x00")
	le.PutUint32(img[0x248:], offset)
	le.PutUint32(img[0x24c:], uint32(len(packed)))
	img = append(append(img, packed...), "what follows the payload"...)
	path := filepath.Join(t.TempDir(), "bzImage")
	if err := os.WriteFile(path, img, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func pack(t *testing.T, data []byte, argv ...string) []byte {
	t.Helper()
	if _, err := exec.LookPath(argv[0]); err != nil {
		t.Skip(err)
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin = bytes.NewReader(data)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestExtract(t *testing.T) {
	// The header of an x86-64 program, and some of this one's code after it.
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	code, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	elf := make([]byte, 64, 500_000)
	copy(elf, "\x7fELF\x02\x01\x01")
	copy(elf[16:], []byte{2, 0, 62, 0, 1, 0, 0, 0})
	copy(elf[52:], []byte{64, 0, 56, 0, 0, 0, 64})
	elf = append(elf, code[4096:400_000]...)
	for name, c := range map[string]struct {
		argv      []string
		sizeAfter bool
	}{
		"gzip": {[]string{"gzip", "-1c"}, false},
		"xz":   {[]string{"xz", "--check=crc32", "--x86", "--lzma2=preset=0", "-c"}, true},
		"zstd": {[]string{"zstd", "-q", "-1", "-c"}, true},
		"lz4":  {[]string{"lz4", "-l", "-q", "-c"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			src := bzImage(t, pack(t, elf, c.argv...), c.sizeAfter)
			dst := filepath.Join(t.TempDir(), "vmlinux")
			if err := vmlinux.Extract(src, dst); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(dst)
			if err != nil || !bytes.Equal(got, elf) {
				t.Fatalf("%v: got %d bytes, want %d", err, len(got), len(elf))
			}
			if rel, err := vmlinux.Release(src); err != nil || rel != "6.1.0-test" {
				t.Errorf("release %q, %v", rel, err)
			}
		})
	}
}

func TestExtractRefuses(t *testing.T) {
	short := filepath.Join(t.TempDir(), "short")
	if err := os.WriteFile(short, []byte("not a kernel"), 0o644); err != nil {
		t.Fatal(err)
	}
	outside := bzImage(t, pack(t, []byte("x"), "gzip", "-c"), false)
	f, err := os.OpenFile(outside, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{0xff, 0xff, 0xff, 0x7f}, 0x24c); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	for name, src := range map[string]string{
		"no bzImage":      short,
		"payload outside": outside,
		"unknown packing": bzImage(t, bytes.Repeat([]byte("BZh9"), 100), true),
		"no ELF inside":   bzImage(t, pack(t, bytes.Repeat([]byte("text"), 1000), "gzip", "-c"), false),
	} {
		dst := filepath.Join(t.TempDir(), "vmlinux")
		if err := vmlinux.Extract(src, dst); !errors.Is(err, errdefs.ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Stat(dst); err == nil {
			t.Errorf("%s: left %s behind", name, dst)
		}
	}
}

func TestReleaseOfELF(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vmlinux")
	// The banner lies across a border of what is read at once.
	data := append(bytes.Repeat([]byte{0}, 1<<20-5), "Linux version 6.12.1-mine (me@here) #1"...)
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	if rel, err := vmlinux.Release(path); err != nil || rel != "6.12.1-mine" {
		t.Errorf("release %q, %v", rel, err)
	}
	if err := os.WriteFile(path, bytes.Repeat([]byte("nothing "), 1<<18), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := vmlinux.Release(path); !errors.Is(err, errdefs.ErrUnsupported) {
		t.Errorf("no banner: %v", err)
	}
}
