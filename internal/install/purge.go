package install

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
	"banger/internal/paths"
)

// Purge removes the state of a daemon that does not run. Only what bears a name of ours
// goes; the names of other files in the state directory are returned, and it stays when
// there are some.
func Purge(l paths.Layout) (left []string, err error) {
	entries, err := os.ReadDir(l.State)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, errdefs.Wrap(err, "look at the state")
	}
	for _, e := range entries {
		// SQLite's files, and databases that could not be read, begin like the database.
		if !slices.Contains(paths.StateNames(), e.Name()) && !strings.HasPrefix(e.Name(), paths.DatabaseFile) {
			left = append(left, e.Name())
			continue
		}
		if err := os.RemoveAll(filepath.Join(l.State, e.Name())); err != nil {
			return left, errdefs.Wrap(err, "remove the state")
		}
	}
	if len(left) > 0 {
		return left, nil
	}
	return nil, removeEmpty(l.State)
}

// Tidy removes the directories that the system's daemon makes outside of its state, and
// leaves when it ends.
func Tidy() error {
	return errors.Join(removeEmpty(filepath.Dir(paths.SystemSocket)), removeEmpty(paths.CgroupDir))
}

// removeEmpty removes a directory if it is there and nothing is in it, or on it: one
// that somebody has mounted is theirs.
func removeEmpty(dir string) error {
	err := os.Remove(dir)
	for _, fine := range []error{fs.ErrNotExist, unix.ENOTEMPTY, unix.EBUSY, unix.EROFS} {
		if errors.Is(err, fine) {
			return nil
		}
	}
	return errdefs.Wrap(err, "remove an empty directory")
}
