package workspace_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"banger/internal/workspace"
)

func TestWatcher(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "sub/file", "one")
	w, err := workspace.NewWatcher()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := w.Add([]string{dir, filepath.Join(dir, "sub"), filepath.Join(dir, "gone")}); err != nil {
		t.Fatal(err)
	}
	wait := func(what string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		if err := w.Wait(ctx); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	write(t, dir, "sub/file", "two")
	wait("a file changed")
	if err := os.Chmod(filepath.Join(dir, "sub/file"), 0o700); err != nil {
		t.Fatal(err)
	}
	wait("a mode changed")
	if err := os.Rename(filepath.Join(dir, "sub/file"), filepath.Join(dir, "file")); err != nil {
		t.Fatal(err)
	}
	wait("a file moved")
	// What goes on and on is looked at all the same.
	stop := make(chan struct{})
	busy := make(chan struct{})
	go func() {
		defer close(busy)
		for {
			select {
			case <-stop:
				return
			default:
				_ = os.WriteFile(filepath.Join(dir, "busy"), []byte("x"), 0o644)
			}
		}
	}()
	wait("changes without an end")
	close(stop)
	<-busy
	write(t, dir, "sub/last", "three")
	wait("the rest of them")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := w.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("nothing happened: %v", err)
	}
}

func TestTreeKnowsWhereToWatch(t *testing.T) {
	repo := newRepo(t)
	tree, err := workspace.Prepare(t.Context(), repo, workspace.Options{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	found := map[string]bool{}
	for _, dir := range tree.Dirs() {
		found[dir] = true
	}
	for _, want := range []string{"", "sub/deep", ".git", ".git/refs/heads"} {
		if !found[filepath.Join(repo, want)] {
			t.Errorf("%q is not watched, but %v", want, tree.Dirs())
		}
	}
	if found[filepath.Join(repo, "out")] {
		t.Error("what is ignored is watched")
	}
}
