package workspace_test

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
	"banger/internal/guest/agent/record"
	guesttree "banger/internal/guest/agent/tree"
	"banger/internal/guest/manifest"
	"banger/internal/workspace"
)

// guestDir is a workspace without a VM around it: the agent's code on a directory.
type guestDir struct {
	dir     string
	records record.Records
	sent    *workspace.Sent
}

func newGuest(t *testing.T) *guestDir {
	t.Helper()
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	t.Cleanup(func() {
		if left, err := os.ReadDir(temp); err != nil || len(left) > 0 && !t.Failed() {
			for _, d := range left {
				if strings.HasPrefix(d.Name(), "banger-") {
					t.Errorf("%s is left", d.Name())
				}
			}
		}
	})
	g := &guestDir{dir: filepath.Join(t.TempDir(), "guest"), records: record.Records{Dir: filepath.Join(t.TempDir(), "records")}}
	if err := os.Mkdir(g.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return g
}

const workspaceID = "0123456789ab"

// put brings path in, or what of it has changed, and returns what was sent.
func (g *guestDir) put(t *testing.T, path string, opts workspace.Options, force bool) (c *workspace.Change, conflicts []manifest.Entry) {
	t.Helper()
	tree, err := workspace.Prepare(t.Context(), path, opts, g.sent)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	if err := tree.Complete(t.Context()); err != nil {
		t.Fatal(err)
	}
	if c, err = tree.Since(t.Context(), g.sent); err != nil {
		t.Fatal(err)
	}
	if c.Nothing() {
		return c, nil
	}
	var plan, tar bytes.Buffer
	w := manifest.NewWriter(&plan)
	if err := c.Plan(w); err != nil {
		t.Fatal(err)
	}
	if err := w.End(); err != nil {
		t.Fatal(err)
	}
	if err := c.WriteTar(t.Context(), &tar, workspace.WriteOptions{Hash: true}); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(g.dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	refused := errdefs.Precondition("refused")
	err = g.records.Put(record.Put{
		ID: workspaceID, Dest: fd, DestName: g.dir, Owner: &guesttree.Owner{UID: os.Getuid(), GID: os.Getgid()}, Fresh: g.sent == nil, Plan: bufio.NewReader(&plan), Tar: &tar,
		Ready: func(all []manifest.Entry) error {
			if conflicts = all; len(all) > 0 && !force {
				return refused
			}
			return nil
		},
	})
	if err != nil {
		if len(conflicts) > 0 && !force {
			return c, conflicts
		}
		t.Fatal(err)
	}
	list, err := tree.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if g.sent, err = workspace.Decode(list); err != nil {
		t.Fatal(err)
	}
	return c, conflicts
}

// changes is what the guest has, taken in.
func (g *guestDir) changes(t *testing.T, what workspace.Want) (*workspace.Taken, error) {
	t.Helper()
	var also, tar bytes.Buffer
	w := manifest.NewWriter(&also)
	if err := g.sent.Also(what)(w); err != nil {
		t.Fatal(err)
	}
	if err := w.End(); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(g.dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	err = g.records.Changes(record.Changes{
		ID: workspaceID, Dest: fd, Content: what.Content, Git: what.Git, All: g.sent.Options.Mode == workspace.ModeFull, Plain: !g.sent.Git,
		Also: bufio.NewReader(&also),
	}, &tar)
	if err != nil {
		t.Fatal(err)
	}
	return workspace.Take(t.Context(), &tar, g.sent)
}

// sameAs compares what git says of the host's repository and of the guest's.
func (g *guestDir) sameAs(t *testing.T, repo string) {
	t.Helper()
	git(t, g.dir, "fsck", "--full", "--strict")
	for _, args := range [][]string{
		{"status", "--porcelain=v2", "--branch"}, {"rev-parse", "HEAD"}, {"diff"}, {"diff", "--cached"}, {"ls-files", "-s"},
	} {
		if a, b := git(t, repo, args...), git(t, g.dir, args...); a != b {
			t.Errorf("git %v: in the guest %q, want %q", args, b, a)
		}
	}
}

func TestPrepare(t *testing.T) {
	repo, g := newRepo(t), newGuest(t)
	git(t, repo, "config", "remote.origin.url", "https://me:secret@example.org/x.git")
	git(t, repo, "config", "http.https://example.org/.extraHeader", "AUTHORIZATION: basic secret")
	git(t, repo, "config", "user.name", `A "B" \ C`)
	write(t, repo, "staged.txt", "staged\n")
	git(t, repo, "add", "staged.txt")
	c, _ := g.put(t, repo, workspace.Options{}, false)
	if c.Files == 0 || exists(g.dir, "x.o") || !exists(g.dir, "new.txt") {
		t.Errorf("%d files, ignored %v, untracked %v", c.Files, exists(g.dir, "x.o"), exists(g.dir, "new.txt"))
	}
	g.sameAs(t, repo)
	config, err := os.ReadFile(filepath.Join(g.dir, ".git/config"))
	if err != nil || bytes.Contains(config, []byte("secret")) {
		t.Errorf("config: %s, %v", config, err)
	}
	if url := git(t, g.dir, "config", "remote.origin.url"); url != "https://example.org/x.git" {
		t.Errorf("url: %s", url)
	}
	if name := git(t, g.dir, "config", "user.name"); name != `A "B" \ C` {
		t.Errorf("name: %s", name)
	}
	if c, _ := g.put(t, repo, workspace.Options{}, false); !c.Nothing() {
		t.Errorf("nothing changed, but %q is sent", names(c, 10))
	}
	write(t, repo, "a.txt", "changed\n")
	if c, _ := g.put(t, repo, workspace.Options{}, false); c.Files != 1 || c.Gone != 0 {
		t.Errorf("one file changed, but %q is sent", names(c, 10))
	}
	// A commit, and a deletion: objects travel, and only those that are new.
	git(t, repo, "commit", "-q", "-am", "second")
	if err := os.RemoveAll(filepath.Join(repo, "sub")); err != nil {
		t.Fatal(err)
	}
	c, conflicts := g.put(t, repo, workspace.Options{}, false)
	if len(conflicts) > 0 {
		t.Errorf("conflicts: %v", conflicts)
	}
	if exists(g.dir, "sub") || c.Gone != 1 {
		t.Errorf("sub is there: %v; %d gone", exists(g.dir, "sub"), c.Gone)
	}
	g.sameAs(t, repo)
	if log := git(t, g.dir, "log", "--format=%s"); log != "second\nfirst" {
		t.Errorf("log: %q", log)
	}
}

func TestConflicts(t *testing.T) {
	repo, g := newRepo(t), newGuest(t)
	g.put(t, repo, workspace.Options{}, false)
	write(t, g.dir, "a.txt", "the guest's\n")
	write(t, g.dir, "other.txt", "the guest's\n")
	write(t, repo, "sub/deep/b.txt", "the host's\n")
	if _, conflicts := g.put(t, repo, workspace.Options{}, false); len(conflicts) > 0 {
		t.Errorf("what only the guest changed conflicts: %v", conflicts)
	}
	write(t, repo, "a.txt", "the host's\n")
	write(t, repo, "new.txt", "the host's\n")
	_, conflicts := g.put(t, repo, workspace.Options{}, false)
	if len(conflicts) != 1 || conflicts[0].Name != "a.txt" {
		t.Errorf("conflicts: %v", conflicts)
	}
	if b, err := os.ReadFile(filepath.Join(g.dir, "new.txt")); err != nil || string(b) == "the host's\n" {
		t.Errorf("something was changed: %q, %v", b, err)
	}
	// The same change on both sides is none.
	write(t, g.dir, "a.txt", "the host's\n")
	if _, conflicts := g.put(t, repo, workspace.Options{}, false); len(conflicts) > 0 {
		t.Errorf("the same on both sides conflicts: %v", conflicts)
	}
	write(t, g.dir, "a.txt", "the guest's\n")
	write(t, repo, "a.txt", "the host's, again\n")
	if _, conflicts := g.put(t, repo, workspace.Options{}, true); len(conflicts) != 1 {
		t.Errorf("conflicts: %v", conflicts)
	}
	if b, err := os.ReadFile(filepath.Join(g.dir, "a.txt")); err != nil || string(b) != "the host's, again\n" {
		t.Errorf("forced: %q, %v", b, err)
	}
	if !exists(g.dir, "other.txt") {
		t.Error("what the guest made is gone")
	}
}

func TestDepth(t *testing.T) {
	repo := newRepo(t)
	for i := range 10 {
		write(t, repo, "a.txt", strings.Repeat("x", i))
		git(t, repo, "commit", "-q", "-am", "more")
	}
	git(t, repo, "tag", "-a", "-m", "new", "v2")
	git(t, repo, "tag", "v1", "HEAD~8")
	for depth, want := range map[int]string{1: "1", 3: "3", 0: "11", 100: "11"} {
		g := newGuest(t)
		g.put(t, repo, workspace.Options{Depth: depth}, false)
		g.sameAs(t, repo)
		if n := git(t, g.dir, "rev-list", "--count", "HEAD"); n != want {
			t.Errorf("depth %d: %s commits", depth, n)
		}
		if got := git(t, g.dir, "tag"); (got == "v2") != (depth > 0 && depth < 9) {
			t.Errorf("depth %d: tags %q", depth, got)
		}
		write(t, repo, "a.txt", "more")
		git(t, repo, "commit", "-q", "--allow-empty", "-am", "later")
		g.put(t, repo, workspace.Options{Depth: depth}, false)
		g.sameAs(t, repo)
		git(t, repo, "reset", "-q", "--hard", "HEAD~1")
	}
}

func TestBranchFrom(t *testing.T) {
	repo, g := newRepo(t), newGuest(t)
	old := git(t, repo, "rev-parse", "HEAD")
	write(t, repo, "a.txt", "newer\n")
	git(t, repo, "commit", "-q", "-am", "second")
	g.put(t, repo, workspace.Options{From: old, Branch: "fix/1"}, false)
	git(t, g.dir, "fsck", "--strict")
	if out := git(t, g.dir, "status", "--porcelain", "--branch"); out != "## fix/1" {
		t.Errorf("status: %s", out)
	}
	if head := git(t, g.dir, "rev-parse", "HEAD"); head != old || exists(g.dir, "new.txt") || !exists(g.dir, "gone.txt") {
		t.Errorf("HEAD %s", head)
	}
	if c, _ := g.put(t, repo, workspace.Options{From: old, Branch: "fix/1"}, false); !c.Nothing() {
		t.Errorf("nothing changed, but %q is sent", names(c, 10))
	}
	cmd := exec.Command("git", "-C", repo, "rev-parse", "fix/1")
	if cmd.Run() == nil {
		t.Error("the host's repository has the branch")
	}
}

// names are the files that a change writes or removes, at most limit of them.
func names(c *workspace.Change, limit int) (names []string) {
	for _, e := range c.Entries() {
		if len(names) < limit && e.Mode&unix.S_IFMT != unix.S_IFDIR {
			names = append(names, e.Name)
		}
	}
	return names
}
