// Package workspace reads host trees into tar streams for guests, and writes tar
// streams of guests into host directories.
//
// Reading knows git: of a repository it takes what git would show (tracked, and
// untracked but not ignored) together with a .git that works on its own in the
// guest. Writing trusts nothing: a guest decides every name, mode and size in its
// stream.
package workspace

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"
	"time"

	"banger/internal/errdefs"
	"banger/internal/guest/manifest"
)

// Tree is a directory that was looked at and can be sent.
type Tree struct {
	Root     string   // absolute; what is sent
	Subdir   string   // of Root, slash-separated, that was asked for; empty: Root itself
	Git      bool     // Root is the work tree of a git repository
	Notices  []string // what the user may want to know
	Warnings []string // what the user has to know
	Files    int      // regular files
	Bytes    int64    // their size

	entries []entry // parents before children
	opts    Options // of Prepare
	repos   map[string]*RepoState
	began   time.Time
	judged  bool                          // see survey
	gitDirs []string                      // of the repository: where it says what is checked out
	later   []func(context.Context) error // what Complete has to do
	temp    string                        // directory of what was made for it; empty: nothing was
}

// entry is one thing to send.
type entry struct {
	name string // slash-separated, relative to the root; empty for the root itself
	path string // on the host; empty for a file that is data
	mode fs.FileMode
	size int64
	time time.Time // to the second, as tar has it without extensions
	uid  int
	gid  int
	data []byte // contents of a file that does not exist like this on the host

	mtime, ctime int64  // ns; 0: data has no times that mean something
	ino          uint64 // of the file on the host
	hash         uint64 // xxHash64 of the content or of the link's target; 0: not known yet
	flags        manifest.Flags
	same         bool // it is what was sent before: nothing is read of it
}

// InspectCopy looks at a file or a directory that is to be copied as it is: no git,
// no notices. A symlink is followed if it is path itself.
func InspectCopy(ctx context.Context, path string) (*Tree, error) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, pathErr(path, err)
	}
	if real, err = filepath.Abs(real); err != nil {
		return nil, errdefs.Invalid("resolve %q: %w", path, err)
	}
	e, ok, err := lookAt(real, "")
	switch {
	case err != nil:
		return nil, err
	case !ok:
		return nil, pathErr(path, fs.ErrNotExist)
	}
	s := &survey{}
	if !s.add(e) {
		return nil, errdefs.Invalid("%s is neither a file nor a directory", path).WithHint("to send what it yields: banger cp - takes a tar stream")
	}
	if e.mode.IsDir() {
		if err := s.walk(ctx, real, "", nil); err != nil {
			return nil, err
		}
	}
	t := &Tree{Root: real}
	t.take(s)
	return t, t.checkReadable(ctx)
}

// IsFile reports whether the tree is a single file.
func (t *Tree) IsFile() bool {
	return len(t.entries) == 1 && t.entries[0].name == "" && t.entries[0].mode.IsRegular()
}

func pathErr(path string, err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		path, err = pe.Path, pe.Err
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return errdefs.NotFound("%s does not exist", path).WithHint("check the path")
	case errors.Is(err, fs.ErrPermission):
		return errdefs.Permission("%s cannot be read: %w", path, syscall.EACCES).WithHint("check its permissions: ls -ld %s", path)
	}
	return errdefs.Wrap(err, "read %s", path)
}

// take makes what a survey found the tree's.
func (t *Tree) take(s *survey) {
	t.judged = s.judged
	dirs := make(map[string]bool)
	for _, e := range s.entries {
		switch {
		case e.mode.IsDir():
			if dirs[e.name] {
				continue // of two directories laid over each other
			}
			dirs[e.name] = true
		case e.mode.IsRegular():
			t.Files++
			t.Bytes += e.size
		}
		t.entries = append(t.entries, e)
	}
	t.Warnings = append(t.Warnings, s.warned...)
	if n := len(s.special); n > 0 {
		t.Notices = append(t.Notices, fmt.Sprintf("left out what is neither file, directory nor link: %s%s", s.special[0], andMore(n)))
	}
}

func andMore(n int) string {
	if n <= 1 {
		return ""
	}
	return fmt.Sprintf(" and %d more", n-1)
}
