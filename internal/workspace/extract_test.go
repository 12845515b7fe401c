package workspace_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"banger/internal/errdefs"
	"banger/internal/workspace"
)

// stream makes a tar stream of headers; regular files get their name as contents
// unless Size is set already.
func stream(t *testing.T, headers ...tar.Header) *bytes.Buffer {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range headers {
		body := ""
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Typeflag == tar.TypeReg {
			body = h.Name
			h.Size = int64(len(body))
		}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &buf
}

func TestExtract(t *testing.T) {
	dir := t.TempDir()
	at := time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC)
	in := stream(t,
		tar.Header{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o500, ModTime: at},
		tar.Header{Name: "d/f", Mode: 0o6755, ModTime: at, Uid: 4242, Gid: 4242},
		tar.Header{Name: "d/l", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"},
		tar.Header{Name: "d/h", Typeflag: tar.TypeLink, Linkname: "d/f"},
		tar.Header{Name: "d/fifo", Typeflag: tar.TypeFifo},
		tar.Header{Name: "no/parent/entry"},
	)
	if err := workspace.Extract(t.Context(), in, dir, workspace.ExtractOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Chmod(filepath.Join(dir, "d"), 0o700) })
	f, err := os.Lstat(filepath.Join(dir, "d/f"))
	if err != nil || f.Mode() != 0o755 || !f.ModTime().Equal(at) {
		t.Errorf("f: %v", f)
	}
	if st := f.Sys().(*syscall.Stat_t); int(st.Uid) != os.Getuid() || st.Nlink != 2 {
		t.Errorf("f: uid %d, links %d", st.Uid, st.Nlink)
	}
	if d, err := os.Stat(filepath.Join(dir, "d")); err != nil || d.Mode().Perm() != 0o500 || !d.ModTime().Equal(at) {
		t.Errorf("d: %v %v", d, err)
	}
	if l, err := os.Readlink(filepath.Join(dir, "d/l")); err != nil || l != "/etc/passwd" {
		t.Errorf("l: %q %v", l, err)
	}
	if exists(dir, "d/fifo") {
		t.Error("a fifo was made")
	}
	if b, err := os.ReadFile(filepath.Join(dir, "no/parent/entry")); err != nil || string(b) != "no/parent/entry" {
		t.Errorf("entry: %q %v", b, err)
	}
}

// Nothing a guest sends may touch what is outside the destination.
func TestExtractStaysInside(t *testing.T) {
	for name, headers := range map[string][]tar.Header{
		"absolute":        {{Name: "/tmp/banger-escape"}},
		"dotdot":          {{Name: "../escape"}},
		"inner dotdot":    {{Name: "a/../../escape"}},
		"through symlink": {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: ".."}, {Name: "l/escape"}},
		"absolute symlink": {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "OUTSIDE"},
			{Name: "l/escape"}},
		"symlink chain": {{Name: "a", Typeflag: tar.TypeSymlink, Linkname: "."}, {Name: "b", Typeflag: tar.TypeSymlink, Linkname: "a/.."},
			{Name: "b/escape"}},
		"hard link out":            {{Name: "h", Typeflag: tar.TypeLink, Linkname: "../victim"}, {Name: "h"}},
		"hard link through":        {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: ".."}, {Name: "h", Typeflag: tar.TypeLink, Linkname: "l/victim"}, {Name: "h"}},
		"mkdir through":            {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: ".."}, {Name: "l/escape/", Typeflag: tar.TypeDir}},
		"existing link":            {{Name: "existing/escape"}},
		"existing link, symlink":   {{Name: "existing/escape", Typeflag: tar.TypeSymlink, Linkname: "x"}},
		"existing link, hard link": {{Name: "f"}, {Name: "existing/escape", Typeflag: tar.TypeLink, Linkname: "f"}},
	} {
		t.Run(name, func(t *testing.T) {
			outside := t.TempDir()
			victim := write(t, outside, "victim", "untouched")
			dir := filepath.Join(outside, "dst")
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(outside, filepath.Join(dir, "existing")); err != nil {
				t.Fatal(err)
			}
			for i := range headers {
				headers[i].Linkname = strings.ReplaceAll(headers[i].Linkname, "OUTSIDE", outside)
			}
			if err := workspace.Extract(t.Context(), stream(t, headers...), dir, workspace.ExtractOptions{}); err == nil {
				t.Error("no error")
			}
			if b, err := os.ReadFile(victim); err != nil || string(b) != "untouched" {
				t.Errorf("victim: %q %v", b, err)
			}
			children, err := os.ReadDir(outside)
			if err != nil || len(children) != 2 {
				t.Errorf("outside now holds %v, %v", children, err)
			}
		})
	}
}

// A link in place of a file is replaced, not written through, even within.
func TestExtractReplaces(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "target", "untouched")
	write(t, dir, "hard1", "shared")
	if err := os.Symlink("target", filepath.Join(dir, "l")); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(dir, "hard1"), filepath.Join(dir, "hard2")); err != nil {
		t.Fatal(err)
	}
	if err := workspace.Extract(t.Context(), stream(t, tar.Header{Name: "l"}, tar.Header{Name: "hard1"}), dir, workspace.ExtractOptions{}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"target": "untouched", "l": "l", "hard1": "hard1", "hard2": "shared"} {
		if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(b) != want {
			t.Errorf("%s: %q %v, want %q", name, b, err, want)
		}
	}
}

func TestExtractRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		in   *bytes.Buffer
		opts workspace.ExtractOptions
		want error
	}{
		"device":      {stream(t, tar.Header{Name: "null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}), workspace.ExtractOptions{}, errdefs.ErrPermission},
		"root a file": {stream(t, tar.Header{Name: "."}), workspace.ExtractOptions{}, errdefs.ErrInvalidArgument},
		"two for one": {stream(t, tar.Header{Name: "a"}, tar.Header{Name: "b"}), workspace.ExtractOptions{One: true, Rename: "f"}, errdefs.ErrInvalidArgument},
		"dir for one": {stream(t, tar.Header{Name: "a/", Typeflag: tar.TypeDir}), workspace.ExtractOptions{One: true, Rename: "f"}, errdefs.ErrInvalidArgument},
		"deep":        {stream(t, tar.Header{Name: strings.Repeat("d/", 600) + "f"}), workspace.ExtractOptions{}, errdefs.ErrInvalidArgument},
		"long":        {stream(t, tar.Header{Name: strings.Repeat("d", 5000)}), workspace.ExtractOptions{}, errdefs.ErrInvalidArgument},
		"sparse":      {sparseStream(t), workspace.ExtractOptions{}, errdefs.ErrUnsupported},
		"garbage":     {bytes.NewBuffer(bytes.Repeat([]byte("x"), 2048)), workspace.ExtractOptions{}, errdefs.ErrInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			if err := workspace.Extract(t.Context(), tc.in, t.TempDir(), tc.opts); !errors.Is(err, tc.want) {
				t.Errorf("Extract: %v, want %v", err, tc.want)
			}
		})
	}
}

// sparseStream is a stream of a few kB that reads as a file of one TiB of zeros.
func sparseStream(t *testing.T) *bytes.Buffer {
	t.Helper()
	record := func(k, v string) string {
		n := len(k) + len(v) + 3
		for len(fmt.Sprint(n))+len(k)+len(v)+3 != n {
			n = len(fmt.Sprint(n)) + len(k) + len(v) + 3
		}
		return fmt.Sprintf("%d %s=%s\n", n, k, v)
	}
	pax := record("GNU.sparse.major", "1") + record("GNU.sparse.minor", "0") +
		record("GNU.sparse.name", "s") + record("GNU.sparse.realsize", fmt.Sprint(int64(1)<<40))
	data := "0\n" + strings.Repeat("\x00", 510) // a map without data blocks
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	// The writer does not make these records; a plain file in the place of the
	// extended header, with its type patched, does.
	for _, f := range []struct{ name, body string }{{"pax", pax}, {"GNUSparseFile.0/s", data}} {
		if err := w.WriteHeader(&tar.Header{Name: f.name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(f.body)), Format: tar.FormatUSTAR}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(f.body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	b := buf.Bytes()
	b[156] = tar.TypeXHeader
	sum := 0
	copy(b[148:156], "        ")
	for _, c := range b[:512] {
		sum += int(c)
	}
	copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))
	// It is what it claims to be: the standard reader sees one TiB.
	if h, err := tar.NewReader(bytes.NewReader(b)).Next(); err != nil || h.Size != 1<<40 {
		t.Fatalf("not a sparse stream: %+v, %v", h, err)
	}
	return bytes.NewBuffer(b)
}

func TestExtractRenameAndStrip(t *testing.T) {
	in := func() *bytes.Buffer {
		return stream(t, tar.Header{Name: "src/", Typeflag: tar.TypeDir, Mode: 0o755}, tar.Header{Name: "src/f"},
			tar.Header{Name: "src/h", Typeflag: tar.TypeLink, Linkname: "src/f"})
	}
	for want, opts := range map[string]workspace.ExtractOptions{"new/f": {Rename: "new"}, "f": {Strip: true}, "src/f": {}} {
		dir := t.TempDir()
		if err := workspace.Extract(t.Context(), in(), dir, opts); err != nil {
			t.Fatal(err)
		}
		if !exists(dir, want) {
			t.Errorf("%+v: no %s", opts, want)
		}
	}
	one := t.TempDir()
	if err := workspace.Extract(t.Context(), stream(t, tar.Header{Name: "whatever"}), one, workspace.ExtractOptions{One: true, Rename: "mine"}); err != nil {
		t.Fatal(err)
	}
	if !exists(one, "mine") {
		t.Error("the file has not the name it was to get")
	}
}

// A stream that breaks off leaves no half file.
func TestExtractBrokenStream(t *testing.T) {
	in := stream(t, tar.Header{Name: "whole"}, tar.Header{Name: strings.Repeat("half/", 30) + "x"})
	in.Truncate(512*3 + 40) // within the contents of the second file
	dir := t.TempDir()
	if err := workspace.Extract(t.Context(), in, dir, workspace.ExtractOptions{}); err == nil {
		t.Fatal("no error")
	}
	files := 0
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			files++
		}
		return err
	})
	if err != nil || files != 1 {
		t.Errorf("%d files, %v", files, err)
	}
}

func FuzzExtract(f *testing.F) {
	var seed bytes.Buffer
	w := tar.NewWriter(&seed)
	for _, h := range []tar.Header{
		{Name: "l", Typeflag: tar.TypeSymlink, Linkname: ".."}, {Name: "l/x", Typeflag: tar.TypeReg, Mode: 0o644},
		{Name: "h", Typeflag: tar.TypeLink, Linkname: "../x"}, {Name: "../y", Typeflag: tar.TypeReg, Mode: 0o644},
	} {
		_ = w.WriteHeader(&h)
	}
	_ = w.Close()
	f.Add(seed.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		outside := t.TempDir()
		dir := filepath.Join(outside, "dst")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		_ = workspace.Extract(t.Context(), bytes.NewReader(b), dir, workspace.ExtractOptions{})
		if children, err := os.ReadDir(outside); err != nil || len(children) != 1 {
			t.Fatalf("outside holds %v, %v", children, err)
		}
	})
}
