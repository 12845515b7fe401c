//go:build e2e

package e2e_test

import (
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestTwoDaemons: the second one on a state directory is refused.
func TestTwoDaemons(t *testing.T) {
	w := scratchWorld(t, config)
	first := w.mustDaemon(t)
	cmd := exec.Command(filepath.Join(s.bin, "bangerd"), "serve", "--state-dir", w.state, "--socket", filepath.Join(w.state, "other.sock"))
	cmd.Env = w.env
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "another bangerd") || !strings.Contains(string(out), "BANGER_STATE_DIR") {
		t.Errorf("a second daemon: %v: %s", err, out)
	}
	if now := w.mustDaemon(t); now.pid != first.pid {
		t.Errorf("the daemon was %d, is %d", first.pid, now.pid)
	}
	// Many commands at once start one daemon.
	w.killDaemon(t)
	var calls []*running
	for range 8 {
		calls = append(calls, start(t, w.command("daemon", "status", "--json")))
		calls = append(calls, start(t, w.command("vm", "list", "-q")))
	}
	for i, c := range calls {
		if code := c.wait(t); code != 0 && i%2 == 1 {
			t.Errorf("list %d: code %d: %s", i, code, c.err)
		}
	}
	daemons := 0
	for _, p := range ours(w.state) {
		if len(p.args) > 1 && p.args[1] == "serve" {
			daemons++
		}
	}
	if daemons != 1 {
		t.Errorf("%d daemons run", daemons)
	}
}

// TestStaleSocket: a socket that nobody serves is in nobody's way; a file is.
func TestStaleSocket(t *testing.T) {
	w := scratchWorld(t, config)
	w.mustDaemon(t)
	w.killDaemon(t)
	socket := filepath.Join(w.state, "bangerd.sock")
	if st, err := os.Lstat(socket); err != nil || st.Mode()&os.ModeSocket == 0 {
		t.Fatalf("the crash left no socket: %v %v", st, err)
	}
	if r := w.run(t, "daemon", "status"); r.code != 1 || !strings.Contains(r.stdout, "does not run") {
		t.Errorf("status with a stale socket: %s", r)
	}
	w.ok(t, "vm", "list")
	if err := w.stopDaemon(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(socket, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	w.fails(t, 1, []string{"is not a socket", "try: "}, "vm", "list")
	if err := os.Remove(socket); err != nil {
		t.Fatal(err)
	}
	w.ok(t, "vm", "list")
	st, err := os.Lstat(socket)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the socket's mode: %v, %v", st.Mode(), err)
	}
}

// TestForeignSocket: what serves the socket but is no daemon gives a clear error.
func TestForeignSocket(t *testing.T) {
	w := scratchWorld(t, config)
	if err := os.MkdirAll(w.state, 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(w.state, "bangerd.sock"))
	if err != nil {
		t.Fatal(err)
	}
	go func() { // ends when the listener closes
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("220 this is no daemon\r\n"))
			_ = c.Close()
		}
	}()
	r := w.run(t, "vm", "list")
	_ = l.Close()
	r.check(t, 1, "daemon", "try: ") // how much of the answer was read is chance
	w.ok(t, "vm", "list")
}

// TestCorruptDatabase: it is kept aside, and work goes on.
func TestCorruptDatabase(t *testing.T) {
	w := scratchWorld(t, config)
	w.ok(t, "vm", "list")
	if err := w.stopDaemon(); err != nil {
		t.Fatal(err)
	}
	db := filepath.Join(w.state, "banger.db")
	nonsense := []byte(strings.Repeat("this is no database. ", 1000))
	if err := os.WriteFile(db, nonsense, 0o600); err != nil {
		t.Fatal(err)
	}
	w.ok(t, "vm", "list")
	kept, err := filepath.Glob(db + ".corrupt-*")
	if err != nil || len(kept) != 1 {
		t.Fatalf("kept aside: %v, %v", kept, err)
	}
	if raw, err := os.ReadFile(kept[0]); err != nil || string(raw) != string(nonsense) {
		t.Errorf("what was kept is not what was there: %d bytes, %v", len(raw), err)
	}
	if text := w.ok(t, "daemon", "logs"); !strings.Contains(text, kept[0]) {
		t.Errorf("the log does not say where it is kept:\n%s", text)
	}
}

// TestNewerDatabase: a daemon that is too old for it leaves it alone.
func TestNewerDatabase(t *testing.T) {
	w := scratchWorld(t, config)
	w.ok(t, "vm", "list")
	if err := w.stopDaemon(); err != nil {
		t.Fatal(err)
	}
	db := filepath.Join(w.state, "banger.db")
	script := `
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
db.execute("insert into goose_db_version (version_id, is_applied) values (9999, 1)")
db.commit()
`
	cmd := exec.Command(tool(t, "python3"), "-c", script, db)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	before := sum(t, db)
	r := w.fails(t, 1, []string{"9999", "try: "}, "vm", "list")
	if strings.Count(r.stderr, "\n") != 2 {
		t.Errorf("not one error and one hint: %s", r)
	}
	if after := sum(t, db); after != before {
		t.Error("the database was changed")
	}
	if kept, _ := filepath.Glob(db + ".corrupt-*"); len(kept) > 0 {
		t.Errorf("it was taken for corrupt: %v", kept)
	}
}

// TestMissingQEMU: creating says what to install; looking needs no QEMU.
func TestMissingQEMU(t *testing.T) {
	w := scratchWorld(t, config+"qemu:\n  binary: /nonexistent/qemu-system-x86_64\n")
	w.ok(t, "vm", "list")
	r := w.fails(t, 1, []string{"/nonexistent/qemu-system-x86_64", "try: ", "install"}, "vm", "create", "--name", "e2e-noqemu")
	if strings.Contains(r.stderr, "mmdebstrap") {
		t.Errorf("an image was fetched first: %s", r)
	}
	w.fails(t, 125, []string{"/nonexistent/qemu-system-x86_64"}, "vm", "run", "--rm", "--", "true")
	w.noVM(t, "e2e-noqemu")
	r = w.run(t, "doctor")
	if r.code != 1 || !strings.Contains(r.stdout, "FAIL") || !strings.Contains(r.stdout, "/nonexistent/qemu-system-x86_64") {
		t.Errorf("doctor without QEMU: %s", r)
	}
}

// TestFullDisk creates VMs on a file system that has some or no space left for it:
// whatever the step that finds it full, the world is as before.
func TestFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting a small file system takes root")
	}
	s.main.fetch(t)
	base := filepath.Join(s.scratch, "fulldisk")
	if err := os.MkdirAll(base, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("e2e-full", base, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "size=480m,mode=755"); err != nil {
		t.Fatalf("mount a small file system: %v", err)
	}
	w := scratchWorld(t, config) // unmounts it in the end
	w.ok(t, "kernel", "import", "--from", kernelDir(t), "e2e-kernel")
	tree := t.TempDir()
	busybox(t, tree)
	w.ok(t, "image", "register", "--rootfs", ext4(t, "full", tree), "--kernel", "e2e-kernel", "e2e-full")
	create := []string{"vm", "create", "--name", "e2e-full", "--image", "e2e-full", "--disk", "128M", "--memory", "192M", "--net", "none"}
	filler := filepath.Join(base, "filler")
	const kib, mib = int64(1) << 10, int64(1) << 20
	// First there is no initramfs yet, then only the VM's own files are to be made.
	for _, round := range []string{"first", "second"} {
		before, failed := w.files(t), 0
		for _, free := range []int64{0, 0, 4 * kib, 64 * kib, 256 * kib, mib, 2 * mib, 16 * mib} {
			fill(t, filler, free)
			r := w.run(t, create...)
			if r.code == 0 {
				t.Logf("%s round: %d KiB suffice", round, free>>10)
				break
			}
			failed++
			r.check(t, 1, "no space left on device", "try: ", "free some space")
			if strings.Contains(r.stderr, "internal") {
				t.Errorf("%s round, %d KiB free: %s", round, free>>10, r)
			}
			w.noVM(t, "e2e-full")
			if after := w.files(t); !slices.Equal(after, before) {
				t.Errorf("%s round, %d KiB free: there is %q, was %q", round, free>>10, after, before)
			}
		}
		if failed < 3 {
			t.Errorf("%s round: only %d sizes were too small", round, failed)
		}
		if t.Failed() {
			return
		}
		// What the hint says to do works although nothing is free.
		w.ok(t, "daemon", "status")
		fill(t, filler, 0)
		w.ok(t, "vm", "delete", "--force", "e2e-full")
		w.noVM(t, "e2e-full")
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	w.ok(t, create...)
	w.ok(t, "vm", "delete", "--force", "e2e-full")
}

// files lists what lies in the state directory, but for what a daemon keeps there
// for its own life.
func (w *world) files(t *testing.T) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(w.state, func(path string, d fs.DirEntry, err error) error {
		name := strings.TrimPrefix(path, w.state)
		if !strings.HasPrefix(name, "/banger") && name != "/accel.json" && name != "/vms" {
			all = append(all, name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// fill makes a file that leaves so many bytes free on its file system.
func fill(t *testing.T, file string, free int64) {
	t.Helper()
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil {
		t.Fatal(err)
	}
	if err := unix.Fallocate(int(f.Fd()), 0, 0, int64(fs.Bfree)*fs.Bsize-free); err != nil {
		t.Fatalf("fill %s: %v", file, err)
	}
}
