package workspace_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
	"banger/internal/guest/manifest"
	"banger/internal/workspace"
)

// in and out again: what git says is the same on both sides, and a change comes back.
func roundTrip(t *testing.T, repo string, opts workspace.Options) *guestDir {
	t.Helper()
	g := newGuest(t)
	g.put(t, repo, opts, false)
	g.sameAs(t, repo)
	if c, _ := g.put(t, repo, opts, false); !c.Nothing() {
		t.Errorf("nothing changed, but %q is sent", names(c, 10))
	}
	before := git(t, repo, "status", "--porcelain=v2", "--branch")
	write(t, g.dir, "made in the guest", "made\n")
	commit := g.branch(t, "from-guest")
	if out := git(t, repo, "show", commit+":made in the guest"); out != "made" {
		t.Errorf("what came out: %q", out)
	}
	if now := git(t, repo, "status", "--porcelain=v2", "--branch"); now != before {
		t.Errorf("the host's checkout has changed: %q, was %q", now, before)
	}
	git(t, repo, "fsck", "--strict")
	return g
}

func TestCaseLinkedWorktree(t *testing.T) {
	repo := newRepo(t)
	linked := filepath.Join(t.TempDir(), "linked")
	git(t, repo, "worktree", "add", "-q", "-b", "topic", linked)
	write(t, linked, "topic.txt", "on topic\n")
	git(t, linked, "add", "topic.txt")
	g := roundTrip(t, linked, workspace.Options{Depth: 10})
	if out := git(t, g.dir, "branch", "--show-current"); out != "topic" {
		t.Errorf("branch: %s", out)
	}
}

func TestCaseUnborn(t *testing.T) {
	repo := t.TempDir()
	git(t, repo, "init", "-q", "-b", "main")
	write(t, repo, "a", "staged\n")
	write(t, repo, "b", "untracked\n")
	git(t, repo, "add", "a")
	g := newGuest(t)
	g.put(t, repo, workspace.Options{Depth: 10}, false)
	git(t, g.dir, "fsck", "--strict")
	if a, b := git(t, repo, "status", "--porcelain"), git(t, g.dir, "status", "--porcelain"); a != b {
		t.Errorf("status: %q, want %q", b, a)
	}
	git(t, g.dir, "commit", "-q", "-m", "in the guest")
	g.branch(t, "from-guest")
	if out := git(t, repo, "log", "--format=%s", "from-guest"); out != "Not committed in a-vm\nin the guest" {
		t.Errorf("log: %q", out)
	}
	write(t, g.dir, "b", "changed\n")
	if p := g.patch(t); !strings.Contains(p, "+changed") || strings.Contains(p, "b/a") {
		t.Errorf("patch: %s", p)
	}
}

func TestCaseDetached(t *testing.T) {
	repo := newRepo(t)
	git(t, repo, "checkout", "-q", "--detach")
	roundTrip(t, repo, workspace.Options{Depth: 1})
}

func TestCaseMerge(t *testing.T) {
	repo := newRepo(t)
	git(t, repo, "checkout", "-q", "-b", "side")
	write(t, repo, "a.txt", "side\n")
	git(t, repo, "commit", "-q", "-am", "side")
	git(t, repo, "checkout", "-q", "main")
	write(t, repo, "a.txt", "main\n")
	git(t, repo, "commit", "-q", "-am", "main")
	cmd := exec.Command("git", "-C", repo, "-c", "user.name=t", "-c", "user.email=t@example.org", "merge", "side")
	if cmd.Run() == nil {
		t.Fatal("there is no conflict")
	}
	g := roundTrip(t, repo, workspace.Options{Depth: 10})
	if !strings.Contains(git(t, g.dir, "status"), "You have unmerged paths") {
		t.Error("the guest knows of no merge")
	}
	write(t, g.dir, "a.txt", "merged\n")
	git(t, g.dir, "add", "a.txt")
	git(t, g.dir, "commit", "-q", "-m", "merged")
	g.branch(t, "merged")
	if out := git(t, repo, "rev-list", "--count", "merged", "--not", "main", "side"); out != "2" { // and what was not committed
		t.Errorf("%s commits", out)
	}
}

// In the middle of a rebase .git goes along as it is.
func TestCaseRebase(t *testing.T) {
	repo := newRepo(t)
	git(t, repo, "stash", "-q", "-u")
	git(t, repo, "checkout", "-q", "-b", "side")
	write(t, repo, "a.txt", "side\n")
	git(t, repo, "commit", "-q", "-am", "side")
	git(t, repo, "checkout", "-q", "main")
	write(t, repo, "a.txt", "main\n")
	git(t, repo, "commit", "-q", "-am", "main")
	cmd := exec.Command("git", "-C", repo, "-c", "user.name=t", "-c", "user.email=t@example.org", "rebase", "main", "side")
	if cmd.Run() == nil {
		t.Fatal("there is no conflict")
	}
	g := newGuest(t)
	g.put(t, repo, workspace.Options{Depth: 10}, false)
	if out := git(t, g.dir, "status"); !strings.Contains(out, "rebase in progress") {
		t.Errorf("status: %s", out)
	}
	_, err := workspace.Prepare(t.Context(), repo, workspace.Options{Branch: "x"}, nil)
	if !errors.Is(err, errdefs.ErrUnsupported) || errdefs.HintOf(err) == "" {
		t.Errorf("a branch in the middle of a rebase: %v", err)
	}
}

func TestCaseSubmodule(t *testing.T) {
	lib, app := newRepo(t), newRepo(t)
	git(t, app, "submodule", "add", "-q", lib, "third_party/lib")
	git(t, app, "commit", "-q", "-m", "submodule")
	g := roundTrip(t, app, workspace.Options{Depth: 10})
	sub := filepath.Join(g.dir, "third_party/lib")
	git(t, sub, "fsck", "--strict")
	if a, b := git(t, filepath.Join(app, "third_party/lib"), "status", "--porcelain"), git(t, sub, "status", "--porcelain"); a != b {
		t.Errorf("status in the submodule: %q, want %q", b, a)
	}
	write(t, sub, "a.txt", "changed in the submodule\n")
	err := g.export(t, workspace.Want{Content: true}, func(x *workspace.Export) error { return x.Patch(t.Context(), &bytes.Buffer{}, false) })
	if !errors.Is(err, errdefs.ErrUnsupported) || !strings.Contains(err.Error(), "third_party/lib") {
		t.Errorf("a change in a submodule: %v", err)
	}
}

func TestCaseSparse(t *testing.T) {
	repo := newRepo(t)
	for _, name := range []string{"in/f", "away/f", "away/g"} {
		write(t, repo, name, name+"\n")
	}
	git(t, repo, "add", ".")
	git(t, repo, "commit", "-q", "-m", "more")
	git(t, repo, "sparse-checkout", "set", "in")
	g := roundTrip(t, repo, workspace.Options{Depth: 10})
	if exists(g.dir, "away") {
		t.Error("what is left out is there")
	}
	if out := git(t, repo, "show", "from-guest:away/g"); out != "away/g" {
		t.Errorf("the branch lacks what is left out: %q", out)
	}
	// The guest changes something there, and commits it.
	git(t, g.dir, "sparse-checkout", "add", "away")
	write(t, g.dir, "away/f", "changed\n")
	git(t, g.dir, "commit", "-q", "-am", "outside")
	git(t, g.dir, "sparse-checkout", "set", "in")
	commit := g.branch(t, "outside")
	if out := git(t, repo, "show", commit+":away/f"); out != "changed" {
		t.Errorf("away/f: %q", out)
	}
}

// Pointers of Git LFS are files like others; what is filtered is refused by name.
func TestCaseFilters(t *testing.T) {
	repo, g := newRepo(t), newGuest(t)
	marker := filepath.Join(t.TempDir(), "marker")
	write(t, repo, ".gitattributes", "*.big filter=lfs -text\n*.crlf text eol=crlf\n")
	write(t, repo, "p.big", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
	write(t, repo, "dos.crlf", "one\r\ntwo\r\n")
	git(t, repo, "add", ".")
	git(t, repo, "commit", "-q", "-m", "pointers")
	git(t, repo, "config", "filter.lfs.clean", "touch "+marker)
	git(t, repo, "config", "filter.lfs.smudge", "touch "+marker)
	git(t, repo, "config", "filter.lfs.process", "touch "+marker)
	git(t, repo, "config", "filter.lfs.required", "true")
	g.put(t, repo, workspace.Options{Depth: 10}, false)
	write(t, g.dir, "p.big", "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n")
	if p := g.patch(t); !strings.Contains(p, "+oid sha256:1") {
		t.Errorf("patch: %s", p)
	}
	write(t, g.dir, "dos.crlf", "one\r\nthree\r\n")
	err := g.export(t, workspace.Want{Content: true}, func(x *workspace.Export) error { return x.Apply(t.Context()) })
	if !errors.Is(err, errdefs.ErrUnsupported) || !strings.Contains(err.Error(), "dos.crlf") || errdefs.HintOf(err) == "" {
		t.Errorf("line ends that are stored in another way: %v", err)
	}
	if exists(filepath.Dir(marker), "marker") {
		t.Error("a filter ran")
	}
}

func TestCaseRename(t *testing.T) {
	repo := newRepo(t)
	g := newGuest(t)
	g.put(t, repo, workspace.Options{Depth: 10}, false)
	git(t, repo, "mv", "a.txt", "A.TXT")
	g.put(t, repo, workspace.Options{Depth: 10}, false)
	g.sameAs(t, repo)
	if exists(g.dir, "a.txt") || !exists(g.dir, "A.TXT") {
		t.Error("the rename did not arrive")
	}
	git(t, g.dir, "mv", "A.TXT", "a.txt")
	err := g.export(t, workspace.Want{Content: true}, func(x *workspace.Export) error { return x.Apply(t.Context()) })
	if err != nil || !exists(repo, "a.txt") || exists(repo, "A.TXT") {
		t.Errorf("back: %v", err)
	}
}

func TestModes(t *testing.T) {
	repo := newRepo(t)
	full, meta, tracked, some := newGuest(t), newGuest(t), newGuest(t), newGuest(t)
	full.put(t, repo, workspace.Options{Mode: workspace.ModeFull}, false)
	full.sameAs(t, repo)
	meta.put(t, repo, workspace.Options{Mode: workspace.ModeMetadata}, false)
	git(t, meta.dir, "fsck", "--strict")
	tracked.put(t, repo, workspace.Options{TrackedOnly: true}, false)
	some.put(t, repo, workspace.Options{Include: []string{"out/**"}}, false)
	for _, tc := range []struct {
		g    *guestDir
		want map[string]bool
	}{
		{full, map[string]bool{"a.txt": true, "new.txt": true, "x.o": true, "out/y": true}},
		{meta, map[string]bool{"a.txt": false, "new.txt": false, ".git/HEAD": true}},
		{tracked, map[string]bool{"a.txt": true, "new.txt": false, "x.o": false}},
		{some, map[string]bool{"a.txt": true, "new.txt": true, "x.o": false, "out/y": true}},
	} {
		for name, want := range tc.want {
			if exists(tc.g.dir, name) != want {
				t.Errorf("%+v: %s is there: %v", tc.g.sent.Options, name, !want)
			}
		}
	}
	git(t, meta.dir, "checkout", "-q", ".")
	write(t, meta.dir, "a.txt", "changed\n")
	if out := git(t, repo, "diff", "--name-only", "HEAD", meta.branch(t, "meta")); out != "a.txt" {
		t.Errorf("from a repository without files: %q", out)
	}
	if _, err := workspace.Prepare(t.Context(), t.TempDir(), workspace.Options{Mode: workspace.ModeMetadata}, nil); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("metadata of a plain directory: %v", err)
	}
}

// A guest may say what it likes: nothing is read, and nothing written, outside of the
// directory that it was taken into.
func TestHostileExport(t *testing.T) {
	repo, g := newRepo(t), newGuest(t)
	g.put(t, repo, workspace.Options{}, false)
	secret := write(t, t.TempDir(), "secret", "secret\n")
	for _, tc := range []struct {
		name    string
		changes []string
		links   map[string]string
		files   map[string]string
	}{
		{"parent", []string{"../x"}, nil, nil},
		{"absolute", []string{"/etc/x"}, nil, nil},
		{".git", []string{".git/config"}, nil, nil},
		{".GIT", []string{"sub/.GIT/hooks/x"}, nil, nil},
		{"unclean", []string{"a//b"}, nil, nil},
		{"a file behind a link", []string{"l/secret"}, map[string]string{"tree/l": filepath.Dir(secret)}, nil},
		{"no such file", []string{"missing"}, nil, nil},
		{"a pack that is none", []string{"a.txt"}, nil, map[string]string{
			"tree/a.txt": "x", "git/HEAD": strings.Repeat("a", 40) + "\n", "git/objects/pack/pack-" + strings.Repeat("b", 40) + ".pack": "PACK no",
		}},
		{"a commit that is none", []string{"a.txt"}, nil, map[string]string{
			"tree/a.txt": "x", "git/HEAD": strings.Repeat("a", 40) + "\n", "git/objects/aa/" + strings.Repeat("a", 38): "no",
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var list, stream bytes.Buffer
			w := manifest.NewWriter(&list)
			for _, name := range tc.changes {
				if err := w.Add(&manifest.Entry{Name: name, Mode: unix.S_IFREG | 0o644, Size: 1, Flags: manifest.Added}); err != nil {
					t.Fatal(err)
				}
			}
			if err := w.End(); err != nil {
				t.Fatal(err)
			}
			tw := tar.NewWriter(&stream)
			add := func(h *tar.Header, data string) {
				h.Size, h.Mode = int64(len(data)), 0o644
				if err := tw.WriteHeader(h); err != nil {
					t.Fatal(err)
				}
				if _, err := tw.Write([]byte(data)); err != nil {
					t.Fatal(err)
				}
			}
			add(&tar.Header{Name: "changes", Typeflag: tar.TypeReg}, list.String())
			for name, to := range tc.links {
				add(&tar.Header{Name: name, Linkname: to, Typeflag: tar.TypeSymlink}, "")
			}
			for name, data := range tc.files {
				add(&tar.Header{Name: name, Typeflag: tar.TypeReg}, data)
			}
			if err := tw.Close(); err != nil {
				t.Fatal(err)
			}
			objects, err := os.ReadDir(filepath.Join(repo, ".git/objects"))
			if err != nil {
				t.Fatal(err)
			}
			var patch bytes.Buffer
			taken, err := workspace.Take(t.Context(), &stream, g.sent)
			if err == nil {
				defer taken.Close()
				var x *workspace.Export
				if x, err = taken.Export(t.Context(), "a-vm"); err == nil {
					if _, err = x.ToBranch(t.Context(), "hostile"); err == nil {
						err = x.Patch(t.Context(), &patch, false)
					}
				}
			}
			if err == nil || strings.Contains(patch.String(), "secret\n") {
				t.Errorf("%v; patch %q", err, patch.String())
			}
			if now, err := os.ReadDir(filepath.Join(repo, ".git/objects")); err != nil || len(now) != len(objects) {
				t.Errorf("the host's repository has other objects: %v", err)
			}
			git(t, repo, "fsck", "--strict")
		})
	}
}
