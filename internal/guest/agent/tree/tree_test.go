package tree

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
)

func openDir(t testing.TB, dir string) int {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

// entries makes a tar; "body" of a regular file is its name.
func entries(t testing.TB, hs ...tar.Header) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range hs {
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(h.Name))
		}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		h.Uid, h.Gid = os.Getuid(), os.Getgid()
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			_, _ = w.Write([]byte(h.Name))
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

func file(name string) tar.Header { return tar.Header{Name: name, Typeflag: tar.TypeReg} }
func link(name, to string) tar.Header {
	return tar.Header{Name: name, Linkname: to, Typeflag: tar.TypeSymlink}
}
func hard(name, to string) tar.Header {
	return tar.Header{Name: name, Linkname: to, Typeflag: tar.TypeLink}
}

// TestNothingEscapes: no tar writes outside of its directory.
func TestNothingEscapes(t *testing.T) {
	for name, hs := range map[string][]tar.Header{
		"dots":             {file("../evil")},
		"inner dots":       {file("a/../../evil")},
		"absolute":         {file("/tmp/evil")},
		"planted link":     {link("out", ".."), file("out/evil")},
		"absolute link":    {link("out", "OUTSIDE"), file("out/evil")},
		"nested link":      {{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o755}, link("d/out", "../.."), file("d/out/evil")},
		"link inside":      {{Name: "real/", Typeflag: tar.TypeDir, Mode: 0o755}, link("alias", "real"), file("alias/evil")},
		"directory link":   {link("out", ".."), {Name: "out/evil/", Typeflag: tar.TypeDir, Mode: 0o755}},
		"hard link out":    {hard("evil", "../secret")},
		"hard link by way": {link("out", ".."), hard("evil", "out/secret")},
	} {
		t.Run(name, func(t *testing.T) {
			outside := t.TempDir()
			dest := filepath.Join(outside, "dest")
			if err := os.Mkdir(dest, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(outside, "secret"), []byte("s"), 0o600); err != nil {
				t.Fatal(err)
			}
			for i := range hs {
				hs[i].Linkname = strings.Replace(hs[i].Linkname, "OUTSIDE", outside, 1)
			}
			err := In(openDir(t, dest), entries(t, hs...), nil, "")
			if !errors.Is(err, errdefs.ErrInvalidArgument) {
				t.Errorf("error = %v", err)
			}
			if _, err := os.Lstat(filepath.Join(outside, "evil")); err == nil {
				t.Error("it escaped")
			}
			if _, err := os.Lstat(filepath.Join(dest, "evil")); err == nil {
				t.Error("a link to the outside was made")
			}
		})
	}
}

// TestFileOverSymlink: the link is replaced, what it points to is not touched.
func TestFileOverSymlink(t *testing.T) {
	outside, dest := t.TempDir(), t.TempDir()
	target := filepath.Join(outside, "target")
	_ = os.WriteFile(target, []byte("old"), 0o644)
	_ = os.Symlink(target, filepath.Join(dest, "f"))
	if err := In(openDir(t, dest), entries(t, file("f")), nil, ""); err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(target); string(b) != "old" {
		t.Error("the target was written")
	}
	if b, _ := os.ReadFile(filepath.Join(dest, "f")); string(b) != "f" {
		t.Errorf("f = %q", b)
	}
}

func TestRoundTripKeepsEverything(t *testing.T) {
	src := filepath.Join(t.TempDir(), "src")
	when := time.Unix(1600000000, 123456789)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	long := strings.Repeat("long-name-", 20)
	must(os.MkdirAll(filepath.Join(src, "dir", long), 0o755))
	must(os.WriteFile(filepath.Join(src, "run"), []byte("#!/bin/sh\n"), 0o755))
	must(os.WriteFile(filepath.Join(src, "dir", long, long), bytes.Repeat([]byte("0123456789"), 200000), 0o640))
	must(os.WriteFile(filepath.Join(src, "empty"), nil, 0o600))
	must(os.WriteFile(filepath.Join(src, "with\nnewline \xff"), []byte("x"), 0o644))
	must(os.Chmod(filepath.Join(src, "run"), 0o4751))
	must(os.Link(filepath.Join(src, "run"), filepath.Join(src, "run2")))
	must(os.Symlink("../"+long, filepath.Join(src, "broken")))
	must(syscall.Mkfifo(filepath.Join(src, "fifo"), 0o622))
	must(os.Chmod(filepath.Join(src, "fifo"), 0o622))
	must(os.Mkdir(filepath.Join(src, "closed"), 0o755))
	must(os.WriteFile(filepath.Join(src, "closed", "f"), []byte("f"), 0o400))
	must(os.Chmod(filepath.Join(src, "closed"), 0o555))
	t.Cleanup(func() { _ = os.Chmod(filepath.Join(src, "closed"), 0o755) })
	must(filepath.Walk(src, func(p string, _ os.FileInfo, err error) error {
		ts := unix.NsecToTimespec(when.UnixNano())
		return errors.Join(err, unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW))
	}))
	var b bytes.Buffer
	must(Out(src, &b))
	dest := t.TempDir()
	must(In(openDir(t, dest), &b, nil, ""))
	t.Cleanup(func() { _ = os.Chmod(filepath.Join(dest, "src", "closed"), 0o755) })
	want, got := describe(t, src), describe(t, filepath.Join(dest, "src"))
	if want != got {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
	var a, c unix.Stat_t
	must(unix.Stat(filepath.Join(dest, "src", "run"), &a))
	must(unix.Stat(filepath.Join(dest, "src", "run2"), &c))
	if a.Ino != c.Ino {
		t.Error("the hard link became a copy")
	}
}

// describe lists a tree with all that must be kept.
func describe(t testing.TB, root string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.Walk(root, func(p string, fi os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, p)
		st := fi.Sys().(*syscall.Stat_t)
		fmt.Fprintf(&b, "%q %o %d:%d %d.%09d", rel, st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec)
		switch {
		case fi.Mode().IsRegular():
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %d %x", len(data), data[:min(16, len(data))])
		case fi.Mode()&os.ModeSymlink != 0:
			to, _ := os.Readlink(p)
			b.WriteString(" " + to)
		}
		b.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestSingleFileAndOwner(t *testing.T) {
	dest := t.TempDir()
	owner := &Owner{UID: os.Getuid(), GID: os.Getgid()}
	if os.Geteuid() == 0 {
		owner = &Owner{UID: 4321, GID: 4322}
	}
	if err := In(openDir(t, dest), entries(t, file("whatever")), owner, "name"); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dest, "name"), &st); err != nil || int(st.Uid) != owner.UID || int(st.Gid) != owner.GID {
		t.Errorf("%v, owner %d:%d", err, st.Uid, st.Gid)
	}
	if err := In(openDir(t, dest), entries(t, file("a"), file("b")), nil, "name"); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("two files: %v", err)
	}
	if err := In(openDir(t, dest), entries(t, link("a", "b")), nil, "name"); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("a symlink: %v", err)
	}
}

func TestNoSpace(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("mount: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	_ = w.WriteHeader(&tar.Header{Name: "sub/big", Typeflag: tar.TypeReg, Size: 1 << 20, Mode: 0o644})
	_, _ = w.Write(make([]byte, 1<<20))
	_ = w.Close()
	err := In(openDir(t, dir), &b, nil, "")
	if !errors.Is(err, errdefs.ErrExhausted) || !strings.Contains(err.Error(), "sub/big") {
		t.Errorf("error = %v", err)
	}
}

func TestDamagedStreams(t *testing.T) {
	whole := entries(t, file("a"), file("b/c")).Bytes()
	for _, n := range []int{1, 100, 512, 600, 1024 + 100} {
		err := In(openDir(t, t.TempDir()), bytes.NewReader(whole[:n]), nil, "")
		// A stream that ends between two entries is complete for a tar reader.
		if err != nil && !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	dest := t.TempDir()
	_ = os.Mkdir(filepath.Join(dest, "a"), 0o755)
	if err := In(openDir(t, dest), bytes.NewReader(whole), nil, ""); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("a file over a directory: %v", err)
	}
}

func TestOutOfAMissingFile(t *testing.T) {
	for _, p := range []string{"/no/such/file", t.TempDir() + "/none"} {
		if err := Out(p, io.Discard); !errors.Is(err, errdefs.ErrNotFound) {
			t.Errorf("%s: %v", p, err)
		}
	}
}

func FuzzIn(f *testing.F) {
	f.Add(entries(f, file("a"), link("l", "a"), file("d/e")).Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		outside := t.TempDir()
		dest := filepath.Join(outside, "dest")
		_ = os.Mkdir(dest, 0o755)
		_ = In(openDir(t, dest), bytes.NewReader(data), &Owner{os.Getuid(), os.Getgid()}, "")
		left, _ := os.ReadDir(outside)
		if len(left) != 1 {
			t.Fatalf("it escaped: %v", left)
		}
		_ = filepath.Walk(dest, func(p string, fi os.FileInfo, err error) error {
			if err == nil && fi.IsDir() {
				_ = os.Chmod(p, 0o755)
			}
			return nil
		})
	})
}

// A link that is asked for by name is what it leads to; one below stays a link.
func TestOutFollowsALinkThatIsAskedFor(t *testing.T) {
	base := t.TempDir()
	for _, dir := range []string{"real", "other"} {
		if err := os.Mkdir(filepath.Join(base, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(base, "real", "f"), []byte("contents"), 0o640); err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string]string{"real/below": "f", "other/file": "../real/f", "other/dir": base + "/real", "other/nowhere": "none"} {
		if err := os.Symlink(to, filepath.Join(base, name)); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{"file": "file 0", "dir": "dir/ 5, dir/below 2, dir/f 0"} {
		var b bytes.Buffer
		if err := Out(filepath.Join(base, "other", name), &b); err != nil {
			t.Fatal(err)
		}
		var got []string
		for r := tar.NewReader(&b); ; {
			h, err := r.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, h.Name+" "+string(h.Typeflag))
		}
		slices.Sort(got)
		if strings.Join(got, ", ") != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if err := Out(filepath.Join(base, "other", "nowhere"), io.Discard); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("a link to nowhere: %v", err)
	}
}
