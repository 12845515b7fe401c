//go:build e2e

package e2e_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestWorkspaces puts a repository into a running VM, works on both sides, and takes the
// result out.
func TestWorkspaces(t *testing.T) {
	w := s.main
	w.fetch(t)
	dir := filepath.Join(t.TempDir(), "repo")
	sampleRepo(t, dir)
	w.cleanup(t, "e2e-ws")
	w.ok(t, "vm", "create", "--name", "e2e-ws")
	head := git(t, dir, "", "rev-parse", "HEAD")
	status := git(t, dir, "", "status", "--porcelain=v1", "-b")

	w.ok(t, "vm", "workspace", "prepare", "e2e-ws", dir)
	inside := func(script string) string {
		t.Helper()
		r := w.run(t, "exec", "--workdir", "/workspace", "e2e-ws", "--", "sh", "-c", script)
		if r.code != 0 {
			t.Fatal(r)
		}
		return strings.TrimSpace(r.stdout)
	}
	if got := inside("git fsck --strict >/dev/null && git status --porcelain=v1 -b"); got != status {
		t.Errorf("status inside: %q, want %q", got, status)
	}
	if got := inside("git rev-parse HEAD; find . ! -user $(id -un) | head -3"); got != head {
		t.Errorf("HEAD and what is not the user's: %q", got)
	}
	if r := w.run(t, "vm", "workspace", "prepare", "e2e-ws", dir); r.stdout != "/workspace: nothing has changed\n" {
		t.Error(r)
	}

	// The host goes on, and the guest too.
	write(t, filepath.Join(dir, "changed"), "three\n")
	if r := w.run(t, "vm", "workspace", "sync", "e2e-ws"); r.stdout != "/workspace: 1 files sent, 6 B\n" {
		t.Error(r)
	}
	inside("git -c user.name=t -c user.email=t@localhost commit -qam inside && echo later > later.txt && rm plain.txt")
	r := w.run(t, "vm", "workspace", "status", "e2e-ws")
	if r.code != 0 || !strings.Contains(r.stdout, "vm     A        later.txt") || !strings.Contains(r.stdout, "vm     D        plain.txt") {
		t.Error(r)
	}
	// Restarted, it knows the same.
	w.ok(t, "vm", "restart", "e2e-ws")
	if again := w.run(t, "vm", "workspace", "status", "e2e-ws"); again.stdout != r.stdout {
		t.Errorf("after a restart: %s", again)
	}
	w.ok(t, "vm", "workspace", "export", "e2e-ws", "--to-branch", "from-vm")
	if log := git(t, dir, "", "log", "--format=%s", "from-vm"); log != "Not committed in e2e-ws\ninside\nsecond\nfirst" {
		t.Errorf("the branch: %q", log)
	}
	git(t, dir, "", "fsck", "--strict")
	if now := git(t, dir, "", "rev-parse", "HEAD"); now != head {
		t.Errorf("the host's checkout moved to %s", now)
	}
	w.ok(t, "vm", "workspace", "export", "e2e-ws", "--apply")
	if _, err := os.Stat(filepath.Join(dir, "plain.txt")); err == nil {
		t.Error("what the VM removed is still here")
	}
	if b, err := os.ReadFile(filepath.Join(dir, "later.txt")); err != nil || string(b) != "later\n" {
		t.Errorf("later.txt: %q, %v", b, err)
	}

	// Both sides.
	inside("echo the guest > changed")
	write(t, filepath.Join(dir, "changed"), "the host\n")
	w.fails(t, 1, []string{"nothing was sent: changed"}, "vm", "workspace", "sync", "e2e-ws")
	if got := inside("cat changed"); got != "the guest" {
		t.Errorf("it was overwritten: %q", got)
	}
}

// TestStopDoesNotWaitForAnImport stops a VM while a tree is on its way into it.
func TestStopDoesNotWaitForAnImport(t *testing.T) {
	w := s.main
	w.fetch(t)
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "large"))
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(40 << 30); err != nil { // more than ever arrives
		t.Fatal(err)
	}
	_ = f.Close()
	w.cleanup(t, "e2e-stall")
	w.ok(t, "vm", "create", "--name", "e2e-stall", "--disk", "60G")
	cmd := w.command("vm", "workspace", "prepare", "e2e-stall", dir)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for w.run(t, "vm", "workspace", "list", "-q", "e2e-stall").stdout == "" {
		if t.Context().Err() != nil {
			t.Fatal("the import does not begin")
		}
	}
	began := time.Now()
	w.ok(t, "vm", "stop", "e2e-stall")
	if took := time.Since(began); took > time.Minute {
		t.Errorf("the stop took %s", took)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("the import says that it succeeded")
	}
	if r := w.run(t, "vm", "workspace", "list", "e2e-stall"); !strings.Contains(r.stdout, "preparing") {
		t.Errorf("%s", r)
	}
}

// TestLargeWorkspace sends a large repository a second time, unchanged and with one file
// changed, and takes changes out of it. The bounds are wide: the figures are those of
// `make bench`.
func TestLargeWorkspace(t *testing.T) {
	w := s.main
	w.fetch(t)
	dir := filepath.Join(s.scratch, "large")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	git(t, dir, "", "init", "-q", "-b", "main")
	for i := range 20_000 {
		write(t, filepath.Join(dir, "d"+string(rune('a'+i%26)), "s"+string(rune('a'+i%7)), strings.Repeat("f", 1+i%3)+time.Duration(i).String()), "content\n")
	}
	git(t, dir, "", "add", "-A")
	git(t, dir, "", "commit", "-q", "-m", "first")
	w.cleanup(t, "e2e-large")
	w.ok(t, "vm", "create", "--name", "e2e-large")
	for _, step := range []struct {
		what  string
		limit time.Duration
		args  []string
	}{
		{"the first time", 2 * time.Minute, []string{"vm", "workspace", "prepare", "e2e-large", dir}},
		{"unchanged", 10 * time.Second, []string{"vm", "workspace", "prepare", "e2e-large", dir}},
		{"one file", 15 * time.Second, []string{"vm", "workspace", "sync", "e2e-large"}},
		{"1,000 files changed in the VM", time.Minute, []string{"exec", "--workdir", "/workspace", "e2e-large", "--", "sh", "-c", "find da db -type f | head -1000 | while read f; do echo changed > $f; done"}},
		{"a patch of them", 30 * time.Second, []string{"vm", "workspace", "export", "e2e-large", "-o", "/dev/null"}},
	} {
		if step.what == "one file" {
			write(t, filepath.Join(dir, "one"), "one\n")
		}
		began := time.Now()
		w.ok(t, step.args...)
		took := time.Since(began)
		t.Logf("%s: %s", step.what, took.Round(time.Millisecond))
		if took > step.limit {
			t.Errorf("%s took %s", step.what, took)
		}
	}
}
