package workspace

import (
	"context"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"

	"banger/internal/errdefs"
)

// Ignore says what of a directory is left out when a Dockerfile is built in it. A nil one
// leaves out nothing.
type Ignore struct {
	mu      sync.Mutex // guards the matcher, which compiles patterns as it goes, and err
	matcher *patternmatcher.PatternMatcher
	err     error // of a pattern that is none
}

// ParseIgnore reads rules as .dockerignore has them:
// https://docs.docker.com/build/concepts/context/#dockerignore-files. It errors with class
// invalid_argument.
func ParseIgnore(r io.Reader) (*Ignore, error) {
	patterns, err := ignorefile.ReadAll(r)
	if err != nil {
		return nil, errdefs.Invalid("read the rules: %w", err)
	}
	m, err := patternmatcher.New(patterns)
	if err != nil {
		return nil, errdefs.Invalid("read the rules: %w", err)
	}
	return &Ignore{matcher: m}, nil
}

// Ignored reports whether a file or directory is left out; its slash-separated name is
// relative to the context. A directory may be left out and files in it not.
func (i *Ignore) Ignored(name string) bool {
	if i == nil {
		return false
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	out, err := i.matcher.MatchesOrParentMatches(name)
	if err != nil && i.err == nil {
		i.err = errdefs.Invalid("read the rules: %w", err)
	}
	return out && err == nil
}

// whole reports whether no rule takes back in what may be in a directory that is left out.
func (i *Ignore) whole(dir string) bool {
	for _, p := range i.matcher.Patterns() {
		if p.Exclusion() && (strings.ContainsAny(p.String(), `*?[\`) || strings.HasPrefix(p.String(), dir+"/")) {
			return false
		}
	}
	return true
}

// InspectContext looks at the directory of a Dockerfile: at all of it but what ignore leaves
// out, which need not be readable. No git, no notices but of what cannot be sent. It errors
// as Prepare does.
func InspectContext(ctx context.Context, dir string, ignore *Ignore) (*Tree, error) {
	root, err := filepath.Abs(dir)
	if err != nil {
		return nil, errdefs.Invalid("resolve %q: %w", dir, err)
	}
	if root, err = filepath.EvalSymlinks(root); err != nil {
		return nil, pathErr(dir, err)
	}
	switch st, err := os.Stat(root); {
	case err != nil:
		return nil, pathErr(dir, err)
	case !st.IsDir():
		return nil, errdefs.Invalid("%s is not a directory", dir).WithHint("give the directory that the Dockerfile copies files from")
	}
	s := &survey{}
	skip := func(name string, isDir bool) bool { return ignore.Ignored(name) && (!isDir || ignore.whole(name)) }
	if err := s.walk(ctx, root, "", skip); err != nil {
		return nil, err
	}
	s.dropEmpty(ignore)
	if ignore != nil && ignore.err != nil {
		return nil, ignore.err
	}
	t := &Tree{Root: root}
	t.take(s)
	return t, t.checkReadable(ctx)
}

// dropEmpty takes out directories that are left out and were walked for nothing.
func (s *survey) dropEmpty(ignore *Ignore) {
	needed := map[string]bool{}
	kept := make([]bool, len(s.entries))
	for n := len(s.entries) - 1; n >= 0; n-- { // children before parents
		e := &s.entries[n]
		if kept[n] = !e.mode.IsDir() || needed[e.name] || !ignore.Ignored(e.name); kept[n] {
			needed[path.Dir(e.name)] = true
		}
	}
	left := s.entries[:0]
	for n, e := range s.entries {
		if kept[n] {
			left = append(left, e)
		}
	}
	s.entries = left
}
