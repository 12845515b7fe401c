//go:build e2e

package e2e_test

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestPausedOnAFullDisk fills the host's disk under a guest that writes: it waits for
// space, says so, and has lost nothing when there is some.
func TestPausedOnAFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting a small file system takes root")
	}
	s.main.fetch(t)
	base := filepath.Join(s.scratch, "pausedonafulldisk")
	if err := os.MkdirAll(base, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("e2e-paused", base, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "size=640m,mode=755"); err != nil {
		t.Fatalf("mount a small file system: %v", err)
	}
	w := scratchWorld(t, config) // unmounts it in the end
	w.ok(t, "kernel", "import", "--from", kernelDir(t), "e2e-kernel")
	tree := t.TempDir()
	busybox(t, tree)
	w.ok(t, "image", "register", "--rootfs", ext4(t, "paused", tree), "--kernel", "e2e-kernel", "e2e-paused")
	v := w.create(t, "e2e-paused", "--image", "e2e-paused", "--disk", "400M", "--memory", "192M", "--net", "none")
	filler := filepath.Join(base, "filler")
	const mib = 1 << 20
	const size = 64 * mib
	text := strings.Repeat("nothing is lost\n", size/16)
	want := fmt.Sprintf("%x", sha256.Sum256([]byte(text)))
	// What was written is read from the disk again, not from the guest's memory.
	writes := func(name string) *running {
		return start(t, w.command("exec", v.ID, "--", "sh", "-c", fmt.Sprintf(
			"yes 'nothing is lost' | dd bs=1M count=%d iflag=fullblock of=/root/%s 2>/dev/null && sync && echo 3 >/proc/sys/vm/drop_caches && sha256sum /root/%s",
			size/mib, name, name)))
	}
	log := start(t, w.command("daemon", "logs", "-f"))

	fill(t, filler, 24*mib)
	one := writes("one")
	log.out.expect(t, "a vm is paused")
	if text := w.ok(t, "vm", "show", v.ID); !strings.Contains(text, "no space left on the host's disk, since ") {
		t.Errorf("show says\n%s", text)
	}
	if text := w.ok(t, "ps"); !strings.Contains(text, "running, paused") {
		t.Errorf("ps says\n%s", text)
	}
	for _, args := range [][]string{{"exec", v.ID, "--", "true"}, {"cp", v.ID + ":/etc/passwd", t.TempDir()}} {
		r := w.run(t, args...)
		if r.code == 0 || !strings.Contains(r.stderr, "no space left on device") || !strings.Contains(r.stderr, "goes on by itself") {
			t.Errorf("%v: %s", args, r)
		}
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if code := one.wait(t); code != 0 || !strings.HasPrefix(one.out.String(), want) {
		t.Errorf("the guest wrote %s (code %d, %s), want %s", one.out, code, one.err, want)
	}

	log.out.expect(t, "a paused vm goes on")

	// The next daemon finds a VM that stands still, and whoever stops it then is told
	// what that costs: what was synced is there, what was not may be lost.
	fill(t, filler, 24*mib)
	two := writes("two")
	log.out.expect(t, "a vm is paused")
	w.killDaemon(t)
	two.wait(t)
	if now := w.show(t, v.ID); now.State != "running" || now.Paused == "" {
		t.Errorf("after a restart of the daemon it is %s, paused: %q", now.State, now.Paused)
	}
	w.fails(t, 1, []string{"no space left on device", "may be lost", "try: free some space"}, "vm", "stop", v.ID)
	if now := w.show(t, v.ID); now.State != "stopped" || !strings.Contains(now.LastError, "may be lost") {
		t.Errorf("it is %s, last error %q", now.State, now.LastError)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	w.ok(t, "vm", "start", v.ID)
	if text := w.execRoot(t, v, "sha256sum", "/root/one"); !strings.HasPrefix(text, want) {
		t.Errorf("the first file is %s", text)
	}
	w.ok(t, "vm", "delete", "--force", v.ID)
}
