//go:build e2e

package e2e_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// world is one state directory, with the daemon that lives in it.
type world struct {
	state string
	conf  string   // config file
	env   []string // whole environment of the programs
}

// vm is what `vm show --json` prints, as far as tests look at it.
type vm struct {
	ID         string     `json:"id"`
	Name       string     `json:"name"`
	State      string     `json:"state"`
	Paused     string     `json:"paused"`
	Image      string     `json:"image"`
	Kernel     string     `json:"kernel"`
	CPUs       int        `json:"cpus"`
	MemoryMiB  int64      `json:"memory_mib"`
	DiskBytes  int64      `json:"disk_bytes"`
	Net        string     `json:"net"`
	Addresses  []string   `json:"addresses"`
	DNSName    string     `json:"dns_name"`
	User       string     `json:"user"`
	AutoRemove bool       `json:"auto_remove"`
	Driver     string     `json:"driver"`
	Accel      string     `json:"accel"`
	PID        int        `json:"pid"`
	BootID     string     `json:"boot_id"`
	Dir        string     `json:"dir"`
	LastError  string     `json:"last_error"`
	CreatedAt  *time.Time `json:"created_at"`
	StartedAt  *time.Time `json:"started_at"`
}

// newWorld makes the directory and the config of a daemon, but starts none.
func newWorld(state, config string) (*world, error) {
	home := filepath.Join(s.cache, "home")
	for _, dir := range []string{filepath.Dir(state), home} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	w := &world{state: state, conf: state + ".yaml"}
	if err := os.WriteFile(w.conf, []byte(config), 0o644); err != nil {
		return nil, err
	}
	for _, kv := range os.Environ() {
		key, _, _ := strings.Cut(kv, "=")
		if key == "HOME" || key == "TERM" || key == "NO_COLOR" || strings.HasPrefix(key, "BANGER_") ||
			strings.HasPrefix(key, "XDG_") || strings.HasPrefix(key, "GIT_") {
			continue
		}
		w.env = append(w.env, kv)
	}
	w.env = append(w.env, "HOME="+home, "TERM=xterm", "NO_COLOR=1",
		"BANGER_STATE_DIR="+w.state, "BANGER_CONFIG="+w.conf)
	return w, nil
}

// scratchWorld is a world of one test's own; it ends with the test.
func scratchWorld(t *testing.T, config string) *world {
	t.Helper()
	name := strings.ToLower(strings.TrimPrefix(t.Name(), "Test"))
	w, err := newWorld(filepath.Join(s.scratch, strings.ReplaceAll(name, "/", "-"), "state"), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.close(t) })
	return w
}

// close ends a scratch world and proves that nothing of it is left.
func (w *world) close(t *testing.T) {
	t.Helper()
	w.explain(t)
	if err := w.stopDaemon(); err != nil {
		t.Error(err)
	}
	for _, p := range ours(w.state) {
		if !p.lingers() {
			continue
		}
		t.Errorf("left behind: process %s", p)
		_ = p.kill()
	}
	base := filepath.Dir(w.state)
	for _, dir := range mountsUnder(s.scratch) {
		if dir != base && !strings.HasPrefix(dir, base+"/") {
			continue
		}
		if err := unmount(dir); err != nil {
			t.Error(err)
		}
	}
	if err := os.RemoveAll(base); err != nil {
		t.Error(err)
	}
}

// explain prints what helps to understand a test that failed.
func (w *world) explain(t *testing.T, vms ...vm) {
	t.Helper()
	if !t.Failed() {
		return
	}
	t.Logf("the daemon's log ends with:\n%s", tail(filepath.Join(w.state, "bangerd.log"), 6<<10))
	for _, v := range vms {
		dir := filepath.Join(w.state, "vms", v.ID)
		t.Logf("the console of %s ends with:\n%s", v.Name, tail(filepath.Join(dir, "console.log"), 3<<10))
		t.Logf("the VMM of %s said:\n%s", v.Name, tail(filepath.Join(dir, "vmm.log"), 1<<10))
	}
}

func tail(file string, size int64) string {
	f, err := os.Open(file)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > size {
		_, _ = f.Seek(-size, 2)
	}
	buf := make([]byte, size)
	n, _ := f.Read(buf)
	return string(buf[:n])
}

// command makes a call of banger in this world.
func (w *world) command(args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(s.bin, "banger"), args...)
	cmd.Env, cmd.Dir = slices.Clone(w.env), "/"
	return cmd
}

// daemon is the daemon's process, or false when none runs.
func (w *world) daemon() (process, bool) {
	raw, err := os.ReadFile(filepath.Join(w.state, "bangerd.lock"))
	if err != nil {
		return process{}, false
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil {
		return process{}, false
	}
	p, ok := find(pid)
	if !ok || !strings.HasPrefix(filepath.Base(p.args[0]), "bangerd") || !slices.Contains(p.args, w.state) {
		return process{}, false // its pid belongs to another now
	}
	return p, true
}

// mustDaemon is the daemon's process, started if need be.
func (w *world) mustDaemon(t *testing.T) process {
	t.Helper()
	w.ok(t, "daemon", "start")
	p, ok := w.daemon()
	if !ok {
		t.Fatal("the daemon does not run")
	}
	return p
}

// helper is the network helper's process, or false when none runs.
func (w *world) helper() (process, bool) {
	for _, p := range ours(w.state) {
		if slices.Contains(p.args, "usernet") && slices.Contains(p.args, filepath.Join(w.state, "usernet.sock")) {
			return p, true
		}
	}
	return process{}, false
}

// killDaemon ends the daemon as a crash would.
func (w *world) killDaemon(t *testing.T) {
	t.Helper()
	p, ok := w.daemon()
	if !ok {
		t.Fatal("there is no daemon to kill")
	}
	if err := p.kill(); err != nil {
		t.Fatal(err)
	}
}

// stopDaemon ends the daemon in order; VMs go on running.
func (w *world) stopDaemon() error {
	p, ok := w.daemon()
	if !ok {
		return nil
	}
	if out, err := w.command("daemon", "stop").CombinedOutput(); err != nil {
		return fmt.Errorf("banger daemon stop: %w: %s", err, out)
	}
	return p.awaitEnd(60 * time.Second)
}

// deleteAll deletes every VM of this world.
func (w *world) deleteAll() error {
	if _, err := os.Stat(filepath.Join(w.state, "banger.db")); err != nil {
		return nil
	}
	out, err := w.command("vm", "list", "-q").Output()
	if err != nil {
		return fmt.Errorf("banger vm list: %w", err)
	}
	ids := strings.Fields(string(out))
	if len(ids) == 0 {
		return nil
	}
	if out, err := w.command(append([]string{"vm", "delete", "--force"}, ids...)...).CombinedOutput(); err != nil {
		return fmt.Errorf("banger vm delete: %w: %s", err, out)
	}
	return nil
}

// removeArtifacts removes the images and kernels of tests; the default ones stay.
func (w *world) removeArtifacts() error {
	if _, err := os.Stat(filepath.Join(w.state, "banger.db")); err != nil {
		return nil
	}
	for _, kind := range []string{"image", "kernel"} {
		out, err := w.command(kind, "list", "-q").Output()
		if err != nil {
			return fmt.Errorf("banger %s list: %w", kind, err)
		}
		for name := range strings.FieldsSeq(string(out)) {
			if !strings.HasPrefix(name, "e2e-") {
				continue
			}
			if out, err := w.command(kind, "rm", name).CombinedOutput(); err != nil {
				return fmt.Errorf("banger %s rm %s: %w: %s", kind, name, err, out)
			}
		}
	}
	return nil
}

// vmDirs lists the directories of VMs.
func (w *world) vmDirs() []string {
	entries, _ := os.ReadDir(filepath.Join(w.state, "vms"))
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// list returns all VMs.
func (w *world) list(t *testing.T) []vm {
	t.Helper()
	var all []vm
	w.decode(t, &all, "vm", "list", "--json")
	return all
}

// show returns one VM.
func (w *world) show(t *testing.T, ref string) vm {
	t.Helper()
	var v vm
	w.decode(t, &v, "vm", "show", "--json", ref)
	return v
}

// decode runs a command that prints JSON.
func (w *world) decode(t *testing.T, into any, args ...string) {
	t.Helper()
	out := w.ok(t, args...)
	if err := json.Unmarshal([]byte(out), into); err != nil {
		t.Fatalf("banger %s prints no JSON: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// hardware says whether this host runs guests in hardware, as doctor finds.
func (w *world) hardware(t *testing.T) bool {
	t.Helper()
	var checks []struct{ Name, Status string }
	w.decode(t, &checks, "doctor", "--json")
	for _, c := range checks {
		if c.Name == "accelerator" {
			return c.Status == "pass"
		}
	}
	t.Fatal("doctor says nothing of the accelerator")
	return false
}

// create makes and starts a VM that is deleted when the test ends.
func (w *world) create(t *testing.T, name string, flags ...string) vm {
	t.Helper()
	w.fetch(t)
	return w.boot(t, name, flags...)
}

// boot is create for VMs of an image that is not the default one.
func (w *world) boot(t *testing.T, name string, flags ...string) vm {
	t.Helper()
	w.cleanup(t, name)
	if got := w.ok(t, append([]string{"vm", "create", "--name", name}, flags...)...); got != name {
		t.Fatalf("vm create printed %q, want %q", got, name)
	}
	return w.show(t, name)
}

// cleanup deletes a VM of that name when the test ends, if there is one.
func (w *world) cleanup(t *testing.T, name string) {
	t.Helper()
	t.Cleanup(func() {
		for _, v := range w.list(t) {
			if v.Name == name {
				w.explain(t, v)
				w.ok(t, "vm", "delete", "--force", v.ID)
				return
			}
		}
		w.explain(t)
	})
}

// legal fails the test unless rows, directories and VMMs agree with each other.
func (w *world) legal(t *testing.T) {
	t.Helper()
	ids := map[string]vm{}
	for _, v := range w.list(t) {
		ids[v.ID] = v
		if v.State != "running" && v.State != "stopped" {
			t.Errorf("vm %s is %s (%s), which is no state to rest in", v.Name, v.State, v.LastError)
		}
	}
	for _, dir := range w.vmDirs() {
		if _, ok := ids[dir]; !ok {
			t.Errorf("left behind: directory vms/%s without a row", dir)
		}
	}
	running := map[string]bool{}
	for _, p := range ours(filepath.Join(w.state, "vms")) {
		id := filepath.Base(p.cwd)
		if v, ok := ids[id]; !ok || v.State != "running" {
			t.Errorf("left behind: VMM %s of a VM that is %q", p, v.State)
		}
		running[id] = true
	}
	for id, v := range ids {
		if v.State == "running" && !running[id] {
			t.Errorf("vm %s is said to run, but has no VMM", v.Name)
		}
	}
}

// noVM fails the test if there is a VM of that name.
func (w *world) noVM(t *testing.T, name string) {
	t.Helper()
	for _, v := range w.list(t) {
		if v.Name == name {
			t.Errorf("vm %s is still there, it is %s", name, v.State)
		}
	}
	w.legal(t)
}

// fetch makes sure that the default image and kernel are there. When they are
// not, two runs at once fetch them, which must share the work.
func (w *world) fetch(t *testing.T) {
	t.Helper()
	if w != s.main {
		return
	}
	s.fetch.Do(func() { firstUse(t, w) })
	if t.Failed() {
		t.FailNow()
	}
}

// sharedVM is a running VM for tests that leave no trace in it.
func sharedVM(t *testing.T) vm {
	t.Helper()
	s.sharedMu.Lock()
	defer s.sharedMu.Unlock()
	w := s.main
	w.fetch(t)
	if s.shared.ID == "" {
		w.ok(t, "vm", "create", "--name", "e2e-shared", "--wait", "system") // then it is quiet
		s.shared = w.show(t, "e2e-shared")
	}
	t.Cleanup(func() { w.explain(t, s.shared) })
	if now := w.show(t, s.shared.ID); now.State != "running" {
		t.Logf("the shared VM is %s (%s), starting it", now.State, now.LastError)
		w.ok(t, "vm", "start", s.shared.ID)
	}
	return s.shared
}
