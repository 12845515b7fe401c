package workspace_test

import (
	"bytes"
	"crypto/sha1"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"banger/internal/errdefs"
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
		{"filters", false, func(t *testing.T, dir, run string) {
			git(t, filepath.Dir(dir), "init", "-q", dir)
			write(t, dir, ".gitattributes", "* filter=evil diff=evil merge=evil\n")
			write(t, dir, "f", "x")
			git(t, dir, "add", ".")
			git(t, dir, "commit", "-q", "-m", "first")
			// An index that is older than the files has git look at their contents.
			past := time.Now().Add(-time.Hour)
			if err := os.Chtimes(filepath.Join(dir, ".git/index"), past, past); err != nil {
				t.Fatal(err)
			}
			for _, key := range []string{"filter.evil.clean", "filter.evil.smudge", "filter.evil.process", "diff.evil.command", "diff.evil.textconv", "merge.evil.driver"} {
				git(t, dir, "config", key, run)
			}
			git(t, dir, "config", "filter.evil.required", "true")
		}},
		{"hooks", false, func(t *testing.T, dir, run string) {
			git(t, filepath.Dir(dir), "init", "-q", dir)
			write(t, dir, "f", "x")
			git(t, dir, "add", ".")
			git(t, dir, "commit", "-q", "-m", "first")
			for _, hook := range []string{"post-index-change", "reference-transaction", "post-checkout", "pre-commit"} {
				symlink(t, run, filepath.Join(dir, ".git/hooks", hook))
			}
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
				// All of it may fail, and must not run.
				for _, opts := range []workspace.Options{{Depth: 1}, {}, {From: "HEAD", Branch: "x"}, {Include: []string{"**"}}, {Mode: workspace.ModeFull}} {
					if tree, err := workspace.Prepare(t.Context(), top, opts, nil); err == nil {
						_ = tree.Complete(t.Context())
						tree.Close()
					}
				}
				if _, err := os.Lstat(marker); err == nil {
					t.Error("the repository ran a program")
				}
			})
		}
	}
}

// A tree that names another repository of the user's does not take it along.
func TestForeignRepository(t *testing.T) {
	eachWay(t, func(t *testing.T, mode string) {
		const secret = "a token in the config"
		for _, tc := range []struct {
			name string
			evil func(t *testing.T, dir, private string)
		}{
			{"file", func(t *testing.T, dir, private string) {
				write(t, dir, ".git", "gitdir: "+private+"/.git\n")
			}},
			{"link", func(t *testing.T, dir, private string) {
				symlink(t, private+"/.git", filepath.Join(dir, ".git"))
			}},
			{"file that leads to a work tree", func(t *testing.T, dir, private string) {
				git(t, private, "worktree", "add", "-q", "--detach", filepath.Join(t.TempDir(), "linked"))
				write(t, dir, ".git", "gitdir: "+private+"/.git/worktrees/linked\n")
			}},
			{"common directory", func(t *testing.T, dir, private string) {
				git(t, dir, "init", "-q")
				write(t, dir, ".git/commondir", private+"/.git\n")
			}},
			{"work tree of its own making", func(t *testing.T, dir, private string) {
				write(t, dir, ".git", "gitdir: ./fake\n")
				write(t, dir, "fake/HEAD", "ref: refs/heads/main\n")
				write(t, dir, "fake/gitdir", dir+"/.git\n")
				write(t, dir, "fake/commondir", private+"/.git\n")
			}},
		} {
			for _, nested := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, nested %v", tc.name, nested), func(t *testing.T) {
					private, top := newRepo(t), t.TempDir()
					git(t, private, "config", "some.secret", secret)
					dir := filepath.Join(top, "repo")
					if nested {
						top = newRepo(t)
						dir = filepath.Join(top, "repo")
					}
					write(t, dir, "a.txt", "public\n")
					tc.evil(t, dir, private)
					if !nested {
						_, err := inspectAs(t, dir, mode)
						if !errors.Is(err, errdefs.ErrFailedPrecondition) || errdefs.HintOf(err) == "" || !strings.Contains(err.Error(), private) {
							t.Errorf("Inspect: %v", err)
						}
						return
					}
					tree, got := sendAs(t, top, mode)
					if out, err := exec.Command("grep", "-r", secret, got).Output(); err == nil {
						t.Errorf("the secret was sent:\n%s", out)
					}
					if !exists(got, "a.txt") {
						t.Error("the rest was not sent")
					}
					if len(tree.Warnings) != 1 || !strings.Contains(tree.Warnings[0], private) {
						t.Errorf("warnings: %q", tree.Warnings)
					}
				})
			}
		}
	})
}

// A repository that claims the directory above it as its work tree does not get it.
func TestWorkTreeElsewhere(t *testing.T) {
	eachWay(t, func(t *testing.T, mode string) {
		home := t.TempDir()
		write(t, home, "private/key", "secret")
		dir := filepath.Join(home, "out")
		git(t, home, "init", "-q", dir)
		write(t, dir, "f", "x")
		git(t, dir, "add", ".")
		git(t, dir, "config", "core.worktree", home)
		git(t, dir, "add", "f")
		if _, err := inspectAs(t, dir, mode); !errors.Is(err, errdefs.ErrFailedPrecondition) {
			t.Errorf("Inspect: %v", err)
		}
	})
}

func TestConfigThatIsALink(t *testing.T) {
	eachWay(t, func(t *testing.T, mode string) {
		repo := newRepo(t)
		const secret = "[some]\n\tsecret = token\n"
		other := write(t, t.TempDir(), "config", secret)
		if err := os.Remove(filepath.Join(repo, ".git", "config")); err != nil {
			t.Fatal(err)
		}
		symlink(t, other, filepath.Join(repo, ".git", "config"))
		_, got := sendAs(t, repo, mode)
		if b, _ := os.ReadFile(filepath.Join(got, ".git", "config")); strings.Contains(string(b), "token") {
			t.Errorf("sent: %s", b)
		}
	})
}

// An index with a name that no git would put there.
func TestIndexWithNamesElsewhere(t *testing.T) {
	base := t.TempDir()
	write(t, base, "secret", "not yours\n")
	repo := filepath.Join(base, "repo")
	git(t, base, "init", "-q", repo)
	write(t, repo, "xx/secret", "x")
	write(t, repo, "f", "x")
	git(t, repo, "add", ".")
	file := filepath.Join(repo, ".git", "index")
	index, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	index = bytes.Replace(index[:len(index)-sha1.Size], []byte("xx/secret"), []byte("../secret"), 1)
	sum := sha1.Sum(index)
	if err := os.WriteFile(file, append(index, sum[:]...), 0o644); err != nil {
		t.Fatal(err)
	}
	if out := git(t, repo, "ls-files"); !strings.Contains(out, "../secret") {
		t.Skipf("this git does not show it: %q", out)
	}
	tree, err := inspect(t, repo)
	if err != nil {
		t.Fatal(err)
	}
	var stream bytes.Buffer
	if err := tree.WriteTar(t.Context(), &stream, workspace.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(stream.Bytes(), []byte("not yours")) {
		t.Error("a file outside the tree was sent")
	}
}

// Nobody asked for the store that a repository in the tree borrows from.
func TestNestedAlternates(t *testing.T) {
	eachWay(t, func(t *testing.T, mode string) {
		private, top := newRepo(t), newRepo(t)
		git(t, top, "clone", "-q", "--shared", private, "lib")
		tree, got := sendAs(t, top, mode)
		if !exists(got, "lib/a.txt") || exists(got, "lib/.git") {
			t.Errorf("lib/a.txt there = %v, lib/.git there = %v", exists(got, "lib/a.txt"), exists(got, "lib/.git"))
		}
		if len(tree.Warnings) != 1 || !strings.Contains(tree.Warnings[0], private) {
			t.Errorf("warnings: %q", tree.Warnings)
		}
		git(t, got, "status")
	})
}

// What git itself keeps elsewhere names its work tree, and comes along.
func TestOwnGitDirElsewhere(t *testing.T) {
	eachWay(t, func(t *testing.T, mode string) {
		lib, app := newRepo(t), newRepo(t)
		git(t, app, "submodule", "add", "-q", lib, "lib")
		git(t, app, "commit", "-q", "-m", "submodule")
		git(t, app, "worktree", "add", "-q", "--detach", filepath.Join(app, "wt"))
		git(t, filepath.Join(app, "wt"), "submodule", "update", "-q", "--init")

		tree, got := sendAs(t, app, mode)
		for _, name := range []string{"lib/.git/HEAD", "wt/.git/HEAD", "wt/a.txt", "wt/lib/.git/HEAD", "wt/lib/a.txt"} {
			if !exists(got, name) {
				t.Errorf("%s is missing", name)
			}
		}
		if len(tree.Warnings) != 0 {
			t.Errorf("warnings: %q", tree.Warnings)
		}
		_, got = sendAs(t, filepath.Join(app, "wt", "lib"), mode)
		git(t, got, "status")
	})
}

func symlink(t *testing.T, to, at string) {
	t.Helper()
	if err := os.Symlink(to, at); err != nil {
		t.Fatal(err)
	}
}
