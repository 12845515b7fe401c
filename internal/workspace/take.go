package workspace

import (
	"bufio"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
	"banger/internal/guest/manifest"
)

// Want is what is wanted of a workspace.
type Want struct {
	Content bool // the files that changed
	Git     bool // commits
	Dirty   bool // files as well that were not, or perhaps not, the base commit's when they were sent
}

// Also writes the names of files that are wanted whether they changed or not.
func (s *Sent) Also(w Want) func(*manifest.Writer) error {
	return func(list *manifest.Writer) error {
		if !w.Dirty {
			return nil
		}
		for name, e := range s.Entries {
			if e.Flags&manifest.Dirty == 0 || e.Mode&unix.S_IFMT == unix.S_IFDIR || inDotGit(name) || s.nested(name) {
				continue
			}
			if err := list.Add(&manifest.Entry{Name: name}); err != nil {
				return err
			}
		}
		return nil
	}
}

// nested reports whether a file is in a repository within the one that was sent.
func (s *Sent) nested(name string) bool { return s.nestedIn(name) != "" }

func (s *Sent) nestedIn(name string) string {
	for prefix := range s.Repos {
		if prefix != "" && (name == prefix || strings.HasPrefix(name, prefix+"/")) {
			return prefix
		}
	}
	return ""
}

// inDotGit reports whether a name is in a .git directory, or is one.
func inDotGit(name string) bool {
	for part := range strings.SplitSeq(name, "/") {
		if strings.EqualFold(part, ".git") {
			return true
		}
	}
	return false
}

// maxTaken bounds what is taken of a workspace, in bytes.
const maxTaken = 64 << 30

// Names in the stream of a guest; see package guest/agent/record.
const (
	takenList = "changes"
	takenTree = "tree"
	takenGit  = "git"
)

// Taken is what a guest says has become of a workspace, in a directory of its own on the
// host. Nothing of it has been believed yet.
type Taken struct {
	// Changes are the files that are not as they were sent: Gone, Added, or else changed.
	Changes []manifest.Entry
	// Nested are repositories that the guest made in the workspace; they stay there.
	Nested []string

	dir  string
	sent *Sent
	root *os.Root // of dir
}

// Take reads the stream of a workspace-changes request. Close removes what it made.
func Take(ctx context.Context, r io.Reader, sent *Sent) (*Taken, error) {
	dir, err := os.MkdirTemp("", "banger-export-")
	if err != nil {
		return nil, errdefs.Wrap(err, "make a temporary directory")
	}
	t := &Taken{dir: dir, sent: sent}
	if err := t.take(ctx, r); err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

// Close removes all that was taken.
func (t *Taken) Close() {
	if t.root != nil {
		_ = t.root.Close()
	}
	_ = os.RemoveAll(t.dir)
}

func (t *Taken) take(ctx context.Context, r io.Reader) error {
	if err := Extract(ctx, r, t.dir, ExtractOptions{MaxBytes: maxTaken, Readable: true}); err != nil {
		return err
	}
	var err error
	if t.root, err = os.OpenRoot(t.dir); err != nil {
		return errdefs.Wrap(err, "open what came from the VM")
	}
	f, err := t.root.Open(takenList)
	if err != nil {
		return errdefs.Invalid("the VM did not say what has changed")
	}
	defer func() { _ = f.Close() }()
	err = manifest.All(bufio.NewReader(f), maxEntries, t.change)
	return errdefs.Wrap(err, "read what the VM says has changed")
}

// change takes one entry of the list.
func (t *Taken) change(e manifest.Entry) error {
	if !filepath.IsLocal(e.Name) || filepath.Clean(e.Name) != e.Name || strings.ContainsRune(e.Name, 0) || inDotGit(e.Name) {
		return errdefs.Invalid("the VM names the unsafe file %q", cutName(e.Name))
	}
	was, known := t.sent.Entries[e.Name]
	switch {
	case e.Flags&manifest.Gone != 0:
		if !known {
			return nil
		}
	case e.Mode&unix.S_IFMT == unix.S_IFDIR:
		t.Nested = append(t.Nested, e.Name)
		return nil
	case e.Mode&unix.S_IFMT != unix.S_IFREG && e.Mode&unix.S_IFMT != unix.S_IFLNK:
		return nil
	case known && e.Hash != 0 && e.Hash == was.Hash && gitMode(e.Mode) == gitMode(was.Mode):
		return nil // only its times have changed
	}
	t.Changes = append(t.Changes, e)
	return nil
}

// gitMode is how git says what a file is.
func gitMode(mode uint32) string {
	switch {
	case mode&unix.S_IFMT == unix.S_IFLNK:
		return "120000"
	case mode&0o111 != 0:
		return "100755"
	}
	return "100644"
}

// content opens what the guest has at name: a file's content, or a link's target.
func (t *Taken) content(name string) (mode string, size int64, r io.ReadCloser, err error) {
	return openIn(t.root, filepath.Join(takenTree, name))
}

// openIn opens what is at name below root, and nothing outside of it.
func openIn(root *os.Root, name string) (mode string, size int64, r io.ReadCloser, err error) {
	st, err := root.Lstat(name)
	if err != nil {
		return "", 0, nil, err
	}
	switch {
	case st.Mode()&fs.ModeSymlink != 0:
		target, err := root.Readlink(name)
		return "120000", int64(len(target)), io.NopCloser(strings.NewReader(target)), err
	case !st.Mode().IsRegular():
		return "", 0, nil, fs.ErrNotExist
	}
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", 0, nil, err
	}
	st, err = f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		return "", 0, nil, errors.Join(cmpErr(err, fs.ErrNotExist), f.Close())
	}
	return gitMode(unix.S_IFREG | uint32(st.Mode().Perm())), st.Size(), f, nil
}
