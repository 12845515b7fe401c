package ext4

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// fixed are options that always make the same filesystem.
func fixed(size int64) Options {
	return Options{
		Size: size, Label: "test", Now: Time{1_750_000_000, 123_456_789},
		UUID:     [16]byte{1, 2, 3, 4, 5, 6, 0x47, 8, 0x89, 10, 11, 12, 13, 14, 15, 16},
		HashSeed: [16]byte{16, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1},
	}
}

// image is a filesystem that is being written.
type image struct {
	*Writer
	path string
	f    *os.File
}

func begin(t testing.TB, o Options) *image {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	w, err := New(f, o)
	if err != nil {
		t.Fatal(err)
	}
	return &image{w, path, f}
}

// data stores content.
func (m *image) data(t testing.TB, content []byte) Data {
	t.Helper()
	d, err := m.Write(context.Background(), bytes.NewReader(content), int64(len(content)))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// done finishes the filesystem and has it checked.
func (m *image) done(t testing.TB, root *Inode) {
	t.Helper()
	if err := m.Finish(context.Background(), root); err != nil {
		t.Fatal(err)
	}
	fsck(t, m.path)
}

// tool runs a program of e2fsprogs, which must be content. Tests of what only it can
// tell are skipped where it is not.
func tool(t testing.TB, name string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if path, err = exec.LookPath("/usr/sbin/" + name); err != nil {
			t.Skipf("needs e2fsprogs: %v", err)
		}
	}
	cmd := exec.Command(path, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "TZ=UTC")
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s%s", name, args, err, tail(out), tail(errs.Bytes()))
	}
	return string(out)
}

func tail(p []byte) []byte { return p[max(0, len(p)-4000):] }

// fsck has a filesystem checked, and lets no remark of e2fsck's pass.
func fsck(t testing.TB, path string) {
	t.Helper()
	out := tool(t, "e2fsck", "-fn", path)
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "Pass ") && !strings.HasSuffix(line, " blocks") {
			t.Errorf("e2fsck: %s", line)
		}
	}
}

func dir(children ...Node) *Inode {
	return &Inode{Mode: modeDir | 0o755, MTime: Time{1_600_000_000, 1}, Children: children}
}

func file(d Data) *Inode {
	return &Inode{Mode: modeFile | 0o644, MTime: Time{1_600_000_000, 999_999_999}, Data: d}
}

func TestEmpty(t *testing.T) {
	for _, size := range []int64{8 << 20, 9<<20 + 4096, 128 << 20, 129 << 20, 131 << 20, 10 << 30, 2 << 40} {
		m := begin(t, fixed(size))
		m.done(t, dir())
	}
}

var errRead = errors.New("the reader failed")

// pattern is content without a block of zeros, and without two that are the same.
func pattern(n int, seed byte) []byte {
	p := make([]byte, n)
	for i := range p[:min(n, blockSize)] {
		p[i] = byte(i)&0x7f ^ seed | 0x80
	}
	for at := blockSize; at < n; at += blockSize {
		copy(p[at:], p[:blockSize])
		if n-at >= 8 {
			le.PutUint32(p[at+1:], uint32(at))
		}
	}
	return p
}
