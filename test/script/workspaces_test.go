package script_test

import (
	"bufio"
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// tree makes a directory on the host with one file.
func (r *rig) tree() string {
	r.t.Helper()
	dir := filepath.Join(filepath.Dir(r.state), "tree")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("one\n"), 0o644); err != nil {
		r.t.Fatal(err)
	}
	return dir
}

// TestWorkspaceWatch brings changes in as they are made.
func TestWorkspaceWatch(t *testing.T) {
	r := newRig(t)
	dir := r.tree()
	r.ok("vm", "create", "--name", "box")
	r.ok("vm", "workspace", "prepare", "box", dir)
	cmd := r.cmd("vm", "workspace", "sync", "--watch", "box")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	lines := bufio.NewScanner(out)
	expect := func(want string) {
		t.Helper()
		if !lines.Scan() || !strings.HasPrefix(lines.Text(), want) {
			t.Fatalf("%q, want %q; stderr %s", lines.Text(), want, stderr.String())
		}
	}
	expect("/workspace: nothing has changed")
	for _, step := range []struct {
		do   func() error
		line string
		cat  string
	}{
		{func() error { return os.WriteFile(filepath.Join(dir, "file"), []byte("two\n"), 0o644) }, "/workspace: 1 files sent, 4 B", "two\n"},
		{func() error { return os.MkdirAll(filepath.Join(dir, "new/deep"), 0o755) }, "/workspace: 0 files sent", "two\n"},
		{func() error { return os.WriteFile(filepath.Join(dir, "new/deep/file"), []byte("x"), 0o644) }, "/workspace: 1 files sent, 1 B", "two\n"},
		{func() error { return os.Remove(filepath.Join(dir, "new/deep/file")) }, "/workspace: 0 files sent, 0 B, 1 removed", "two\n"},
	} {
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		expect(step.line)
		if got := r.ok("exec", "box", "--", "cat", "/workspace/file"); got != step.cat {
			t.Errorf("%q, want %q", got, step.cat)
		}
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 130 {
		t.Errorf("interrupted: %v; %s", err, stderr.String())
	}
}

// TestStalledImport stops a VM while somebody who sends a tree into it does nothing any
// more. That is told, and done again it succeeds.
func TestStalledImport(t *testing.T) {
	r := newRig(t)
	dir := r.tree()
	large := filepath.Join(dir, "large")
	if err := os.WriteFile(large, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(large, 20<<30); err != nil { // more than arrives until then
		t.Fatal(err)
	}
	r.ok("vm", "create", "--name", "box")
	cmd := r.cmd("vm", "workspace", "prepare", "box", dir)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	for r.ok("vm", "workspace", "list", "-q", "box") == "" {
		if t.Context().Err() != nil {
			t.Fatal("the import does not begin")
		}
	}
	if err := cmd.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	r.ok("vm", "stop", "box")
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("the stop took %s", took)
	}
	if err := cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil || !strings.HasPrefix(stderr.String(), "error: ") {
		t.Errorf("the import: %v, %s", err, stderr.String())
	}
	if out := r.ok("vm", "workspace", "list", "box"); !strings.Contains(out, "preparing") {
		t.Errorf("list: %s", out)
	}
	if err := os.Truncate(large, 5); err != nil {
		t.Fatal(err)
	}
	r.ok("vm", "start", "box")
	r.ok("vm", "workspace", "prepare", "box", dir)
	if out := r.ok("vm", "workspace", "list", "box"); !strings.Contains(out, "ready") {
		t.Errorf("list: %s", out)
	}
	if got := r.ok("exec", "box", "--", "cat", "/workspace/file"); got != "one\n" {
		t.Errorf("the file: %q", got)
	}
}
