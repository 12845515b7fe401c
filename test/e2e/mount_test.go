//go:build e2e

package e2e_test

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// mountIn has a directory appear in a VM, and returns how to end that.
func mountIn(t *testing.T, w *world, args ...string) (end func() error) {
	t.Helper()
	cmd := w.command(append([]string{"vm", "mount"}, args...)...)
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := false
	end = func() error {
		if done {
			return nil
		}
		done = true
		_ = cmd.Process.Signal(unix.SIGINT)
		if err := cmd.Wait(); err != nil {
			return fmt.Errorf("%w: %s", err, complaint.String())
		}
		return nil
	}
	t.Cleanup(func() { _ = end() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || !strings.Contains(line, "until Ctrl-C") {
		t.Fatalf("%q, %v, %v", line, err, end())
	}
	return end
}

// TestMount has a directory of this host in a VM, live.
func TestMount(t *testing.T) {
	v, w := sharedVM(t), s.main
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "here"), "from here\n")
	end := mountIn(t, w, v.Name, dir, "/mnt/live")
	if got := w.ok(t, "exec", v.Name, "--", "cat", "/mnt/live/here"); got != "from here" {
		t.Errorf("%q", got)
	}
	w.ok(t, "exec", v.Name, "--", "sh", "-c", "cd /mnt/live && mkdir -p d/e && echo from there >d/e/there && ln -s here link && chmod 700 d && rm here && sync")
	if got, err := os.ReadFile(filepath.Join(dir, "d/e/there")); err != nil || string(got) != "from there\n" {
		t.Errorf("%q, %v", got, err)
	}
	if to, err := os.Readlink(filepath.Join(dir, "link")); err != nil || to != "here" {
		t.Errorf("%q, %v", to, err)
	}
	if st, err := os.Stat(filepath.Join(dir, "d")); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", st, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "here")); !os.IsNotExist(err) {
		t.Errorf("%v", err)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, "d/e/there"), &st); err != nil || int(st.Uid) != os.Getuid() {
		t.Errorf("it belongs to %d, %v", st.Uid, err)
	}
	// The guest keeps what it has seen, and hears when that is no more so.
	for i := range 5 {
		want := fmt.Sprintf("change %d", i)
		write(t, filepath.Join(dir, "d/e/there"), want)
		deadline := time.Now().Add(time.Minute)
		for w.ok(t, "exec", v.Name, "--", "cat", "/mnt/live/d/e/there") != want {
			if time.Now().After(deadline) {
				t.Fatalf("%q is never seen", want)
			}
		}
	}
	if err := end(); err != nil {
		t.Error(err)
	}
	if got := w.run(t, "exec", v.Name, "--", "ls", "/mnt/live/d"); got.code == 0 {
		t.Error(got)
	}

	end = mountIn(t, w, "--read-only", v.Name, dir)
	if got := w.run(t, "exec", v.Name, "--", "touch", filepath.Join(dir, "x")); got.code == 0 || !strings.Contains(got.stderr, "Read-only") {
		t.Error(got)
	}
	if got := w.ok(t, "exec", v.Name, "--", "ls", dir); got != "d\nlink" {
		t.Errorf("%q", got)
	}
	w.ok(t, "exec", "--user", "root", v.Name, "--", "umount", dir)
	if err := end(); err != nil {
		t.Error(err)
	}
	w.fails(t, 1, []string{"does not exist"}, "vm", "mount", v.Name, filepath.Join(dir, "absent"))
}

// TestMountEnds has the VM stop, and the daemon, while a directory is mounted.
func TestMountEnds(t *testing.T) {
	w := s.main
	v := w.boot(t, "mount-ends")
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	end := mountIn(t, w, v.Name, dir, "/mnt/live")
	w.ok(t, "exec", v.Name, "--", "touch", "/mnt/live/a")
	w.killDaemon(t)
	if err := end(); err != nil && !strings.Contains(err.Error(), "mount it again") {
		t.Error(err)
	}
	end = mountIn(t, w, v.Name, dir, "/mnt/live")
	w.ok(t, "exec", v.Name, "--", "touch", "/mnt/live/b")
	w.ok(t, "vm", "stop", v.Name)
	if err := end(); err != nil && !strings.Contains(err.Error(), "mount it again") {
		t.Error(err)
	}
	if all, err := os.ReadDir(dir); err != nil || len(all) != 2 {
		t.Errorf("%v, %v", all, err)
	}
}
