package workspace

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"banger/internal/errdefs"
	"banger/internal/sysexec"
)

// repo is a work tree as git sees it. All paths are absolute and without symlinks.
type repo struct {
	top    string // root of the work tree
	gitDir string // of this work tree
	common string // shared by all work trees of the repository; often gitDir
	prefix string // of the directory asked about, below top; empty: top itself
}

// findRepo asks git what dir belongs to; nil when to no repository.
func findRepo(ctx context.Context, dir string) (*repo, error) {
	out, err := git(ctx, dir, "rev-parse", "--is-bare-repository", "--is-inside-work-tree", "--absolute-git-dir", "--git-common-dir", "--show-prefix")
	if errdefs.ClassOf(err) == errdefs.ClassUnsupported {
		if hasGitDir(dir) {
			return nil, errdefs.Wrap(err, "look at the repository in %s", dir)
		}
		return nil, nil // without git installed there are only plain directories
	}
	if err != nil {
		return nil, gitErr(dir, err)
	}
	if out == nil {
		return nil, nil
	}
	lines := strings.SplitN(strings.TrimSuffix(string(out), "\n"), "\n", 5)
	if len(lines) < 5 {
		return nil, errdefs.Internal("git rev-parse printed %q", out)
	}
	if lines[1] != "true" {
		what := "is inside a .git directory"
		if lines[0] == "true" {
			what = "is a bare git repository"
		}
		return nil, errdefs.Invalid("%s %s: there are no files to send", dir, what).
			WithHint("give a work tree of it: git worktree add DIR, or git clone")
	}
	r := &repo{prefix: strings.TrimSuffix(lines[4], "/")}
	r.top = strings.TrimSuffix(strings.TrimSuffix(dir, r.prefix), "/")
	if r.top == "" {
		r.top = "/"
	}
	common := lines[3]
	if !filepath.IsAbs(common) {
		common = filepath.Join(dir, common)
	}
	if r.gitDir, err = filepath.EvalSymlinks(lines[2]); err != nil {
		return nil, pathErr(lines[2], err)
	}
	if r.common, err = filepath.EvalSymlinks(common); err != nil {
		return nil, pathErr(common, err)
	}
	return r, nil
}

// hasGitDir reports whether dir looks like part of a repository.
func hasGitDir(dir string) bool {
	for {
		if _, err := os.Lstat(filepath.Join(dir, ".git")); err == nil {
			return true
		}
		if dir == "/" {
			return false
		}
		dir = filepath.Dir(dir)
	}
}

// tracks reports whether git knows a file below the directory r was asked about.
func (r *repo) tracks(ctx context.Context) (bool, error) {
	out, err := git(ctx, filepath.Join(r.top, r.prefix), "ls-files", "-z", "--cached", "--", ".")
	if err != nil {
		return false, gitErr(r.top, err)
	}
	return len(out) > 0, nil
}

func splitZ(out []byte) []string {
	text := strings.TrimSuffix(string(out), "\x00")
	if text == "" {
		return nil
	}
	return strings.Split(text, "\x00")
}

// gitFlags silence what git would run because a repository says so: the tree may
// come from a guest, and its .git/config with it. What we ask of git reads the index
// (a file system monitor) and, where that is sparse, trees, which a partial clone
// fetches from wherever it likes: that is refused by gitEnv, but fetch looks for a
// bundle first, which is not.
var gitFlags = []string{
	"--no-pager", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "-c", "core.sshCommand=false",
	"-c", "core.askPass=false", "-c", "credential.helper=", "-c", "fetch.bundleURI=", "-c", "core.quotePath=false",
}

// git runs git in dir. It returns nil, nil when dir is in no repository.
func git(ctx context.Context, dir string, args ...string) ([]byte, error) {
	return gitWith(ctx, dir, nil, nil, args...)
}

// gitWith is git with more in its environment, and something on its stdin.
func gitWith(ctx context.Context, dir string, env []string, stdin io.Reader, args ...string) ([]byte, error) {
	cmd := gitCmd(dir, env, args...)
	cmd.Stdin = stdin
	out, err := sysexec.Output(ctx, cmd)
	var e *sysexec.Error
	if errors.As(err, &e) && e.Code == 128 && strings.Contains(e.Stderr, "not a git repository") {
		return nil, nil
	}
	if err == nil && out == nil {
		out = []byte{}
	}
	return out, err
}

// gitCmd is a call of git in dir, with more in its environment.
func gitCmd(dir string, env []string, args ...string) sysexec.Cmd {
	return sysexec.Cmd{
		Path: "git", Args: append(slices.Clone(gitFlags), args...), Dir: dir, Env: append(gitEnv(os.Environ()), env...),
	}
}

// exitedWith reports whether a program ended with that status.
func exitedWith(err error, code int) bool {
	var e *sysexec.Error
	return errors.As(err, &e) && e.Code == code
}

// gitEnv is our environment without what would point git elsewhere than at the
// directory it runs in (as inside a git hook), and without locks, translation or
// transports: git must not fetch, for a transport is a program that the repository
// chooses. GIT_NO_LAZY_FETCH is the clear way, which git knows since 2.45.
func gitEnv(env []string) []string {
	out := make([]string, 0, len(env)+4)
	for _, kv := range env {
		key, _, _ := strings.Cut(kv, "=")
		switch key {
		case "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR",
			"GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_NAMESPACE", "GIT_PREFIX", "GIT_LITERAL_PATHSPECS",
			"GIT_OPTIONAL_LOCKS", "GIT_NO_REPLACE_OBJECTS", "GIT_QUARANTINE_PATH", "GIT_TRACE", "GIT_NO_LAZY_FETCH", "GIT_ALLOW_PROTOCOL", "LC_ALL", "LANGUAGE":
			continue
		}
		out = append(out, kv)
	}
	return append(out, "GIT_OPTIONAL_LOCKS=0", "GIT_NO_LAZY_FETCH=1", "GIT_ALLOW_PROTOCOL=none", "GIT_NO_REPLACE_OBJECTS=1", "LC_ALL=C")
}

// gitErr says what git found wrong.
func gitErr(dir string, err error) error {
	var e *sysexec.Error
	if !errors.As(err, &e) {
		return errdefs.Wrap(err, "look at the repository in %s", dir)
	}
	first, _, _ := strings.Cut(strings.TrimSpace(e.Stderr), "\n")
	first = strings.TrimPrefix(first, "fatal: ")
	if strings.Contains(e.Stderr, "dubious ownership") || strings.Contains(e.Stderr, "safe.directory") {
		return errdefs.Permission("git refuses %s: it belongs to another user", dir).
			WithHint("git config --global --add safe.directory %s", dir)
	}
	return errdefs.Precondition("look at the repository in %s: git says: %s", dir, first).
		WithHint("if it is yours, see what `git -C %s status` says; if a guest made it, run no git in it", dir)
}

// inspectRepo lists what git would show, and a .git directory that stands alone.
func (t *Tree) inspectRepo(ctx context.Context, r *repo, s *survey) error {
	if r.prefix != "" {
		known, err := r.tracks(ctx)
		if err != nil {
			return err
		}
		if !known {
			t.Notices = append(t.Notices, t.Root+" has no file that the repository around it knows: it is sent as a plain directory")
			return t.preparePlain(ctx, s, t.Root)
		}
		t.Notices = append(t.Notices, "sending the whole repository "+r.top+"; the command runs in "+r.prefix)
	}
	foreign, err := r.foreign(ctx)
	if err != nil {
		return err
	}
	if foreign {
		return errdefs.Precondition("the .git of %s leads to %s, which does not name this directory in turn: it could be another repository of yours", r.top, r.common).
			WithHint("if that is the one you mean, send a clone of it: git clone %s DIR", r.common)
	}
	t.Root, t.Subdir, t.Git = r.top, r.prefix, true
	if err := s.prepareRepo(ctx, r, ""); err != nil {
		return err
	}
	t.take(s)
	return t.checkReadable(ctx)
}

// maxNesting bounds how deep repositories within repositories are followed.
const maxNesting = 8

// listed adds the named files and the directories they are in. It returns the
// names of directories among them: those are repositories of their own.
func (s *survey) listed(ctx context.Context, top, prefix string, names []string) (nested []string, err error) {
	found := make([]entry, len(names))
	kept := make([]bool, len(names))
	err = inParallel(ctx, len(names), func(i int) error {
		name := strings.TrimSuffix(names[i], "/")
		e, ok, err := lookAt(filepath.Join(top, name), join(prefix, name))
		found[i], kept[i] = e, ok
		return err
	})
	if err != nil {
		return nil, err
	}
	dirs := map[string]bool{"": true} // directory -> it is one, and was added
	for i, e := range found {
		name := strings.TrimSuffix(names[i], "/")
		if !kept[i] {
			s.missing = append(s.missing, name) // deleted in the work tree
			continue
		}
		ok, err := s.parents(top, prefix, parent(name), dirs)
		if err != nil {
			return nil, err
		}
		switch {
		case !ok: // below a symlink by now: as good as deleted
			s.missing = append(s.missing, name)
		case e.mode.IsDir():
			if dirs[name] {
				continue
			}
			dirs[name] = true
			s.entries = append(s.entries, e)
			nested = append(nested, name)
		default:
			s.add(e)
		}
	}
	return nested, nil
}

func parent(name string) string {
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		return name[:i]
	}
	return ""
}

// parents adds the directories above a file, once each. False says that one of
// them is a directory no longer.
func (s *survey) parents(top, prefix, dir string, known map[string]bool) (bool, error) {
	if is, ok := known[dir]; ok {
		return is, nil
	}
	ok, err := s.parents(top, prefix, parent(dir), known)
	if err != nil || !ok {
		known[dir] = false
		return false, err
	}
	e, ok, err := lookAt(filepath.Join(top, dir), join(prefix, dir))
	if err != nil {
		return false, err
	}
	ok = ok && e.mode.IsDir()
	known[dir] = ok
	if ok {
		s.entries = append(s.entries, e)
	}
	return ok, nil
}

// nested adds a submodule, or another repository in the work tree: with its own
// files and its own .git directory. One that is not checked out is empty.
func (s *survey) nested(ctx context.Context, outer *repo, prefix, name string) error {
	dir := filepath.Join(outer.top, name)
	if _, err := os.Lstat(filepath.Join(dir, ".git")); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if s.depth >= maxNesting {
		return errdefs.Unsupported("%s: more than %d repositories within each other", dir, maxNesting)
	}
	inner, err := findRepo(ctx, dir)
	if err != nil {
		return err
	}
	if inner == nil || inner.prefix != "" {
		return nil // its .git is no repository
	}
	foreign, err := inner.foreign(ctx)
	if err != nil {
		return err
	}
	if foreign {
		s.warn("%s is left out: its .git leads to %s, which does not name that directory in turn", dir, inner.common)
		return nil
	}
	s.depth++
	defer func() { s.depth-- }()
	return s.prepareRepo(ctx, inner, join(prefix, name))
}
