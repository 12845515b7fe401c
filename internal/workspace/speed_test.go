package workspace_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"banger/internal/workspace"
)

// TestLargeTree sends a tree of many files, and then one of them. The bounds are wide: what
// is meant to be caught is work for each file that should not be. BANGER_TEST_FILES
// makes it larger.
func TestLargeTree(t *testing.T) {
	files := 5000
	if _, err := fmt.Sscan(os.Getenv("BANGER_TEST_FILES"), &files); err == nil {
		t.Logf("%d files", files)
	}
	repo, g := t.TempDir(), newGuest(t)
	git(t, repo, "init", "-q", "-b", "main")
	for i := range files {
		write(t, repo, fmt.Sprintf("d%d/e%d/f%d.txt", i%50, i%7, i), fmt.Sprintln("content of", i))
	}
	git(t, repo, "add", ".")
	git(t, repo, "commit", "-q", "-m", "first")
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(filepath.Join(repo, "d1/e1/f1.txt"), old, old); err != nil {
		t.Fatal(err)
	}
	took := func(what string, limit time.Duration, do func()) {
		began := time.Now()
		do()
		d := time.Since(began)
		t.Logf("%s: %v", what, d.Round(time.Millisecond))
		if d > limit {
			t.Errorf("%s took %v", what, d)
		}
	}
	took("all of it", time.Minute, func() { g.put(t, repo, workspace.Options{Depth: 100}, false) })
	took("nothing", 3*time.Second, func() {
		if c, _ := g.put(t, repo, workspace.Options{Depth: 100}, false); !c.Nothing() {
			t.Errorf("%q is sent", names(c, 5))
		}
	})
	write(t, repo, "d1/e1/f1.txt", "changed\n")
	took("one file", 5*time.Second, func() {
		if c, _ := g.put(t, repo, workspace.Options{Depth: 100}, false); c.Files != 1 {
			t.Errorf("%q is sent", names(c, 5))
		}
	})
	for i := range 100 {
		write(t, g.dir, fmt.Sprintf("d%d/e%d/f%d.txt", i%50, i%7, i), "changed in the guest\n")
	}
	took("a patch of 100 files", 10*time.Second, func() {
		if p := g.patch(t); len(p) < 100*100 {
			t.Errorf("a patch of %d bytes", len(p))
		}
	})
	g.sent = nil
}
