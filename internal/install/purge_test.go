package install

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"banger/internal/paths"
)

// What bears a name of ours goes, links unfollowed; what does not, and what it leads
// to, stays.
func TestPurge(t *testing.T) {
	w := newWorld(t)
	l, err := paths.At(filepath.Join(w.root, "state"))
	if err != nil {
		t.Fatal(err)
	}
	theirs := filepath.Join(t.TempDir(), "theirs")
	w.write(filepath.Join(theirs, "disk"), "x", 0o644)
	for _, name := range paths.StateNames() {
		if name != paths.DatabaseFile {
			w.write(filepath.Join(l.State, name, "x"), "x", 0o600)
		}
	}
	w.write(l.Database(), "x", 0o600)
	w.write(l.Database()+"-wal", "x", 0o600)
	w.write(l.Database()+paths.CorruptSuffix+"20260101T000000", "x", 0o600)
	w.write(filepath.Join(l.State, "notes"), "x", 0o600)
	if err := os.Symlink(theirs, l.VM("a")); err != nil {
		t.Fatal(err)
	}
	left, err := Purge(l)
	if err != nil || !slices.Equal(left, []string{"notes"}) {
		t.Errorf("left are %v, %v", left, err)
	}
	if entries, err := os.ReadDir(l.State); err != nil || len(entries) != 1 {
		t.Errorf("the state holds %v, %v", entries, err)
	}
	if err := os.Remove(filepath.Join(l.State, "notes")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if left, err := Purge(l); err != nil || left != nil {
			t.Errorf("left are %v, %v", left, err)
		}
		if _, err := os.Stat(l.State); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the state is still there: %v", err)
		}
	}
	if _, err := os.Stat(filepath.Join(theirs, "disk")); err != nil {
		t.Error(err)
	}
}
