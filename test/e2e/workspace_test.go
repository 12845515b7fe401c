//go:build e2e

package e2e_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"
)

// git runs git in dir with a settled identity and no configuration of the host's.
func git(t *testing.T, dir string, stdin string, args ...string) string {
	t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir, cmd.Stdin = dir, strings.NewReader(stdin)
	cmd.Env = append(slices.Clone(s.main.env), "GIT_CONFIG_NOSYSTEM=1",
		"GIT_AUTHOR_NAME=Test", "GIT_AUTHOR_EMAIL=test@localhost", "GIT_COMMITTER_NAME=Test", "GIT_COMMITTER_EMAIL=test@localhost")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("git %s: %v: %s", strings.Join(args, " "), err, stderr.String())
	}
	return strings.TrimSpace(string(out))
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// sampleRepo makes a repository: everything of sampleTree but what git does not
// know (an empty directory), a changed file, an untracked one, ignored ones.
func sampleRepo(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	git(t, dir, "", "init", "-q", "-b", "main")
	sampleTree(t, dir)
	write(t, filepath.Join(dir, ".gitignore"), "*.log\n/build/\n.env\n")
	git(t, dir, "", "add", "-A")
	git(t, dir, "", "commit", "-q", "-m", "first")
	write(t, filepath.Join(dir, "changed"), "one\n")
	git(t, dir, "", "add", "changed")
	git(t, dir, "", "commit", "-q", "-m", "second")
	write(t, filepath.Join(dir, "changed"), "two\n")
	write(t, filepath.Join(dir, "untracked.txt"), "new\n")
	write(t, filepath.Join(dir, "build/output"), "ignored\n")
	write(t, filepath.Join(dir, "noise.log"), "ignored\n")
	write(t, filepath.Join(dir, ".env"), "SECRET=1\n")
}

// report prints what a run finds in its workspace; parts are separated by "--".
const report = describeReport + `; echo --; pwd; id -un; echo --; git status --porcelain=v1 -b; echo --; ` +
	`git log --format=%s; git rev-parse HEAD; echo --; find "$top" ! -user "$(id -un)" | head -3`

const describeReport = `top=$(git rev-parse --show-toplevel 2>/dev/null || pwd); (` +
	`cd "$top" && find . -mindepth 1 -name .git -prune -o \( ` +
	`-type l -printf '%P l %l\n' -o -type d -printf '%P d %m\n' -o -type f -printf '%P f %m %s %T@\n' \) | sed 's/\.[0-9]*$//')`

func TestRepository(t *testing.T) {
	w := s.main
	w.fetch(t)
	dir := filepath.Join(t.TempDir(), "my repo")
	sampleRepo(t, dir)
	want := describe(t, dir, ".git", "build", "noise.log", ".env", "hollow")
	head := git(t, dir, "", "rev-parse", "HEAD")

	cmd := w.command("vm", "run", "--name", "e2e-repo", "./my repo", "--", "sh", "-c", report)
	cmd.Dir = filepath.Dir(dir)
	w.cleanup(t, "e2e-repo")
	r := call(t, cmd)
	if r.code != 0 || r.stderr != "" {
		t.Fatal(r)
	}
	parts := strings.Split(strings.TrimSuffix(r.stdout, "\n"), "\n--\n")
	if len(parts) < 4 {
		t.Fatal(r)
	}
	tree := strings.Split(parts[0], "\n")
	sort.Strings(tree)
	compare(t, "the workspace", tree, want)
	if parts[1] != "/workspace\ndev" {
		t.Errorf("directory and user: %q", parts[1])
	}
	if parts[2] != "## main\n M changed\n?? untracked.txt" {
		t.Errorf("git status: %q", parts[2])
	}
	if !strings.HasPrefix(parts[3], "second\nfirst\n"+head) {
		t.Errorf("git log: %q", parts[3])
	}
	if !strings.HasSuffix(r.stdout, "--\n") {
		t.Errorf("not all of the workspace belongs to dev: %s", r.stdout[strings.LastIndex(r.stdout, "--\n"):])
	}
	v := w.show(t, "e2e-repo")
	// git works for more than looking, and a build leaves the host alone.
	w.ok(t, "exec", "--workdir", "/workspace", v.ID, "--", "sh", "-c",
		"git -c user.name=t -c user.email=t@localhost commit -qam inside && rm plain.txt && ./run.sh")
	if now := git(t, dir, "", "rev-parse", "HEAD"); now != head {
		t.Errorf("the host's repository moved to %s", now)
	}
	if _, err := os.Stat(filepath.Join(dir, "plain.txt")); err != nil {
		t.Error(err)
	}
}

// TestWorktree sends a linked work tree, asked for by a directory below it, for
// another user.
func TestWorktree(t *testing.T) {
	w := s.main
	w.fetch(t)
	base := t.TempDir()
	sampleRepo(t, filepath.Join(base, "repo"))
	git(t, filepath.Join(base, "repo"), "", "worktree", "add", "-q", "-b", "side", filepath.Join(base, "tree"))
	write(t, filepath.Join(base, "tree/sub/more"), "more\n")
	r := w.run(t, "vm", "run", "--rm", "--name", "e2e-tree", "--user", "root", filepath.Join(base, "tree/sub"), "--",
		"sh", "-c", "pwd; id -un; git status --porcelain=v1 -b; git log --format=%s; git branch --format='%(refname:short)'; git rev-parse --show-toplevel; ls .")
	if r.code != 0 || r.stdout != "/workspace/sub\nroot\n## side\n?? sub/more\nsecond\nfirst\nmain\nside\n/workspace\ndeep\nmore\nup\nwith space & ünïcode\n" {
		t.Errorf("%s", r)
	}
	w.noVM(t, "e2e-tree")
}

// TestPlainDirectory sends a directory by its own rules, and says so on a terminal only.
func TestPlainDirectory(t *testing.T) {
	w := s.main
	w.fetch(t)
	dir := filepath.Join(t.TempDir(), "plain")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	sampleTree(t, dir)
	write(t, filepath.Join(dir, ".gitignore"), "*\n")
	write(t, filepath.Join(dir, ".bangerignore"), "!*\n") // which counts more
	want := describe(t, dir)
	r := startTTY(t, w.command("vm", "run", "--rm", "--name", "e2e-plain", dir, "--", "sh", "-c", describeReport), 24, 200)
	r.out.expect(t, dir+" is not in a git repository: what its .gitignore and .bangerignore files leave out is not sent\r\n")
	r.out.expect(t, "  workspace")
	if code := r.wait(t); code != 0 {
		t.Fatalf("code %d:\n%s", code, r.out)
	}
	// What was drawn is gone before the command prints.
	screen := strings.ReplaceAll(r.out.String(), "\r\x1b[K", "\n")
	for _, line := range want {
		if !strings.Contains(screen, "\n"+line+"\r\n") {
			t.Errorf("the workspace lacks %q:\n%s", line, r.out)
		}
	}
	w.noVM(t, "e2e-plain")
}

func TestBadPaths(t *testing.T) {
	w := s.main
	w.fetch(t)
	dir := t.TempDir()
	git(t, dir, "", "init", "-q", "--bare", "bare.git")
	write(t, filepath.Join(dir, "file"), "x")
	for path, text := range map[string]string{
		filepath.Join(dir, "missing"):  "does not exist",
		filepath.Join(dir, "file"):     "is not a directory",
		filepath.Join(dir, "bare.git"): "bare",
	} {
		r := w.fails(t, 125, []string{path, text}, "vm", "run", "--name", "e2e-path", path, "--", "true")
		if !strings.Contains(r.stderr, "try: ") {
			t.Errorf("no hint: %s", r)
		}
	}
	w.noVM(t, "e2e-path")
}

// TestUnreadableFile names the file, and leaves no VM. Root reads everything.
func TestUnreadableFile(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root can read every file")
	}
	w := s.main
	w.fetch(t)
	dir := t.TempDir()
	sampleRepo(t, dir)
	secret := filepath.Join(dir, "sub/deep/er/file")
	if err := os.Chmod(secret, 0); err != nil {
		t.Fatal(err)
	}
	r := w.fails(t, 125, []string{"sub/deep/er/file", "permission denied"}, "vm", "run", "--name", "e2e-unreadable", dir, "--", "true")
	if !strings.Contains(r.stderr, "try: ") {
		t.Errorf("no hint: %s", r)
	}
	w.noVM(t, "e2e-unreadable")
	closed := filepath.Join(dir, "closed")
	write(t, filepath.Join(closed, "inside"), "x")
	if err := os.Chmod(closed, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Chmod(closed, 0o700) })
	w.fails(t, 125, []string{closed}, "vm", "run", "--name", "e2e-unreadable", closed, "--", "true")
	w.noVM(t, "e2e-unreadable")
}

// manyFiles is how many files a large repository has.
const manyFiles = 60_000

// TestManyFiles sends a repository of 60,000 files.
func TestManyFiles(t *testing.T) {
	w := s.main
	w.fetch(t)
	dir := filepath.Join(s.scratch, "many")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	git(t, dir, "", "init", "-q", "-b", "main")
	// One pack instead of a file for each object.
	var stream strings.Builder
	stream.WriteString("commit refs/heads/main\ncommitter T <t@localhost> 1000000000 +0000\ndata 4\nmany\n")
	for i := range manyFiles {
		text := fmt.Sprintf("file number %d\n", i)
		fmt.Fprintf(&stream, "M 100644 inline d%03d/s%d/f%05d\ndata %d\n%s", i/200, i%7, i, len(text), text)
	}
	git(t, dir, stream.String(), "fast-import", "--quiet")
	git(t, dir, "", "reset", "-q", "--hard")
	began := time.Now()
	r := w.run(t, "vm", "run", "--rm", "--name", "e2e-many", dir, "--", "sh", "-c",
		"find . -name .git -prune -o -type f -print | wc -l; cat d299/s3/f59839; git rev-parse --short=4 HEAD >/dev/null && echo repo")
	took := time.Since(began)
	if r.code != 0 || r.stdout != fmt.Sprintf("%d\nfile number 59839\nrepo\n", manyFiles) {
		t.Errorf("%s", r)
	}
	t.Logf("%d files and a boot in %s", manyFiles, took.Round(100*time.Millisecond))
	if took > 150*time.Second {
		t.Errorf("%d files took %s", manyFiles, took)
	}
	w.noVM(t, "e2e-many")
}
