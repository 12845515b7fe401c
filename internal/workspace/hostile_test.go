package workspace_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"banger/internal/workspace"
)

// sparseRepo makes a repository whose sparse index cannot be read in full without
// a tree that is missing, and that a partial clone would fetch from url.
func sparseRepo(t *testing.T, dir, url string) {
	t.Helper()
	git(t, filepath.Dir(dir), "init", "-q", dir)
	write(t, dir, "in/f", "inside\n")
	write(t, dir, "out/f", "outside\n")
	git(t, dir, "add", ".")
	git(t, dir, "commit", "-q", "-m", "first")
	git(t, dir, "sparse-checkout", "init", "--cone", "--sparse-index")
	git(t, dir, "sparse-checkout", "set", "in")
	missing := git(t, dir, "rev-parse", "HEAD:out")
	if err := os.Remove(filepath.Join(dir, ".git", "objects", missing[:2], missing[2:])); err != nil {
		t.Fatal(err)
	}
	for _, kv := range [][2]string{
		{"core.repositoryFormatVersion", "1"}, {"extensions.partialClone", "origin"}, {"remote.origin.url", url},
		{"protocol.allow", "always"}, {"protocol.ext.allow", "always"},
	} {
		git(t, dir, "config", kv[0], kv[1])
	}
}

// oldGit makes the git in PATH one that does not know GIT_NO_LAZY_FETCH.
func oldGit(t *testing.T) {
	t.Helper()
	real, err := exec.LookPath("git")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	script := fmt.Sprintf("#!/bin/sh\nunset GIT_NO_LAZY_FETCH\nexec %s \"$@\"\n", real)
	if err := os.WriteFile(filepath.Join(dir, "git"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

// A tree that was copied out of a guest is no reason to run what its .git names.
func TestRepositoryRunsNothing(t *testing.T) {
	for _, tc := range []struct {
		name string
		old  bool
		evil func(t *testing.T, dir, run string)
	}{
		{"lazy fetch", false, func(t *testing.T, dir, run string) { sparseRepo(t, dir, "ext::"+run) }},
		{"lazy fetch, old git", true, func(t *testing.T, dir, run string) { sparseRepo(t, dir, "ext::"+run) }},
		{"upload-pack", true, func(t *testing.T, dir, run string) {
			sparseRepo(t, dir, dir)
			git(t, dir, "config", "remote.origin.uploadpack", run)
		}},
		{"ssh", true, func(t *testing.T, dir, run string) {
			sparseRepo(t, dir, "ssh://nowhere/repo")
			git(t, dir, "config", "core.sshCommand", run)
		}},
		{"fsmonitor", false, func(t *testing.T, dir, run string) {
			git(t, filepath.Dir(dir), "init", "-q", dir)
			write(t, dir, "f", "x")
			git(t, dir, "add", ".")
			git(t, dir, "config", "core.fsmonitor", run)
		}},
	} {
		for _, nested := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, nested %v", tc.name, nested), func(t *testing.T) {
				dir := t.TempDir()
				marker := filepath.Join(t.TempDir(), "marker")
				run := write(t, t.TempDir(), "run", "#!/bin/sh\n: >"+marker+"\n")
				if err := os.Chmod(run, 0o755); err != nil {
					t.Fatal(err)
				}
				top := filepath.Join(dir, "repo")
				if nested {
					top = newRepo(t)
					dir = top
				}
				tc.evil(t, filepath.Join(dir, "repo"), run)
				_ = os.Remove(marker) // making it may have run it
				if tc.old {
					oldGit(t)
				}
				t.Setenv("GIT_ALLOW_PROTOCOL", "ext:ssh:file")
				t.Setenv("GIT_NO_LAZY_FETCH", "0")
				_, _ = workspace.Inspect(t.Context(), top) // may fail, must not run
				if _, err := os.Lstat(marker); err == nil {
					t.Error("the repository ran a program")
				}
			})
		}
	}
}
