package workspace

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
)

// The modes: what of a tree is sent.
const (
	ModeDefault  = "default"  // what git would show, and history to work with
	ModeFull     = "full"     // everything, ignored files and all of .git too
	ModeMetadata = "metadata" // the repository without files
)

// DefaultDepth is how many commits of history are sent unless somebody says otherwise.
const DefaultDepth = 100

// Options say what of a tree is sent into a workspace.
type Options struct {
	Mode        string   `json:"mode"`
	TrackedOnly bool     `json:"tracked_only,omitempty"` // nothing that git does not track
	Include     []string `json:"include,omitempty"`      // globs of ignored files that are sent all the same
	Depth       int      `json:"depth"`                  // commits from each tip; 0: all
	From        string   `json:"from,omitempty"`         // a commit that is checked out; empty: the work tree as it is
	Branch      string   `json:"branch,omitempty"`       // made in the guest; empty: the host's
}

// same reports whether what was sent with o is of use for what is asked for with p.
func (o Options) same(p Options) bool {
	return o.Mode == p.Mode && o.TrackedOnly == p.TrackedOnly && slices.Equal(o.Include, p.Include) && o.From == p.From && o.Branch == p.Branch && o.Depth == p.Depth
}

// Prepare looks at a directory that is to be sent into a workspace, or has been: sent,
// which may be nil, is what was sent before, and saves reading what has not changed.
// It finds that everything can be read before anything is made for it. Close releases what
// it made. It errors with class not_found, permission, invalid_argument, unsupported or
// failed_precondition.
func Prepare(ctx context.Context, dir string, opts Options, sent *Sent) (*Tree, error) {
	if opts.Mode == "" {
		opts.Mode = ModeDefault
	}
	abs, err := resolveDir(dir)
	if err != nil {
		return nil, err
	}
	repo, err := findRepo(ctx, abs)
	if err != nil {
		return nil, err
	}
	if sent != nil && !sent.Options.same(opts) {
		sent = nil
	}
	t := &Tree{Root: abs, opts: opts, repos: map[string]*RepoState{}, began: time.Now()}
	s := &survey{opts: &opts, sent: sent, tree: t}
	if repo != nil {
		err = t.inspectRepo(ctx, repo, s)
	} else {
		err = t.preparePlain(ctx, s, dir)
	}
	if err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

// Complete makes what may take long: packs of history. It is called once, before Since or
// WriteTar.
func (t *Tree) Complete(ctx context.Context) error {
	for _, do := range t.later {
		if err := do(ctx); err != nil {
			return err
		}
	}
	t.later = nil
	return nil
}

// Dirs are the directories in which a change may matter, absolute.
func (t *Tree) Dirs() []string {
	dirs := []string{t.Root}
	for i := range t.entries {
		if e := &t.entries[i]; e.mode.IsDir() && e.name != "" && !inDotGit(e.name) {
			dirs = append(dirs, filepath.Join(t.Root, e.name))
		}
	}
	return append(dirs, t.gitDirs...)
}

// Top is the state of the repository; nil when the tree is in none.
func (t *Tree) Top() *RepoState { return t.repos[""] }

// Close removes what was made for the tree.
func (t *Tree) Close() {
	if t.temp != "" {
		_ = os.RemoveAll(t.temp)
		t.temp = ""
	}
}

// tempDir is a directory for what is made for this tree.
func (t *Tree) tempDir() (string, error) {
	if t.temp != "" {
		return t.temp, nil
	}
	dir, err := os.MkdirTemp("", "banger-workspace-")
	if err != nil {
		return "", errdefs.Wrap(err, "make a temporary directory")
	}
	t.temp = dir
	return dir, nil
}

// resolveDir is the absolute path, free of links, of a directory that can be read.
func resolveDir(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", errdefs.Invalid("resolve %q: %w", path, err)
	}
	if abs, err = filepath.EvalSymlinks(abs); err != nil {
		return "", pathErr(path, err)
	}
	info, err := os.Stat(abs)
	if err != nil {
		return "", pathErr(path, err)
	}
	if !info.IsDir() {
		return "", errdefs.Invalid("%s is not a directory", path).WithHint("give the directory that holds it")
	}
	if err := unix.Faccessat(unix.AT_FDCWD, abs, unix.R_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
		return "", pathErr(path, err)
	}
	return abs, nil
}

// preparePlain lists a directory that is no repository, by its own rules.
func (t *Tree) preparePlain(ctx context.Context, s *survey, dir string) error {
	o := s.opts
	if o.Mode == ModeMetadata || o.TrackedOnly || o.From != "" || o.Branch != "" {
		return errdefs.Precondition("%s is not in a git repository", dir).
			WithHint("leave --mode metadata, --tracked-only, --from and --branch away: they are about one")
	}
	rules := &plainRules{all: o.Mode == ModeFull, include: o.Include}
	if err := s.walkRules(ctx, t.Root, rules); err != nil {
		return err
	}
	if rules.found {
		t.Notices = append(t.Notices, dir+" is not in a git repository: what its .gitignore and .bangerignore files leave out is not sent")
	} else {
		t.Notices = append(t.Notices, dir+" is not in a git repository: all its files are sent")
	}
	t.take(s)
	return t.checkReadable(ctx)
}

// checkReadable reports a file that could not be read later on, of those to be sent.
func (t *Tree) checkReadable(ctx context.Context) error {
	return inParallel(ctx, len(t.entries), func(i int) error {
		e := &t.entries[i]
		need := uint32(unix.R_OK)
		switch {
		case e.path == "" || e.same:
			return nil
		case e.mode.IsDir():
			need |= unix.X_OK
		case !e.mode.IsRegular():
			return nil
		}
		if err := unix.Faccessat(unix.AT_FDCWD, e.path, need, unix.AT_EACCESS); err != nil {
			return pathErr(e.path, err)
		}
		return nil
	})
}

// globs as git's pathspecs have them: relative to the top, a star for no slash.
func globSpecs(globs []string) []string {
	specs := make([]string, len(globs))
	for i, g := range globs {
		specs[i] = ":(top,glob)" + strings.TrimPrefix(g, "/")
	}
	return specs
}
