package workspace

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"banger/internal/sysexec"
)

// foreign reports whether the git directory of r is not that of the tree. A tree
// that a guest made can name any repository of the user's, who means to send the
// tree. So a git directory that is not simply r.top/.git has to name r.top in turn,
// as those of linked work trees and of submodules do.
func (r *repo) foreign(ctx context.Context) (bool, error) {
	dotGit := filepath.Join(r.top, ".git")
	if r.gitDir == dotGit {
		return r.common != r.gitDir, nil
	}
	if to, err := leadsTo(dotGit); err != nil || to != r.gitDir {
		return true, err // a work tree that a git directory elsewhere claims as its own
	}
	back, err := readSmall(filepath.Join(r.gitDir, "gitdir"))
	if err != nil {
		return false, err
	}
	if back != nil {
		return resolve(r.gitDir, string(back)) != dotGit || filepath.Dir(r.gitDir) != filepath.Join(r.common, "worktrees"), nil
	}
	_, err = git(ctx, r.top, "config", "--get", "core.worktree") // git found r.top by it
	if e := (*sysexec.Error)(nil); errors.As(err, &e) && e.Code == 1 {
		return true, nil
	}
	if err != nil {
		return false, gitErr(r.top, err)
	}
	return r.common != r.gitDir, nil
}

// leadsTo is the directory that a .git, which may be a file, stands for; empty:
// none.
func leadsTo(dotGit string) (string, error) {
	info, err := os.Lstat(dotGit)
	if err != nil || !info.Mode().IsRegular() {
		return resolve("/", dotGit), nil
	}
	text, err := readSmall(dotGit)
	if err != nil {
		return "", err
	}
	to, ok := strings.CutPrefix(string(text), "gitdir: ")
	if !ok {
		return "", nil
	}
	return resolve(filepath.Dir(dotGit), to), nil
}

// resolve is the absolute path, free of links, of what a file in dir says is at
// path; empty: nothing.
func resolve(dir, path string) string {
	path = strings.TrimRight(path, "\r\n")
	if !filepath.IsAbs(path) {
		path = filepath.Join(dir, path)
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return ""
	}
	return real
}
