package workspace_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/errdefs"
	"banger/internal/workspace"
)

// export takes out what the guest has.
func (g *guestDir) export(t *testing.T, w workspace.Want, use func(x *workspace.Export) error) error {
	t.Helper()
	taken, err := g.changes(t, w)
	if err != nil {
		return err
	}
	defer taken.Close()
	x, err := taken.Export(t.Context(), "a-vm")
	if err != nil {
		return err
	}
	return use(x)
}

func (g *guestDir) patch(t *testing.T) string {
	t.Helper()
	var b bytes.Buffer
	err := g.export(t, workspace.Want{Content: true}, func(x *workspace.Export) error { return x.Patch(t.Context(), &b, false) })
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// branch makes one in the host's repository, and returns its commit.
func (g *guestDir) branch(t *testing.T, name string) string {
	t.Helper()
	commit := ""
	err := g.export(t, workspace.Want{Content: true, Git: true, Dirty: true}, func(x *workspace.Export) (err error) {
		commit, err = x.ToBranch(t.Context(), name)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return commit
}

// treeOf is the tree that git makes of a work tree's files, without touching its index.
func treeOf(t *testing.T, dir string) string {
	t.Helper()
	index := filepath.Join(t.TempDir(), "index")
	run := func(args ...string) string {
		cmd := exec.Command("git", args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GIT_INDEX_FILE="+index, "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("git %v in %s: %v\n%s", args, dir, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	run("add", "-A")
	return run("write-tree")
}

func TestExportPatch(t *testing.T) {
	repo, g := newRepo(t), newGuest(t)
	write(t, repo, "a.txt", "not committed on the host\n")
	g.put(t, repo, workspace.Options{}, false)
	if p := g.patch(t); p != "" {
		t.Errorf("nothing changed, but the patch is %q", p)
	}
	write(t, g.dir, "a.txt", "not committed on the host\nthe guest's\n")
	write(t, g.dir, "odd\nname \"q\"", "odd\n")
	write(t, g.dir, "bin", "a\x00b\xff")
	write(t, g.dir, "ignored.o", "ignored\n")
	symlink(t, "/etc/passwd", filepath.Join(g.dir, "link"))
	if err := os.Remove(filepath.Join(g.dir, "sub/deep/b.txt")); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(g.dir, "new.txt"), 0o755); err != nil {
		t.Fatal(err)
	}
	// A commit in the guest is part of it, and so is what is not committed.
	git(t, g.dir, "add", "bin")
	git(t, g.dir, "commit", "-q", "-m", "in the guest")
	index, err := os.ReadFile(filepath.Join(g.dir, ".git/index"))
	if err != nil {
		t.Fatal(err)
	}
	before := git(t, repo, "status", "--porcelain=v2", "--branch")
	patch := g.patch(t)
	if now := git(t, repo, "status", "--porcelain=v2", "--branch"); now != before {
		t.Errorf("the host's repository has changed: %s", now)
	}
	if now, err := os.ReadFile(filepath.Join(g.dir, ".git/index")); err != nil || !bytes.Equal(now, index) {
		t.Errorf("the guest's index has changed: %v", err)
	}
	if !strings.Contains(patch, "GIT binary patch") || strings.Contains(patch, "ignored.o") {
		t.Errorf("patch:\n%s", patch)
	}
	err = g.export(t, workspace.Want{Content: true}, func(x *workspace.Export) error { return x.Apply(t.Context()) })
	if err != nil {
		t.Fatal(err)
	}
	if a, b := treeOf(t, repo), treeOf(t, g.dir); a != b {
		t.Errorf("after --apply the trees differ: %s", git(t, repo, "diff", "--stat", b))
	}
	// What was applied is no conflict for the next sync.
	if _, conflicts := g.put(t, repo, workspace.Options{}, false); len(conflicts) > 0 {
		t.Errorf("conflicts: %v", conflicts)
	}
}

func TestApplyIsAllOrNothing(t *testing.T) {
	repo, g := newRepo(t), newGuest(t)
	g.put(t, repo, workspace.Options{}, false)
	write(t, g.dir, "a.txt", "the guest's\n")
	write(t, g.dir, "sub/deep/b.txt", "the guest's\n")
	write(t, repo, "a.txt", "the host's\n")
	err := g.export(t, workspace.Want{Content: true}, func(x *workspace.Export) error { return x.Apply(t.Context()) })
	if !errors.Is(err, errdefs.ErrFailedPrecondition) || errdefs.HintOf(err) == "" {
		t.Errorf("%v", err)
	}
	if b, err := os.ReadFile(filepath.Join(repo, "sub/deep/b.txt")); err != nil || string(b) != "deep\n" {
		t.Errorf("half of it was applied: %q, %v", b, err)
	}
	// A file that was not committed and changed on both sides: what it was is lost.
	write(t, g.dir, "new.txt", "the guest's\n")
	write(t, repo, "new.txt", "the host's\n")
	err = g.export(t, workspace.Want{Content: true}, func(x *workspace.Export) error { return x.Patch(t.Context(), io.Discard, false) })
	if !errors.Is(err, errdefs.ErrFailedPrecondition) || !strings.Contains(err.Error(), "new.txt") {
		t.Errorf("%v", err)
	}
}

func TestExportBranch(t *testing.T) {
	repo, g := newRepo(t), newGuest(t)
	g.put(t, repo, workspace.Options{}, false)
	write(t, g.dir, "a.txt", "one\n")
	git(t, g.dir, "commit", "-q", "-am", "one")
	write(t, g.dir, "made.txt", "two\n")
	git(t, g.dir, "add", "made.txt")
	git(t, g.dir, "commit", "-q", "-m", "two")
	git(t, g.dir, "gc", "-q")
	before := git(t, repo, "status", "--porcelain=v2", "--branch")

	write(t, g.dir, "loose.txt", "three\n")
	commit := g.branch(t, "from-vm")
	if out := git(t, repo, "log", "--format=%s", "from-vm"); out != "Not committed in a-vm\ntwo\none\nfirst" {
		t.Errorf("log: %q", out)
	}
	if out := git(t, repo, "rev-parse", "from-vm^"); out != git(t, g.dir, "rev-parse", "HEAD") {
		t.Errorf("the guest's commit is %s", out)
	}
	if a, b := git(t, repo, "rev-parse", commit+"^{tree}"), treeOf(t, g.dir); a != b {
		t.Errorf("the branch's tree is not the guest's")
	}
	if now := git(t, repo, "status", "--porcelain=v2", "--branch"); now != before {
		t.Errorf("the checkout has changed: %s", now)
	}
	git(t, repo, "fsck", "--full", "--strict")
	err := g.export(t, workspace.Want{Content: true, Git: true, Dirty: true}, func(x *workspace.Export) error {
		_, err := x.ToBranch(t.Context(), "from-vm")
		return err
	})
	if !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("a branch that is there: %v", err)
	}
	var bundle bytes.Buffer
	err = g.export(t, workspace.Want{Content: true, Git: true, Dirty: true}, func(x *workspace.Export) error {
		return x.Bundle(t.Context(), &bundle, "main")
	})
	if err != nil {
		t.Fatal(err)
	}
	file := write(t, t.TempDir(), "b.bundle", bundle.String())
	other := filepath.Join(t.TempDir(), "other")
	git(t, filepath.Dir(other), "clone", "-q", repo, other)
	git(t, other, "fetch", "-q", file, "main:got")
	if a, b := git(t, other, "rev-parse", "got^{tree}"), git(t, repo, "rev-parse", "from-vm^{tree}"); a != b {
		t.Error("the bundle has another tree")
	}
}

// The guest made no commit, and there is no git in it.
func TestExportWithoutGitInTheGuest(t *testing.T) {
	repo, g := newRepo(t), newGuest(t)
	g.put(t, repo, workspace.Options{}, false)
	if err := os.RemoveAll(filepath.Join(g.dir, ".git")); err != nil {
		t.Fatal(err)
	}
	write(t, g.dir, "a.txt", "changed\n")
	g.branch(t, "x")
	if out := git(t, repo, "log", "--format=%s", "x"); out != "Not committed in a-vm\nfirst" {
		t.Errorf("log: %q", out)
	}
	if out := git(t, repo, "show", "x:a.txt"); out != "changed" {
		t.Errorf("a.txt: %q", out)
	}
	if out := git(t, repo, "show", "x:new.txt"); out != "untracked" {
		t.Errorf("what was not committed on the host: %q", out)
	}
}

func TestExportPlain(t *testing.T) {
	dir, g := t.TempDir(), newGuest(t)
	write(t, dir, "a", "one\n")
	write(t, dir, "sub/b", "two\n")
	write(t, dir, ".bangerignore", "*.log\n!keep.log\n")
	write(t, dir, "x.log", "ignored\n")
	write(t, dir, "keep.log", "not ignored\n")
	g.put(t, dir, workspace.Options{}, false)
	if exists(g.dir, "x.log") || !exists(g.dir, "keep.log") || exists(g.dir, ".git") {
		t.Error("the rules were not followed")
	}
	write(t, g.dir, "a", "changed\n")
	write(t, g.dir, "new/c", "new\n")
	write(t, g.dir, "y.log", "ignored\n")
	if err := os.Remove(filepath.Join(g.dir, "sub/b")); err != nil {
		t.Fatal(err)
	}
	err := g.export(t, workspace.Want{Content: true}, func(x *workspace.Export) error { return x.Apply(t.Context()) })
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "a")); err != nil || string(b) != "changed\n" || exists(dir, "sub/b") || !exists(dir, "new/c") || exists(dir, "y.log") {
		t.Errorf("a: %q, %v", b, err)
	}
}

// TestRandom makes random edits on both sides of random repositories, in and out, and
// compares trees and histories.
func TestRandom(t *testing.T) {
	rounds := 12
	if testing.Short() {
		rounds = 3
	}
	for round := range rounds {
		seed := rand.Uint64()
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) { randomRound(t, rand.New(rand.NewPCG(seed, 0)), round%2 == 1) })
	}
}

var randomNames = []string{"a", "b", "A", "dir/a", "dir/b", "dir/sub/c", "new\nline", "sp ace/é", "x.o", `q"uote`, "-dash"}

// edit changes something in a work tree, and perhaps commits it.
func edit(t *testing.T, r *rand.Rand, dir string) {
	t.Helper()
	for range 1 + r.IntN(4) {
		name := filepath.Join(dir, randomNames[r.IntN(len(randomNames))])
		switch r.IntN(5) {
		case 0:
			_ = os.RemoveAll(name)
		case 1:
			_ = os.Remove(name)
			if os.MkdirAll(filepath.Dir(name), 0o755) == nil {
				_ = os.Symlink([]string{"a", "../x", "/etc/passwd"}[r.IntN(3)], name)
			}
		case 2:
			if st, err := os.Lstat(name); err == nil && st.Mode().IsRegular() {
				_ = os.Chmod(name, []os.FileMode{0o644, 0o755}[r.IntN(2)])
			}
		default:
			if st, err := os.Lstat(name); err == nil && !st.Mode().IsRegular() {
				_ = os.RemoveAll(name)
			}
			if os.MkdirAll(filepath.Dir(name), 0o755) == nil {
				_ = os.WriteFile(name, []byte(strings.Repeat(fmt.Sprintln(r.IntN(5)), r.IntN(20))), 0o644)
			}
		}
	}
	if r.IntN(3) == 0 {
		git(t, dir, "add", "-A")
		git(t, dir, "commit", "-q", "--allow-empty", "-m", fmt.Sprintf("commit %d", r.IntN(1000)))
	}
}

func randomRound(t *testing.T, r *rand.Rand, sha256 bool) {
	repo, g := t.TempDir(), newGuest(t)
	format := "sha1"
	if sha256 {
		format = "sha256"
	}
	git(t, repo, "init", "-q", "-b", "main", "--object-format="+format)
	write(t, repo, ".gitignore", "*.o\n")
	write(t, repo, "a", "first\n")
	git(t, repo, "add", ".")
	git(t, repo, "commit", "-q", "-m", "first")
	for range r.IntN(5) {
		edit(t, r, repo)
	}
	opts := workspace.Options{Depth: r.IntN(3)}
	g.put(t, repo, opts, false)
	g.sameAs(t, repo)
	for range 3 { // the host alone
		edit(t, r, repo)
		if _, conflicts := g.put(t, repo, opts, false); len(conflicts) > 0 {
			t.Fatalf("the guest changed nothing, but %v", conflicts)
		}
		g.sameAs(t, repo)
	}
	for n := range 3 { // the guest alone
		edit(t, r, g.dir)
		name := fmt.Sprintf("out-%d", n)
		taken, err := g.changes(t, workspace.Want{Content: true, Git: true, Dirty: true})
		if err != nil {
			t.Fatal(err)
		}
		x, err := taken.Export(t.Context(), "a-vm")
		if err != nil {
			t.Fatal(err)
		}
		if commit, err := x.ToBranch(t.Context(), name); err != nil {
			t.Fatal(err)
		} else if a, b := git(t, repo, "rev-parse", commit+"^{tree}"), treeOf(t, g.dir); a != b {
			t.Fatalf("the branch is not what the guest has: %s", git(t, repo, "diff", "--stat", commit))
		}
		taken.Close()
		git(t, repo, "fsck", "--strict")
		if out := git(t, repo, "rev-list", name, "--not", git(t, g.dir, "rev-parse", "HEAD")); strings.Count(out, "\n") > 0 {
			t.Fatalf("the branch has more than one commit that the guest has not: %s", out)
		}
	}
	err := g.export(t, workspace.Want{Content: true}, func(x *workspace.Export) error { return x.Apply(t.Context()) })
	if err != nil {
		t.Fatal(err)
	}
	if a, b := treeOf(t, repo), treeOf(t, g.dir); a != b {
		t.Fatalf("after the patch the host has %s, the guest %s", git(t, repo, "ls-tree", "-r", a), git(t, g.dir, "ls-tree", "-r", b))
	}
}
