package workspace_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"banger/internal/errdefs"
	"banger/internal/workspace"
)

// git runs git for a test, with an identity and nobody's configuration.
func git(t *testing.T, dir string, args ...string) string {
	t.Helper()
	cmd := exec.Command("git", append([]string{"-c", "protocol.file.allow=always"}, args...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null",
		"GIT_AUTHOR_NAME=t", "GIT_AUTHOR_EMAIL=t@example.org", "GIT_COMMITTER_NAME=t", "GIT_COMMITTER_EMAIL=t@example.org")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %v in %s: %v\n%s", args, dir, err, out)
	}
	return strings.TrimSpace(string(out))
}

func write(t *testing.T, dir, name, contents string) string {
	t.Helper()
	p := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(contents), 0o644); err != nil {
		t.Fatal(err)
	}
	return p
}

// newRepo makes a repository with tracked, untracked, ignored and deleted files.
func newRepo(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	git(t, dir, "init", "-q", "-b", "main")
	write(t, dir, "a.txt", "tracked\n")
	write(t, dir, "sub/deep/b.txt", "deep\n")
	write(t, dir, "gone.txt", "soon deleted\n")
	write(t, dir, ".gitignore", "*.o\nout/\n")
	git(t, dir, "add", ".")
	git(t, dir, "commit", "-q", "-m", "first")
	if err := os.Remove(filepath.Join(dir, "gone.txt")); err != nil {
		t.Fatal(err)
	}
	write(t, dir, "new.txt", "untracked\n")
	write(t, dir, "x.o", "ignored\n")
	write(t, dir, "out/y", "ignored\n")
	return dir
}

// eachWay tests with a .git that is made for the guest, and with one that is sent as it is.
func eachWay(t *testing.T, test func(t *testing.T, mode string)) {
	for _, mode := range []string{workspace.ModeDefault, workspace.ModeFull} {
		t.Run(mode, func(t *testing.T) { test(t, mode) })
	}
}

// inspect looks at a directory in the way that it is sent, history and all.
func inspect(t *testing.T, path string) (*workspace.Tree, error) {
	t.Helper()
	return inspectAs(t, path, workspace.ModeDefault)
}

func inspectAs(t *testing.T, path, mode string) (*workspace.Tree, error) {
	t.Helper()
	tree, err := workspace.Prepare(t.Context(), path, workspace.Options{Mode: mode, Depth: workspace.DefaultDepth}, nil)
	if err != nil {
		return nil, err
	}
	t.Cleanup(tree.Close)
	return tree, tree.Complete(t.Context())
}

// send inspects path and unpacks its stream with tar, as an independent judge.
func send(t *testing.T, path string) (*workspace.Tree, string) {
	t.Helper()
	return sendAs(t, path, workspace.ModeDefault)
}

func sendAs(t *testing.T, path, mode string) (*workspace.Tree, string) {
	t.Helper()
	tree, err := inspectAs(t, path, mode)
	if err != nil {
		t.Fatal(err)
	}
	return tree, unpack(t, tree, workspace.WriteOptions{})
}

func unpack(t *testing.T, tree *workspace.Tree, opts workspace.WriteOptions) string {
	t.Helper()
	var buf bytes.Buffer
	if err := tree.WriteTar(t.Context(), &buf, opts); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cmd := exec.Command("tar", "-x", "-p", "--no-same-owner", "-C", dir)
	cmd.Stdin = &buf
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("tar: %v\n%s", err, out)
	}
	return dir
}

func exists(dir, name string) bool {
	_, err := os.Lstat(filepath.Join(dir, name))
	return err == nil
}

func TestRepository(t *testing.T) {
	repo := newRepo(t)
	script := write(t, repo, "run.sh", "#!/bin/sh\n")
	if err := os.Chmod(script, 0o755); err != nil {
		t.Fatal(err)
	}
	old := time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC)
	if err := os.Chtimes(script, old, old); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("sub/deep/b.txt", filepath.Join(repo, "link")); err != nil {
		t.Fatal(err)
	}
	write(t, repo, "n\xc3\xa4me with\nnewline", "odd\n")
	write(t, repo, ".git/index.lock", "")

	tree, got := send(t, repo)
	if !tree.Git || tree.Subdir != "" {
		t.Errorf("Git = %v, Subdir = %q", tree.Git, tree.Subdir)
	}
	for name, want := range map[string]bool{
		"a.txt": true, "sub/deep/b.txt": true, "new.txt": true, ".gitignore": true, "n\xc3\xa4me with\nnewline": true,
		"gone.txt": false, "x.o": false, "out/y": false, "out": false, ".git/index.lock": false, ".git/HEAD": true,
	} {
		if exists(got, name) != want {
			t.Errorf("%s: there = %v, want %v", name, !want, want)
		}
	}
	info, err := os.Stat(filepath.Join(got, "run.sh"))
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o755 || !info.ModTime().Equal(old) {
		t.Errorf("run.sh: mode %v, time %v", info.Mode(), info.ModTime())
	}
	if target, err := os.Readlink(filepath.Join(got, "link")); err != nil || target != "sub/deep/b.txt" {
		t.Errorf("link -> %q, %v", target, err)
	}
	git(t, got, "fsck", "--strict")
	if a, b := git(t, repo, "status", "--porcelain"), git(t, got, "status", "--porcelain"); a != b {
		t.Errorf("status differs:\n%s\n--\n%s", a, b)
	}
}

func TestSubdirectorySendsTheRepository(t *testing.T) {
	repo := newRepo(t)
	tree, got := send(t, filepath.Join(repo, "sub", "deep"))
	if tree.Subdir != "sub/deep" || !exists(got, "a.txt") {
		t.Errorf("Subdir = %q, a.txt there = %v", tree.Subdir, exists(got, "a.txt"))
	}
	if len(tree.Notices) != 1 {
		t.Errorf("notices: %q", tree.Notices)
	}
}

// A directory that the repository around it does not know, say in a home directory
// that is one, is sent alone.
func TestUnknownSubdirectoryIsSentAlone(t *testing.T) {
	repo := newRepo(t)
	write(t, repo, "project/main.c", "int main;\n")
	tree, got := send(t, filepath.Join(repo, "project"))
	if tree.Git || tree.Subdir != "" || exists(got, "a.txt") || !exists(got, "main.c") {
		t.Errorf("Git %v, Subdir %q, a.txt %v, main.c %v", tree.Git, tree.Subdir, exists(got, "a.txt"), exists(got, "main.c"))
	}
}

func TestRepositoryWithoutCommits(t *testing.T) {
	dir := t.TempDir()
	git(t, dir, "init", "-q")
	tree, got := send(t, dir)
	if !tree.Git {
		t.Error("not seen as a repository")
	}
	git(t, got, "status")
}

func TestLinkedWorktree(t *testing.T) {
	eachWay(t, func(t *testing.T, mode string) {
		repo := newRepo(t)
		linked := filepath.Join(t.TempDir(), "linked")
		git(t, repo, "worktree", "add", "-q", "-b", "topic", linked)
		write(t, linked, "topic.txt", "on topic\n")
		git(t, linked, "add", "topic.txt")
		git(t, linked, "commit", "-q", "-m", "topic")
		write(t, linked, "staged.txt", "staged\n")
		git(t, linked, "add", "staged.txt")

		_, got := sendAs(t, linked, mode)
		if info, err := os.Stat(filepath.Join(got, ".git")); err != nil || !info.IsDir() {
			t.Fatalf(".git is no directory: %v", err)
		}
		git(t, got, "fsck")
		for _, args := range [][]string{{"status", "--porcelain"}, {"log", "--format=%H"}, {"branch", "--show-current"}, {"diff", "--cached", "--name-only"}} {
			if a, b := git(t, linked, args...), git(t, got, args...); a != b {
				t.Errorf("git %v: %q, want %q", args, b, a)
			}
		}
		if list := git(t, got, "worktree", "list"); strings.Count(list, "\n") != 0 {
			t.Errorf("other work trees came along:\n%s", list)
		}
	})
}

// The layout of a bare repository with work trees beside it.
func TestLinkedWorktreeOfBareRepository(t *testing.T) {
	eachWay(t, func(t *testing.T, mode string) {
		repo := newRepo(t)
		base := t.TempDir()
		git(t, base, "clone", "-q", "--bare", repo, "bare.git")
		git(t, filepath.Join(base, "bare.git"), "worktree", "add", "-q", filepath.Join(base, "wt"), "main")
		_, got := sendAs(t, filepath.Join(base, "wt"), mode)
		if out := git(t, got, "status", "--porcelain"); out != "" {
			t.Errorf("status: %s", out)
		}
		if _, err := inspectAs(t, filepath.Join(base, "bare.git"), mode); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("bare: %v", err)
		}
		if _, err := inspectAs(t, filepath.Join(repo, ".git", "objects"), mode); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("inside .git: %v", err)
		}
	})
}

func TestAlternates(t *testing.T) {
	eachWay(t, func(t *testing.T, mode string) {
		repo := newRepo(t)
		git(t, repo, "repack", "-adq")
		base := t.TempDir()
		git(t, base, "clone", "-q", "--shared", repo, "one")
		one := filepath.Join(base, "one")
		write(t, one, "loose.txt", "loose\n")
		git(t, one, "add", ".")
		git(t, one, "commit", "-q", "-m", "second")
		git(t, base, "clone", "-q", "--shared", one, "two") // borrows from a borrower
		two := filepath.Join(base, "two")
		// A relative path, as git also allows.
		rel, err := filepath.Rel(filepath.Join(two, ".git", "objects"), filepath.Join(one, ".git", "objects"))
		if err != nil {
			t.Fatal(err)
		}
		write(t, two, ".git/objects/info/alternates", rel+"\n")

		tree, got := sendAs(t, two, mode)
		// Of what is packed for the guest it does not matter from whom the lender has it.
		lenders := map[string][]string{workspace.ModeDefault: {one}, workspace.ModeFull: {one, repo}}[mode]
		if len(tree.Warnings) != len(lenders) {
			t.Fatalf("warnings: %q", tree.Warnings)
		}
		for i, from := range lenders {
			if !strings.Contains(tree.Warnings[i], from) {
				t.Errorf("warnings: %q", tree.Warnings)
			}
		}
		if exists(got, ".git/objects/info/alternates") {
			t.Error("the alternates file came along")
		}
		git(t, got, "fsck", "--full")
		if a, b := git(t, two, "log", "--format=%H"), git(t, got, "log", "--format=%H"); a != b {
			t.Errorf("log: %q, want %q", b, a)
		}
	})
}

func TestSubmodules(t *testing.T) {
	eachWay(t, func(t *testing.T, mode string) {
		lib := newRepo(t)
		app := newRepo(t)
		git(t, app, "submodule", "add", "-q", lib, "third_party/lib")
		git(t, app, "commit", "-q", "-m", "submodule")
		write(t, app, "third_party/lib/extra.txt", "untracked in the submodule\n")

		_, got := sendAs(t, app, mode)
		for _, name := range []string{"third_party/lib/a.txt", "third_party/lib/extra.txt", ".gitmodules"} {
			if !exists(got, name) {
				t.Errorf("%s is missing", name)
			}
		}
		git(t, filepath.Join(got, "third_party/lib"), "fsck")
		for _, dir := range []string{"", "third_party/lib"} {
			a := git(t, filepath.Join(app, dir), "status", "--porcelain")
			if b := git(t, filepath.Join(got, dir), "status", "--porcelain"); a != b {
				t.Errorf("status in %q: %q, want %q", dir, b, a)
			}
		}
		if out := git(t, got, "submodule", "status"); !strings.HasPrefix(out, git(t, filepath.Join(app, "third_party/lib"), "rev-parse", "HEAD")) {
			t.Errorf("submodule status: %q", out)
		}
		// The submodule alone is a repository of its own.
		_, alone := sendAs(t, filepath.Join(app, "third_party/lib"), mode)
		git(t, alone, "status")
	})
}

func TestUncheckedSubmoduleIsAnEmptyDirectory(t *testing.T) {
	lib, app := newRepo(t), newRepo(t)
	git(t, app, "submodule", "add", "-q", lib, "lib")
	git(t, app, "commit", "-q", "-m", "submodule")
	git(t, app, "submodule", "deinit", "-q", "-f", "lib")
	_, got := send(t, app)
	if children, err := os.ReadDir(filepath.Join(got, "lib")); err != nil || len(children) != 0 {
		t.Errorf("lib: %v, %v", children, err)
	}
}

// A tracked directory that became a symlink must not be read through.
func TestDirectoryReplacedByLink(t *testing.T) {
	repo := newRepo(t)
	secret := t.TempDir()
	write(t, secret, "deep/b.txt", "not yours\n")
	if err := os.RemoveAll(filepath.Join(repo, "sub")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(secret, filepath.Join(repo, "sub")); err != nil {
		t.Fatal(err)
	}
	_, got := send(t, repo)
	if target, err := os.Readlink(filepath.Join(got, "sub")); err != nil || target != secret {
		t.Errorf("sub: %q, %v", target, err)
	}
}

// Inside a git hook the environment names another repository.
func TestEnvironmentOfHookIsIgnored(t *testing.T) {
	other := newRepo(t)
	t.Setenv("GIT_DIR", filepath.Join(other, ".git"))
	t.Setenv("GIT_INDEX_FILE", filepath.Join(other, ".git", "index"))
	plain := t.TempDir()
	write(t, plain, "f", "x")
	tree, err := inspect(t, plain)
	if err != nil || tree.Git {
		t.Errorf("Git = %v, %v", tree != nil && tree.Git, err)
	}
}

func TestPlainDirectory(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "f", "x")
	if err := os.MkdirAll(filepath.Join(dir, "empty"), 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	tree, got := send(t, dir)
	if !exists(got, "f") || !exists(got, "empty") || exists(got, "s") {
		t.Error("wrong files")
	}
	if len(tree.Notices) != 2 || !strings.Contains(tree.Notices[1], "s") {
		t.Errorf("notices: %q", tree.Notices)
	}
	if tree.Files != 1 || tree.Bytes != 1 {
		t.Errorf("Files %d, Bytes %d", tree.Files, tree.Bytes)
	}
}

func TestBadPaths(t *testing.T) {
	dir := t.TempDir()
	file := write(t, dir, "f", "x")
	for _, tc := range []struct {
		path string
		want error
	}{
		{filepath.Join(dir, "none"), errdefs.ErrNotFound},
		{file, errdefs.ErrInvalidArgument},
	} {
		if _, err := inspect(t, tc.path); !errors.Is(err, tc.want) || errdefs.HintOf(err) == "" {
			t.Errorf("%s: %v (hint %q), want %v", tc.path, err, errdefs.HintOf(err), tc.want)
		}
	}
}

// What cannot be read is found before anything is sent. Root can read everything,
// so this runs the test binary again as nobody.
func TestUnreadable(t *testing.T) {
	if dir := os.Getenv("WORKSPACE_TEST_UNREADABLE"); dir != "" {
		_, err := inspect(t, dir)
		fmt.Printf("class=%s msg=%v\n", errdefs.ClassOf(err), err)
		return
	}
	base, err := os.MkdirTemp("", "ws")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(base) })
	if err := os.Chmod(base, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, base, "ok", "x")
	secret := write(t, base, "d/secret", "x")
	if err := os.Chmod(secret, 0); err != nil {
		t.Fatal(err)
	}
	out := asNobody(t, base)
	if !strings.Contains(out, "class=permission") || !strings.Contains(out, "d/secret") {
		t.Errorf("Inspect said: %s", out)
	}
}

func TestFilesThatChangeWhileRead(t *testing.T) {
	dir := t.TempDir()
	big := strings.Repeat("0123456789abcdef", 1<<16) // 1 MiB
	write(t, dir, "big", big)
	write(t, dir, "gone", "x")
	write(t, dir, "grows", "small")
	write(t, dir, "shrinks", "long enough")
	tree, err := inspect(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "gone")); err != nil {
		t.Fatal(err)
	}
	write(t, dir, "grows", strings.Repeat("y", 200<<10))
	write(t, dir, "shrinks", "s")
	// The first write of big's contents cuts the file off.
	var changed []string
	got := unpack(t, tree, workspace.WriteOptions{
		Changed: func(p string) { changed = append(changed, filepath.Base(p)) },
		Progress: func(n int64) {
			if n <= 256<<10 {
				_ = os.Truncate(filepath.Join(dir, "big"), 300<<10)
			}
		},
	})
	info, err := os.Stat(filepath.Join(got, "big"))
	if err != nil || info.Size() != 1<<20 {
		t.Errorf("big: %v, %v", info, err)
	}
	if b, err := os.ReadFile(filepath.Join(got, "grows")); err != nil || len(b) != 200<<10 {
		t.Errorf("grows: %d bytes, %v", len(b), err)
	}
	if b, err := os.ReadFile(filepath.Join(got, "shrinks")); err != nil || string(b) != "s" {
		t.Errorf("shrinks: %q, %v", b, err)
	}
	slices.Sort(changed)
	if want := []string{"big", "gone"}; !slices.Equal(changed, want) {
		t.Errorf("changed %q, want %q", changed, want)
	}
}

func TestWriteStopsWithItsReader(t *testing.T) {
	dir := t.TempDir()
	for i := range 2000 {
		write(t, dir, fmt.Sprintf("d%d/f%d", i%10, i), "some text")
	}
	tree, err := inspect(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	r, w := io.Pipe()
	go func() {
		_, _ = io.CopyN(io.Discard, r, 4096)
		_ = r.CloseWithError(io.ErrClosedPipe)
	}()
	if err := tree.WriteTar(t.Context(), w, workspace.WriteOptions{}); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("WriteTar: %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("enough")
	cancel(cause)
	if err := tree.WriteTar(ctx, io.Discard, workspace.WriteOptions{}); !errors.Is(err, cause) {
		t.Errorf("WriteTar with an ended context: %v", err)
	}
}

func TestInspectCopy(t *testing.T) {
	dir := t.TempDir()
	file := write(t, dir, "f", "contents")
	link := filepath.Join(dir, "link")
	if err := os.Symlink("f", link); err != nil {
		t.Fatal(err)
	}
	for _, src := range []string{file, link} {
		tree, err := workspace.InspectCopy(t.Context(), src)
		if err != nil || !tree.IsFile() {
			t.Fatalf("%s: %v", src, err)
		}
		var buf bytes.Buffer
		if err := tree.WriteTar(t.Context(), &buf, workspace.WriteOptions{Prefix: "name"}); err != nil {
			t.Fatal(err)
		}
		in := tar.NewReader(&buf)
		h, err := in.Next()
		if err != nil || h.Name != "name" || h.Typeflag != tar.TypeReg || h.Size != 8 {
			t.Errorf("%s: header %+v, %v", src, h, err)
		}
	}
	tree, err := workspace.InspectCopy(t.Context(), dir)
	if err != nil || tree.IsFile() {
		t.Fatal(err)
	}
	got := unpack(t, tree, workspace.WriteOptions{Prefix: "base"})
	if !exists(got, "base/f") || !exists(got, "base/link") {
		t.Error("files are not below the prefix")
	}
	if _, err := workspace.InspectCopy(t.Context(), "/dev/null"); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("/dev/null: %v", err)
	}
}
