package workspace

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"banger/internal/guest/manifest"
)

// prepareRepo adds the files of r and its .git, as the options want them, under the name
// prefix, and those of the repositories in it.
func (s *survey) prepareRepo(ctx context.Context, r *repo, prefix string) error {
	outer := s.missing
	s.missing = nil
	defer func() { s.missing = outer }()
	s.tree.gitDirs = append(s.tree.gitDirs, r.gitDir, filepath.Join(r.common, "refs", "heads"))
	from := len(s.entries)
	nested, err := s.files(ctx, r, prefix)
	if err != nil {
		return err
	}
	to := len(s.entries)
	state, err := s.packRepo(ctx, r, join(prefix, ".git"))
	if err != nil {
		return err
	}
	if state != nil {
		state.Missing = unique(append(state.Missing, s.missing...))
		s.tree.repos[prefix] = state
		if err := s.markDirty(ctx, r, prefix, state, s.entries[from:to]); err != nil {
			return err
		}
	}
	for _, name := range nested {
		if err := s.nested(ctx, r, prefix, name); err != nil {
			return err
		}
	}
	return nil
}

// files adds the files of a work tree, and names the repositories in it.
func (s *survey) files(ctx context.Context, r *repo, prefix string) (nested []string, err error) {
	switch {
	case s.opts.Mode == ModeMetadata:
		return nil, nil
	case s.opts.From != "" && prefix == "":
		return nil, s.checkout(ctx, r)
	case s.opts.Mode == ModeFull:
		err := s.walk(ctx, r.top, prefix, func(rel string, isDir bool) bool {
			if rel == ".git" {
				return true
			}
			if !isDir {
				return false
			}
			if _, err := os.Lstat(filepath.Join(r.top, rel, ".git")); errors.Is(err, fs.ErrNotExist) {
				return false
			}
			nested = append(nested, rel)
			return true
		})
		for _, rel := range nested {
			e, ok, lookErr := lookAt(filepath.Join(r.top, rel), join(prefix, rel))
			if err = cmpErr(err, lookErr); err == nil && ok {
				s.entries = append(s.entries, e)
			}
		}
		return nested, err
	}
	// The files that git tracks are looked at while it looks for others.
	others := r.others(ctx, s.opts)
	out, err := git(ctx, r.top, "ls-files", "-z", "-t", "--cached")
	if err != nil {
		_, _ = others()
		return nil, gitErr(r.top, err)
	}
	seen := map[string]bool{}
	var names []string
	add := func(name string) {
		// A made-up index can have names that lead elsewhere.
		if !seen[name] && filepath.IsLocal(name) {
			seen[name] = true
			names = append(names, name)
		}
	}
	for _, line := range splitZ(out) {
		if tag, name, ok := strings.Cut(line, " "); ok && tag != "S" { // which a sparse checkout leaves out
			add(name)
		}
	}
	nested, err = s.listed(ctx, r.top, prefix, names)
	rest, othersErr := others()
	if err != nil || othersErr != nil {
		return nil, cmpErr(err, othersErr)
	}
	names = names[:0]
	for _, name := range rest {
		add(name)
	}
	more, err := s.listed(ctx, r.top, prefix, names)
	return append(nested, more...), err
}

// others begins to list what git does not track and is wanted, below the root of r. A
// name that ends in a slash is a repository of its own. The function that it returns
// waits for the end.
func (r *repo) others(ctx context.Context, o *Options) func() ([]string, error) {
	var queries [][]string
	if !o.TrackedOnly {
		queries = append(queries, []string{"ls-files", "-z", "--others", "--exclude-standard"})
	}
	if len(o.Include) > 0 {
		queries = append(queries, append([]string{"ls-files", "-z", "--others", "--ignored", "--exclude-standard", "--"}, globSpecs(o.Include)...))
	}
	outs, errs := make([][]byte, len(queries)), make([]error, len(queries))
	var wg sync.WaitGroup
	for i, q := range queries {
		wg.Go(func() { outs[i], errs[i] = git(ctx, r.top, q...) })
	}
	return func() (names []string, err error) {
		wg.Wait()
		if err := errors.Join(errs...); err != nil {
			return nil, gitErr(r.top, err)
		}
		for _, out := range outs {
			names = append(names, splitZ(out)...)
		}
		return names, nil
	}
}

// markDirty notes which files are not, or perhaps not, what the base commit has.
func (s *survey) markDirty(ctx context.Context, r *repo, prefix string, state *RepoState, entries []entry) error {
	if s.opts.From != "" && prefix == "" {
		return nil // all of it is the commit's
	}
	if state.Base == "" || prefix != "" {
		for i := range entries {
			entries[i].flags |= manifest.Dirty
		}
		return nil
	}
	if s.sent != nil && s.sent.Repos[prefix] != nil && s.sent.Repos[prefix].Base == state.Base {
		return nil // those that have not changed since are what they were: see compare
	}
	env, err := r.withoutFilters(ctx)
	if err != nil {
		return err
	}
	tracked, err := gitWith(ctx, r.top, env, nil, "ls-tree", "-r", "-z", "--name-only", "--full-tree", state.Base)
	if err != nil {
		return gitErr(r.top, err)
	}
	changed, err := gitWith(ctx, r.top, env, nil, "diff-index", "-z", "--name-only", "--no-renames", "--ignore-submodules=all", state.Base)
	if err != nil {
		return gitErr(r.top, err)
	}
	clean := map[string]bool{}
	for _, name := range splitZ(tracked) {
		clean[name] = true
	}
	for _, name := range splitZ(changed) {
		delete(clean, name)
	}
	for i := range entries {
		if !clean[entries[i].name] {
			entries[i].flags |= manifest.Dirty
		}
	}
	s.judged = true
	return nil
}
