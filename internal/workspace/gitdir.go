package workspace

import (
	"bufio"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"banger/internal/errdefs"
)

// maxConfig bounds a git config file and a list of alternates, in bytes.
const maxConfig = 1 << 20

// gitDir adds a .git directory that stands on its own: what a linked work tree
// keeps for itself laid over what it shares, the objects of alternates put in with
// its own, and a config that names no place on this host.
func (s *survey) gitDir(ctx context.Context, r *repo, prefix string) error {
	top, ok, err := lookAt(r.gitDir, prefix)
	if err != nil || !ok {
		return err
	}
	objects := filepath.Join(r.common, "objects")
	lenders, err := stores(objects)
	if err != nil {
		return err
	}
	if s.depth > 0 && len(lenders) > 0 {
		// Nothing in an object store says who may borrow from it, and nobody asked
		// for this repository by name.
		s.warn("%s is sent without its .git, which borrows objects from %s", r.top, lenders[0])
		return nil
	}
	s.entries = append(s.entries, top)
	linked := r.gitDir != r.common
	config, err := readSmall(filepath.Join(r.common, "config"))
	if err != nil {
		return err
	}
	if linked && usesReftable(config) {
		return errdefs.Unsupported("%s is a linked work tree of a repository with reftable references", r.top).
			WithHint("give the repository's main work tree, or a clone")
	}
	borrows := len(lenders) > 0
	have := make(map[string]bool) // names below objects/
	err = s.walk(ctx, r.common, prefix, func(rel string, isDir bool) bool {
		switch {
		case skipGit(rel, isDir), rel == "config", linked && !shared(rel):
			return true
		case borrows && (rel == "objects/info/alternates" || strings.HasPrefix(rel, "objects/info/commit-graph")):
			return true // both name files of the other store
		}
		if name, ok := strings.CutPrefix(rel, "objects/"); ok && borrows {
			have[name] = true
		}
		return false
	})
	if err != nil {
		return err
	}
	if linked {
		err = s.walk(ctx, r.gitDir, prefix, func(rel string, isDir bool) bool {
			return rel == "commondir" || rel == "gitdir" || rel == "locked" || skipGit(rel, isDir)
		})
		if err != nil {
			return err
		}
	}
	if borrows {
		if err := s.alternates(ctx, r, objects, join(prefix, "objects"), have, 0); err != nil {
			return err
		}
	}
	if config != nil {
		s.data(join(prefix, "config"), trimConfig(config))
	}
	return nil
}

// skipGit says what of a git directory means nothing elsewhere: locks and
// unfinished files of running commands, sample hooks, other work trees, and the
// repositories of submodules, which travel in the submodules.
func skipGit(rel string, isDir bool) bool {
	base := path.Base(rel)
	switch rel {
	case "worktrees", "modules", "gc.pid", "gc.log":
		return true
	}
	switch {
	case isDir:
		return strings.HasPrefix(rel, "fsmonitor--daemon") || strings.HasPrefix(base, "tmp_objdir-")
	case strings.HasPrefix(rel, "hooks/"):
		return strings.HasSuffix(base, ".sample")
	case strings.HasPrefix(rel, "objects/"):
		return strings.HasPrefix(base, "tmp_") || strings.HasPrefix(base, ".tmp-") || strings.HasSuffix(base, ".lock")
	}
	return strings.HasSuffix(base, ".lock") || strings.HasPrefix(base, "fsmonitor--daemon")
}

// shared reports whether linked work trees have rel in common.
func shared(rel string) bool {
	first, rest, _ := strings.Cut(rel, "/")
	switch first {
	case "objects", "packed-refs", "branches", "hooks", "remotes", "shallow", "lfs", "rr-cache", "description", "svn", "annex":
		return true
	case "info":
		return rest != "sparse-checkout"
	case "logs":
		return rest != "HEAD" && !perWorktreeRef(rest)
	case "refs":
		return !perWorktreeRef(rel)
	}
	return false
}

func perWorktreeRef(rel string) bool {
	for _, own := range []string{"refs/bisect", "refs/worktree", "refs/rewritten"} {
		if rel == own || strings.HasPrefix(rel, own+"/") {
			return true
		}
	}
	return false
}

func usesReftable(config []byte) bool {
	for line := range strings.Lines(strings.ToLower(string(config))) {
		if key, value, ok := strings.Cut(line, "="); ok && strings.TrimSpace(key) == "refstorage" {
			return strings.TrimSpace(value) == "reftable"
		}
	}
	return false
}

// maxAlternates is how deep git itself follows alternates.
const maxAlternates = 5

// stores lists the object stores that the one in dir borrows from.
func stores(dir string) ([]string, error) {
	list, err := readSmall(filepath.Join(dir, "info", "alternates"))
	var out []string
	for line := range strings.Lines(string(list)) {
		line = strings.TrimSuffix(line, "\n")
		if line == "" || line[0] == '#' {
			continue
		}
		if !filepath.IsAbs(line) {
			line = filepath.Join(dir, line)
		}
		out = append(out, line)
	}
	return out, err
}

// alternates adds the objects of the stores that the one in dir, of r, borrows from.
func (s *survey) alternates(ctx context.Context, r *repo, dir, prefix string, have map[string]bool, depth int) error {
	lenders, err := stores(dir)
	if err != nil || len(lenders) == 0 {
		return err
	}
	if depth >= maxAlternates {
		return errdefs.Unsupported("%s: alternates are nested more than %d deep", dir, maxAlternates)
	}
	for _, from := range lenders {
		err := s.walk(ctx, from, prefix, func(rel string, isDir bool) bool {
			if !borrowed(rel, isDir) || have[rel] && !isDir {
				return true
			}
			have[rel] = true
			return false
		})
		if err != nil {
			return errdefs.Wrap(err, "read the objects that %s borrows", dir)
		}
		if real, err := filepath.EvalSymlinks(from); err != nil || !strings.HasPrefix(real, r.top+"/") {
			s.warn("%s borrows objects from %s: these are sent too", r.top, from)
		}
		if err := s.alternates(ctx, r, from, prefix, have, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// borrowed says what of another object store is needed: loose objects, and packs
// with their indexes.
func borrowed(rel string, isDir bool) bool {
	if isDir {
		return rel == "pack" || len(rel) == 2
	}
	dir, base := path.Split(rel)
	if dir != "pack/" {
		return len(dir) == 3 && !strings.HasPrefix(base, "tmp_")
	}
	if !strings.HasPrefix(base, "pack-") {
		return false
	}
	switch path.Ext(base) {
	case ".pack", ".idx", ".rev", ".promisor", ".mtimes":
		return true
	}
	return false
}

// data adds a file whose contents are made here.
func (s *survey) data(name string, contents []byte) {
	s.entries = append(s.entries, entry{name: name, mode: 0o644, size: int64(len(contents)), time: time.Now(), data: contents})
}

// readSmall reads a file of at most maxConfig bytes; nil when there is none, or a
// link, which could lead out of the tree.
func readSmall(file string) ([]byte, error) {
	fd, err := openRegular(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, pathErr(file, err)
	}
	f := os.NewFile(uintptr(fd), file)
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(bufio.NewReader(f), maxConfig+1))
	if err != nil {
		return nil, pathErr(file, err)
	}
	if len(b) > maxConfig {
		return nil, errdefs.Invalid("%s is larger than %d bytes", file, maxConfig)
	}
	if b == nil {
		b = []byte{}
	}
	return b, nil
}
