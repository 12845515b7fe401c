package record

import (
	"archive/tar"
	"bufio"
	"bytes"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
	"banger/internal/guest/agent/tree"
	"banger/internal/guest/ignore"
	"banger/internal/guest/manifest"
)

// Names in the stream of Changes.
const (
	ListName  = "changes" // a section of a manifest
	TreeDir   = "tree/"   // before the names of files
	GitDir    = "git/"    // before the names of what is in .git
	dotGit    = ".git"
	maxIgnore = 1 << 20 // bytes that are read of a file of rules
)

// Changes is what is asked of a workspace.
type Changes struct {
	ID      string
	Dest    int    // open descriptor of its directory
	Content bool   // with the files
	Git     bool   // with what of .git is not as it was sent: references and objects
	All     bool   // no rules of what is ignored
	Plain   bool   // .bangerignore counts too
	Ignore  string // rules of the host's user, which count least
	// Also is a section of a manifest with files that are wanted whether they changed or
	// not.
	Also *bufio.Reader
}

// Changes writes to w, as a tar stream, what of a workspace is not as it was sent: a
// list, the files in it that are there, and what is new in .git. Entries of the list are
// new (Added), Gone, or changed; Hash is there where the size has not changed. A new
// directory that is a repository of its own is one entry, and left out.
func (r Records) Changes(c Changes, w io.Writer) error {
	known, err := r.load(c.ID)
	if err != nil {
		return errdefs.Wrap(err, "read the record of the workspace")
	}
	if known == nil {
		return errdefs.Precondition("the VM has no record of what was put into the workspace").
			WithHint("prepare it again with --force, or copy files out: banger cp VM:PATH DIR")
	}
	names := map[string]bool{} // to be sent
	err = manifest.All(c.Also, maxEntries, func(e manifest.Entry) error {
		if err := tree.CheckName(e.Name); err != nil {
			return err
		}
		names[e.Name] = true
		return nil
	})
	if err != nil {
		return err
	}
	d := tree.NewDir(c.Dest)
	defer d.Close()
	s := &search{c: &c, d: d, known: known, unseen: map[string]bool{}}
	list, err := s.changes()
	if err != nil {
		return err
	}
	tw := tar.NewWriter(w)
	if err := writeList(tw, list); err != nil {
		return err
	}
	if c.Content {
		for _, e := range list {
			if kind := e.Mode & unix.S_IFMT; e.Flags&manifest.Gone == 0 && (kind == unix.S_IFREG || kind == unix.S_IFLNK) {
				names[e.Name] = true
			}
		}
	}
	changed, err := tree.Some(tw, c.Dest, slices.Sorted(maps.Keys(names)), TreeDir)
	if err != nil {
		return err
	}
	if c.Git {
		again, err := s.git(tw)
		if err != nil {
			return err
		}
		changed += again
	}
	if err := tw.Close(); err != nil {
		return err
	}
	if changed != "" {
		return errdefs.Precondition("%q changed while it was read", changed).WithHint("try again when nothing writes to it")
	}
	return nil
}

func writeList(tw *tar.Writer, list []manifest.Entry) error {
	var b bytes.Buffer
	w := manifest.NewWriter(&b)
	for i := range list {
		if err := w.Add(&list[i]); err != nil {
			return err
		}
	}
	if err := w.End(); err != nil {
		return err
	}
	h := &tar.Header{Typeflag: tar.TypeReg, Name: ListName, Mode: 0o600, Size: int64(b.Len()), ModTime: time.Unix(0, 0)}
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	_, err := b.WriteTo(tw)
	return err
}

// search looks for changes.
type search struct {
	c      *Changes
	d      *tree.Dir
	known  map[string]manifest.Entry
	unseen map[string]bool
	rules  ignore.Stack
	list   []manifest.Entry
}

// inGit reports whether a name is in a .git directory, that of a nested repository
// included, or is one.
func inGit(name string) bool {
	return name == dotGit || strings.HasPrefix(name, dotGit+"/") || strings.Contains(name, "/"+dotGit+"/") || strings.HasSuffix(name, "/"+dotGit)
}

func (s *search) changes() ([]manifest.Entry, error) {
	for name, e := range s.known {
		if e.Mode&unix.S_IFMT != unix.S_IFDIR && !inGit(name) {
			s.unseen[name] = true
		}
	}
	s.rules.Push("", ignore.Parse([]byte(s.c.Ignore)))
	s.rules.Push("", ignore.Parse(s.d.Read(dotGit+"/info/exclude", maxIgnore)))
	if err := s.d.Walk("", s.look, s.enter); err != nil {
		return nil, err
	}
	for name := range s.unseen {
		s.list = append(s.list, manifest.Entry{Name: name, Flags: manifest.Gone})
	}
	slices.SortFunc(s.list, func(a, b manifest.Entry) int { return strings.Compare(a.Name, b.Name) })
	return s.list, nil
}

// enter takes the rules of a directory.
func (s *search) enter(dir string, read func(string, int64) []byte) func() {
	n := s.rules.Len()
	if s.c.Plain {
		if text := read(".bangerignore", maxIgnore); text != nil {
			defer s.rules.Push(dir, ignore.Parse(text)) // it counts more than the other
		}
	}
	if text := read(".gitignore", maxIgnore); text != nil {
		s.rules.Push(dir, ignore.Parse(text))
	}
	return func() { s.rules.Cut(n) }
}

// look judges one name, whose directory was gone into. What was sent is never ignored.
func (s *search) look(f tree.Found) (descend bool, err error) {
	if path.Base(f.Name) == dotGit {
		return false, nil
	}
	was, known := s.known[f.Name]
	kind := f.Stat.Mode & unix.S_IFMT
	isDir := kind == unix.S_IFDIR
	if isDir {
		if known && was.Mode&unix.S_IFMT == unix.S_IFDIR {
			return true, nil
		}
		if s.ignored(f.Name, true) {
			return false, nil
		}
		if _, there, err := s.d.Stat(f.Name + "/" + dotGit); there || err != nil {
			s.list = append(s.list, manifest.Entry{Name: f.Name, Mode: f.Stat.Mode, Flags: manifest.Added})
			return false, err
		}
		return true, nil
	}
	if kind != unix.S_IFREG && kind != unix.S_IFLNK {
		return false, nil // nothing that a host could take
	}
	e := *entry(f.Name, &f.Stat)
	if !known || was.Mode&unix.S_IFMT == unix.S_IFDIR {
		if !s.ignored(f.Name, false) {
			e.Flags = manifest.Added
			s.list = append(s.list, e)
		}
		return false, nil
	}
	delete(s.unseen, f.Name)
	if unchanged(s.d, f.Name, &was, &f.Stat, 0) {
		return false, nil
	}
	if was.Size == e.Size {
		e.Hash = s.d.Hash(f.Name) // perhaps only its times have changed: the host knows
	}
	s.list = append(s.list, e)
	return false, nil
}

// ignored applies the rules, also to directories above that are gone into only for what
// was sent of them.
func (s *search) ignored(name string, isDir bool) bool {
	if s.c.All {
		return false
	}
	if dir := path.Dir(name); dir != "." && s.ignored(dir, true) {
		return true
	}
	return s.rules.Ignored(name, isDir)
}

// git packs what is new in .git: references, and objects that were not sent. It returns
// the name of a file that changed meanwhile.
func (s *search) git(tw *tar.Writer) (changed string, err error) {
	var names []string
	for _, name := range []string{"HEAD", "packed-refs", "shallow"} {
		if _, there, err := s.d.Stat(dotGit + "/" + name); there && err == nil {
			names = append(names, name)
		}
	}
	for _, dir := range []string{"refs", "objects"} {
		err := s.d.Walk(dotGit+"/"+dir, func(f tree.Found) (bool, error) {
			if f.Stat.Mode&unix.S_IFMT != unix.S_IFREG {
				return true, nil
			}
			if was, known := s.known[f.Name]; known && unchanged(s.d, f.Name, &was, &f.Stat, 0) && dir == "objects" {
				return false, nil
			}
			if strings.HasSuffix(f.Name, ".lock") || strings.HasPrefix(path.Base(f.Name), "tmp_") {
				return false, nil
			}
			names = append(names, strings.TrimPrefix(f.Name, dotGit+"/"))
			return false, nil
		}, nil)
		if err != nil {
			return "", err
		}
	}
	st, there, err := s.d.Stat(dotGit)
	if err != nil || !there || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return "", err
	}
	fd, err := unix.Openat2(s.c.Dest, dotGit, &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC | unix.O_NOFOLLOW, Resolve: unix.RESOLVE_BENEATH})
	if err != nil {
		return "", errdefs.Wrap(err, "open .git")
	}
	defer unix.Close(fd)
	return tree.Some(tw, fd, names, GitDir)
}
