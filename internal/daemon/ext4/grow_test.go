package ext4

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"banger/internal/errdefs"
)

func TestGrow(t *testing.T) {
	sizes := []int64{9<<20 + 4096, 128 << 20, 131 << 20, 500 << 20, 10<<30 + 512, 64 << 30, 1 << 40}
	for i, from := range sizes[:4] {
		m := begin(t, fixed(from))
		m.done(t, dir(Node{"a", file(m.data(t, pattern(1<<20, 1)))}))
		for _, to := range sizes[i:] {
			if err := m.f.Truncate(to); err != nil {
				t.Fatal(err)
			}
			w := &counting{f: m.f}
			if err := Grow(m.f, w, to); err != nil {
				t.Fatalf("from %d to %d: %v", from, to, err)
			}
			if limit := int64(1<<20 + to/50000); w.n > limit {
				t.Errorf("from %d to %d: %d bytes written, more than %d", from, to, w.n, limit)
			}
			fsck(t, m.path)
			if t.Failed() {
				t.Fatalf("from %d to %d", from, to)
			}
		}
	}
}

type counting struct {
	f *os.File
	n int64
}

func (c *counting) WriteAt(p []byte, at int64) (int, error) {
	c.n += int64(len(p))
	return c.f.WriteAt(p, at)
}

func TestGrowRefuses(t *testing.T) {
	m := begin(t, fixed(64<<20))
	m.done(t, dir())
	if err := Grow(m.f, m.f, 32<<20); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("smaller: %v", err)
	}
	if err := Grow(m.f, m.f, 2<<40); !errors.Is(err, errdefs.ErrUnsupported) {
		t.Errorf("too large: %v", err)
	}
	if err := m.f.Truncate(1 << 30); err != nil {
		t.Fatal(err)
	}
	// Any byte of superblock, descriptor or resize inode that is another one, but for
	// those that nobody looks at.
	for _, at := range []int64{superAt + 0x34, superAt + 0x3a, superAt + 0x60, superAt + 0x68, superAt + 0x3fc, blockSize, blockSize + 0x1e, int64(m.l.inodeTable(0))*blockSize + 6*inodeSize + 28} {
		var p [1]byte
		if _, err := m.f.ReadAt(p[:], at); err != nil {
			t.Fatal(err)
		}
		if _, err := m.f.WriteAt([]byte{p[0] ^ 1}, at); err != nil {
			t.Fatal(err)
		}
		if err := Grow(m.f, failing{}, 1<<30); !errors.Is(err, errdefs.ErrFailedPrecondition) {
			t.Errorf("byte %d changed: %v", at, err)
		}
		if _, err := m.f.WriteAt(p[:], at); err != nil {
			t.Fatal(err)
		}
	}
	for _, change := range []string{"set_super_value mnt_count 1", "set_super_value mnt_count 0"} { // the second by its time alone
		tool(t, "debugfs", "-w", "-R", change, m.path)
		if err := Grow(m.f, m.f, 1<<30); !errors.Is(err, errdefs.ErrFailedPrecondition) {
			t.Errorf("%s: %v", change, err)
		}
	}
}

// failing is a disk that takes nothing.
type failing struct{}

func (failing) WriteAt([]byte, int64) (int, error) { return 0, fmt.Errorf("written") }
