package outfile_test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"banger/internal/daemon/imagemgr/outfile"
	"banger/internal/errdefs"
)

var errFull = errors.New("it is full")

func names(t *testing.T, dir string) (all []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

func text(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// file writes a file of that content.
func file(path, content string, o outfile.Options) error {
	w, err := outfile.Begin(path, false, o)
	if err != nil {
		return err
	}
	err = w.File(func(out io.Writer) error {
		_, err := io.WriteString(out, content)
		if content == "" {
			err = errFull
		}
		return err
	})
	return errors.Join(err, w.End())
}

func TestFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "out.tar")
	if err := file(path, "", outfile.Options{}); !errors.Is(err, errFull) || len(names(t, dir)) > 0 {
		t.Errorf("a writer that fails: %v, left %v", err, names(t, dir))
	}
	if err := file(path, "first", outfile.Options{}); err != nil || text(t, path) != "first" {
		t.Errorf("%q, %v", text(t, path), err)
	}
	if err := file(path, "second", outfile.Options{}); !errors.Is(err, errdefs.ErrAlreadyExists) || errdefs.HintOf(err) == "" || text(t, path) != "first" {
		t.Errorf("%q, %v", text(t, path), err)
	}
	if err := file(path, "", outfile.Options{Replace: true}); !errors.Is(err, errFull) || text(t, path) != "first" {
		t.Errorf("%q, %v", text(t, path), err)
	}
	if err := file(path, "second", outfile.Options{Replace: true}); err != nil || text(t, path) != "second" {
		t.Errorf("%q, %v", text(t, path), err)
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o644 {
		t.Errorf("%v, %v", fi, err)
	}
	if err := file(dir, "x", outfile.Options{Replace: true}); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("onto a directory: %v", err)
	}
	if err := file(filepath.Join(dir, "no", "x"), "x", outfile.Options{}); !errors.Is(err, errdefs.ErrNotFound) || errdefs.HintOf(err) == "" {
		t.Errorf("nowhere: %v", err)
	}
	if got := names(t, dir); len(got) != 1 {
		t.Errorf("left %v", got)
	}
}

// Somebody takes the name while the file is written: theirs stays.
func TestNameIsTakenMeanwhile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "out.tar")
	take := func(do func() error) error {
		if err := os.WriteFile(path, []byte("theirs"), 0o600); err != nil {
			return err
		}
		return do()
	}
	if err := file(path, "ours", outfile.Options{Publish: take}); !errors.Is(err, errdefs.ErrAlreadyExists) || text(t, path) != "theirs" {
		t.Errorf("%q, %v", text(t, path), err)
	}
	if got := names(t, dir); len(got) != 1 {
		t.Errorf("left %v", got)
	}
}

func TestDirectory(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "layout")
	noted := ""
	w, err := outfile.Begin(path, true, outfile.Options{Note: func(d string) error {
		if noted = d; len(names(t, dir)) > 0 {
			t.Errorf("there is %v before it is noted", names(t, dir))
		}
		return nil
	}})
	if err != nil || noted != w.Dir || filepath.Dir(noted) != dir {
		t.Fatalf("%q, %v", noted, err)
	}
	if err := errors.Join(os.WriteFile(filepath.Join(w.Dir, "a"), nil, 0o600), w.Directory(), w.End()); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o755 || len(names(t, path)) != 1 {
		t.Errorf("%v, %v", fi, err)
	}
	if _, err := outfile.Begin(path, true, outfile.Options{Replace: true}); !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("again: %v", err)
	}
	refused := errors.New("refused")
	if _, err := outfile.Begin(path+"2", true, outfile.Options{Note: func(string) error { return refused }}); !errors.Is(err, refused) {
		t.Errorf("a note that fails: %v", err)
	}
	if got := names(t, dir); len(got) != 1 {
		t.Errorf("left %v", got)
	}
}
