//go:build e2e

package e2e_test

import (
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"
)

// old is a time that nothing made by a test has by itself.
var old = time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC)

// sampleTree makes a tree with what a copy may lose.
func sampleTree(t *testing.T, dir string) {
	t.Helper()
	for _, f := range []struct {
		name, text string
		mode       fs.FileMode
	}{
		{"plain.txt", "plain\n", 0o644},
		{"run.sh", "#!/bin/sh\necho ran\n", 0o755},
		{"private", "secret\n", 0o600},
		{"empty", "", 0o640},
		{"sub/deep/er/file", "deep\n", 0o644},
		{"sub/with space & ünïcode", "odd\n", 0o644},
		{"-dash", "dash\n", 0o644},
	} {
		path := filepath.Join(dir, f.name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(f.text), f.mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, f.mode); err != nil { // whatever the umask is
			t.Fatal(err)
		}
		if err := os.Chtimes(path, old, old); err != nil {
			t.Fatal(err)
		}
	}
	for name, to := range map[string]string{"link": "plain.txt", "sub/up": "../run.sh", "dangling": "no/such", "absolute": "/etc/hostname"} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "hollow"), 0o750); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"sub/deep/er", "sub/deep", "sub", "hollow"} {
		if err := os.Chtimes(filepath.Join(dir, name), old, old); err != nil {
			t.Fatal(err)
		}
	}
}

// describe lists a tree: name, type, mode, size or target, time; one a line.
func describe(t *testing.T, dir string, skip ...string) []string {
	t.Helper()
	var lines []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil || rel == "." {
			return err
		}
		for _, name := range skip {
			if rel == name {
				if d.IsDir() {
					return fs.SkipDir
				}
				return nil
			}
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		line := ""
		switch {
		case info.Mode()&fs.ModeSymlink != 0:
			to, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line = fmt.Sprintf("%s l %s", rel, to)
		case info.IsDir():
			line = fmt.Sprintf("%s d %o", rel, info.Mode().Perm())
		default:
			line = fmt.Sprintf("%s f %o %d %d", rel, info.Mode().Perm(), info.Size(), info.ModTime().Unix())
		}
		lines = append(lines, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	sort.Strings(lines)
	return lines
}

// describeScript is describe as a command in a guest: $1 is the tree.
const describeScript = `cd "$1" && find . -mindepth 1 -path ./.git -prune -o \( ` +
	`-type l -printf '%P l %l\n' -o -type d -printf '%P d %m\n' -o -type f -printf '%P f %m %s %T@\n' \) | sed 's/\.0*$//'`

// describeGuest lists a tree in a VM like describe.
func describeGuest(t *testing.T, w *world, v vm, dir string) []string {
	t.Helper()
	lines := strings.Split(w.execRoot(t, v, "sh", "-c", describeScript, "sh", dir), "\n")
	sort.Strings(lines)
	return lines
}

func compare(t *testing.T, what string, got, want []string) {
	t.Helper()
	if g, w := strings.Join(got, "\n"), strings.Join(want, "\n"); g != w {
		t.Errorf("%s:\n%s\nwant:\n%s", what, g, w)
	}
}

func TestCopyTrees(t *testing.T) {
	w, v := s.main, sharedVM(t)
	host := t.TempDir()
	tree := filepath.Join(host, "tree")
	if err := os.Mkdir(tree, 0o755); err != nil {
		t.Fatal(err)
	}
	sampleTree(t, tree)
	want := describe(t, tree)
	w.exec(t, v, "rm", "-rf", "/tmp/cp")
	w.exec(t, v, "mkdir", "/tmp/cp")

	w.ok(t, "cp", tree, v.Name+":/tmp/cp/")
	compare(t, "in", describeGuest(t, w, v, "/tmp/cp/tree"), want)
	if got := w.exec(t, v, "stat", "-c", "%U", "/tmp/cp/tree/plain.txt"); got != "dev" {
		t.Errorf("what was copied in belongs to %q, want dev", got)
	}
	w.ok(t, "cp", v.Name+":/tmp/cp/tree", filepath.Join(host, "back"))
	compare(t, "out", describe(t, filepath.Join(host, "back")), want)
	// Into a directory that is there, it goes below.
	w.ok(t, "cp", v.Name+":/tmp/cp/tree", host+"/back")
	compare(t, "out, below", describe(t, filepath.Join(host, "back/tree")), want)
}

func TestCopyFiles(t *testing.T) {
	w, v := s.main, sharedVM(t)
	host := t.TempDir()
	sampleTree(t, host)
	w.exec(t, v, "rm", "-rf", "/tmp/cpf")
	w.exec(t, v, "mkdir", "/tmp/cpf")
	w.ok(t, "cp", filepath.Join(host, "run.sh"), v.Name+":/tmp/cpf")
	w.ok(t, "cp", filepath.Join(host, "run.sh"), v.Name+":/tmp/cpf/renamed")
	if got := w.exec(t, v, "stat", "-c", "%n %a %Y %U", "/tmp/cpf/run.sh", "/tmp/cpf/renamed"); got !=
		fmt.Sprintf("/tmp/cpf/run.sh 755 %d dev\n/tmp/cpf/renamed 755 %d dev", old.Unix(), old.Unix()) {
		t.Errorf("copied in: %s", got)
	}
	if got := w.exec(t, v, "/tmp/cpf/renamed"); got != "ran" {
		t.Errorf("it printed %q", got)
	}
	// Relative to the home directory, and out again by another name.
	w.ok(t, "cp", filepath.Join(host, "private"), v.Name+":e2e-private")
	w.ok(t, "cp", v.Name+":e2e-private", filepath.Join(host, "returned"))
	info, err := os.Stat(filepath.Join(host, "returned"))
	if err != nil || info.Mode().Perm() != 0o600 || !info.ModTime().Equal(old) || info.Size() != 7 {
		t.Errorf("copied out: %v, %v", info, err)
	}
	w.fails(t, 1, []string{"/no/such"}, "cp", "/no/such", v.Name+":/tmp")
	w.fails(t, 1, []string{"/no/such"}, "cp", v.Name+":/no/such", host)
	w.fails(t, 1, []string{"/no/such"}, "cp", filepath.Join(host, "run.sh"), v.Name+":/no/such/dir/file")
	w.fails(t, 1, []string{"nosuch"}, "cp", filepath.Join(host, "run.sh"), "nosuch:/tmp")
	w.fails(t, 2, nil, "cp", host, host)
}

// TestCopyBig copies 100 MB in and out and compares checksums.
func TestCopyBig(t *testing.T) {
	const size = 100_000_000
	w, v := s.main, sharedVM(t)
	dir := filepath.Join(s.scratch, "big")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = os.RemoveAll(dir)
		w.exec(t, v, "rm", "-f", "/home/dev/big")
	})
	file := filepath.Join(dir, "big")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(f, rand.NewChaCha8([32]byte{2}), size); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	w.ok(t, "cp", file, v.Name+":/home/dev/big")
	in := time.Since(began)
	began = time.Now()
	w.ok(t, "cp", v.Name+":/home/dev/big", file+".back")
	out := time.Since(began)
	t.Logf("100 MB: in %.0f MB/s, out %.0f MB/s", size/1e6/in.Seconds(), size/1e6/out.Seconds())
	if a, b := sum(t, file), sum(t, file+".back"); a != b {
		t.Errorf("went in as %s, came out as %s", a, b)
	}
}

func sum(t *testing.T, file string) string {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}
