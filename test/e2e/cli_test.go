//go:build e2e

package e2e_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestVersion(t *testing.T) {
	w := s.main
	text := w.ok(t, "version")
	if !strings.HasPrefix(text, "Version:") {
		t.Errorf("version prints %q", text)
	}
	var v map[string]any
	w.decode(t, &v, "version", "--json")
	if v["version"] == nil {
		t.Errorf("version --json prints %v", v)
	}
	if got, want := w.ok(t, "--version"), fmt.Sprintf("banger %v", v["version"]); got != want {
		t.Errorf("--version prints %q, want %q", got, want)
	}
}

func TestConfigShow(t *testing.T) {
	text := s.main.ok(t, "config", "show")
	for _, want := range []string{"memory: 512M # file", "disk: 8G # file", "image: debian # default"} {
		if !strings.Contains(text, want) {
			t.Errorf("config show lacks %q:\n%s", want, text)
		}
	}
}

// TestConfigErrors names the key that is wrong, and does not start a daemon.
func TestConfigErrors(t *testing.T) {
	w := scratchWorld(t, "vm:\n  cpu: 2\n")
	w.fails(t, 1, []string{"cpu", w.conf}, "config", "show")
	w.fails(t, 1, []string{"cpu", w.conf}, "vm", "list")
	if p, ok := w.daemon(); ok {
		t.Errorf("a daemon runs with a config that cannot be read: %s", p)
	}
}

func TestDoctor(t *testing.T) {
	w := s.main
	w.fetch(t)
	r := w.run(t, "doctor")
	if r.code != 0 {
		t.Errorf("a host that runs VMs is not well: %s", r)
	}
	for _, want := range []string{"accelerator", "QEMU", "disk", "state", "kernel", "image"} {
		if !strings.Contains(strings.ToLower(r.stdout), strings.ToLower(want)) {
			t.Errorf("doctor says nothing of %q:\n%s", want, r.stdout)
		}
	}
	var checks []map[string]any
	if err := json.Unmarshal([]byte(w.ok(t, "doctor", "--json")), &checks); err != nil || len(checks) < 5 {
		t.Errorf("doctor --json: %v, %d checks", err, len(checks))
	}
}

// TestIsolation: a VMM is behind what doctor says it is behind.
func TestIsolation(t *testing.T) {
	w, v := s.main, sharedVM(t)
	var checks []struct{ Name, Status, Detail string }
	w.decode(t, &checks, "doctor", "--json")
	i := slices.IndexFunc(checks, func(c struct{ Name, Status, Detail string }) bool { return c.Name == "isolation" })
	if i < 0 {
		t.Fatalf("doctor checks no isolation: %+v", checks)
	}
	for _, ns := range []string{"net", "ipc"} {
		theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", v.PID, ns))
		if err != nil {
			t.Fatal(err)
		}
		ours, _ := os.Readlink("/proc/self/ns/" + ns)
		if own := theirs != ours; own != (checks[i].Status == "pass") {
			t.Errorf("the VMM has a %s namespace of its own: %v, but doctor says %+v", ns, own, checks[i])
		}
	}
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", v.PID))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"NoNewPrivs:\t1\n", "Seccomp:\t2\n", "CapEff:\t0000000000000000\n", "CapPrm:\t0000000000000000\n"} {
		if !strings.Contains(string(raw), line) {
			t.Errorf("the VMM's status lacks %q:\n%s", line, raw)
		}
	}
}

func TestDaemonStatus(t *testing.T) {
	w := s.main
	p := w.mustDaemon(t)
	var status struct {
		PID      int    `json:"pid"`
		Running  bool   `json:"running"`
		StateDir string `json:"state_dir"`
		Version  string `json:"version"`
	}
	w.decode(t, &status, "daemon", "status", "--json")
	if status.PID != p.pid || status.StateDir != w.state || !status.Running || status.Version == "" {
		t.Errorf("daemon status --json: %+v, want pid %d and %s", status, p.pid, w.state)
	}
	if text := w.ok(t, "daemon", "status"); !strings.Contains(text, w.state) {
		t.Errorf("daemon status prints:\n%s", text)
	}
	if text := w.ok(t, "daemon", "logs"); !strings.Contains(text, "serving") {
		t.Errorf("daemon logs print:\n%s", text)
	}
	w.ok(t, "daemon", "start") // it runs already
	if now := w.mustDaemon(t); now.pid != p.pid {
		t.Errorf("daemon start replaced daemon %d by %d", p.pid, now.pid)
	}
}

func TestDaemonStartsOnDemand(t *testing.T) {
	w := scratchWorld(t, config)
	if r := w.run(t, "daemon", "status"); r.code == 0 {
		t.Errorf("status of no daemon: %s", r)
	}
	if _, ok := w.daemon(); ok {
		t.Error("daemon status started a daemon")
	}
	if got := w.ok(t, "vm", "list", "--json"); got != "[]" {
		t.Errorf("vm list prints %q, want []", got)
	}
	if _, ok := w.daemon(); !ok {
		t.Error("vm list did not start a daemon")
	}
	w.ok(t, "daemon", "stop")
	w.ok(t, "daemon", "stop") // nothing to do
	if p, ok := w.daemon(); ok {
		t.Errorf("daemon stop left %s", p)
	}
}

func TestUsageErrors(t *testing.T) {
	w := s.main
	for _, args := range [][]string{
		{"nosuch"}, {"vm", "nosuch"}, {"vm", "create", "extra"}, {"vm", "create", "--nosuch"},
		{"vm", "stop"}, {"vm", "delete"}, {"vm", "show"}, {"vm", "rename", "one"}, {"vm", "wait"}, {"vm", "start", ""},
		{"exec"}, {"exec", "one"}, {"exec", "--", "one"}, {"shell"}, {"shell", "a", "b"}, {"cp", "one"},
		{"vm", "run", "--rm", "-d"}, {"vm", "run", "-d", "--", "true"}, {"vm", "run", "--"}, {"vm", "run"},
		{"vm", "run", ".", "make"}, {"vm", "run", "--wait", "nosuch", "--", "true"}, {"vm", "create", "--wait", "nosuch"},
		{"exec", "-t", "one", "--", "true"}, {"vm", "start", "--wait", "nosuch", "x"},
	} {
		w.fails(t, 2, []string{"error: ", "try: "}, args...)
	}
	for _, args := range [][]string{{"--help"}, {"vm", "--help"}, {"vm", "run", "--help"}, {"exec", "--help"}, {"cp", "--help"}, {"vm"}} {
		if text := w.ok(t, args...); !strings.Contains(text, "Usage:") {
			t.Errorf("banger %s prints no help:\n%s", strings.Join(args, " "), text)
		}
	}
}

func TestBadShapes(t *testing.T) {
	w := s.main
	w.fetch(t)
	for _, c := range []struct {
		flags []string
		text  string
	}{
		{[]string{"--cpus", "0"}, "--cpus 0"},
		{[]string{"--cpus", "-1"}, "--cpus -1"},
		{[]string{"--cpus", "60000"}, "60000 cpus"},
		{[]string{"--memory", "0"}, "--memory 0"},
		{[]string{"--memory", "-5"}, "--memory -5"},
		{[]string{"--memory", "1M"}, "1 MiB of memory"},
		{[]string{"--memory", "900000G"}, "of memory"},
		{[]string{"--memory", "lots"}, "lots"},
		{[]string{"--disk", "0"}, "--disk 0"},
		{[]string{"--disk", "12"}, "--disk 12"},
		{[]string{"--disk", "1000000T"}, "disk"},
		{[]string{"--disk", "128M"}, "smaller than image"},
		{[]string{"--net", "lan"}, `"lan"`},
		{[]string{"--name", "Not_A_Label"}, "Not_A_Label"},
		{[]string{"--name", ""}, `""`},
		{[]string{"--workdir", "relative"}, "relative"},
		{[]string{"--env", "=x"}, "=x"},
		{[]string{"--env-file", "/nonexistent/env"}, "/nonexistent/env"},
	} {
		args := append([]string{"vm", "create"}, c.flags...)
		if !slices.Contains(c.flags, "--name") {
			args = append(args, "--name", "e2e-shape")
		}
		r := w.run(t, args...)
		if r.code != 1 || !strings.Contains(r.stderr, c.text) || !strings.Contains(r.stderr, "try: ") {
			t.Errorf("want code 1, %q and a hint: %s", c.text, r)
		}
		run := append([]string{"vm", "run", "--rm"}, c.flags...)
		if r := w.run(t, append(run, "--", "true")...); r.code != 125 {
			t.Errorf("want code 125: %s", r)
		}
	}
	w.noVM(t, "e2e-shape")
}

func TestReferences(t *testing.T) {
	w := s.main
	v := sharedVM(t)
	if got := w.show(t, v.ID[:6]); got.ID != v.ID {
		t.Errorf("the prefix %s names %s", v.ID[:6], got.Name)
	}
	w.fails(t, 1, []string{`"e2e-sharde"`, "e2e-shared"}, "vm", "show", "e2e-sharde")
	w.fails(t, 1, []string{"e2e-shared"}, "vm", "create", "--name", "e2e-shared")
	w.fails(t, 125, []string{"nosuch"}, "exec", "nosuch", "--", "true")
	for _, verb := range []string{"start", "stop", "restart", "kill", "delete", "wait", "show", "logs"} {
		w.fails(t, 1, []string{`"nosuch"`}, "vm", verb, "nosuch")
	}
	w.fails(t, 1, []string{`"nosuch"`}, "vm", "rename", "nosuch", "e2e-other")
	w.fails(t, 1, []string{"running", "--force"}, "vm", "delete", v.Name)
}

func TestListAndShow(t *testing.T) {
	w := s.main
	v := sharedVM(t)
	if v.Name != "e2e-shared" || v.State != "running" || v.CPUs != 1 || v.MemoryMiB != 512 || v.DiskBytes != 8<<30 ||
		v.Net != "user" || v.Image != "debian" || v.PID == 0 || v.Accel == "" || v.BootID == "" || v.CreatedAt == nil ||
		v.StartedAt == nil || v.LastError != "" || v.Dir != filepath.Join(w.state, "vms", v.ID) {
		t.Errorf("vm show --json: %+v", v)
	}
	for _, args := range [][]string{{"vm", "list"}, {"ps"}, {"vm", "list", "--running"}, {"ps", "--all"}} {
		text := w.ok(t, args...)
		if !strings.HasPrefix(text, "NAME") || !strings.Contains(text, "e2e-shared") || !strings.Contains(text, "512 MiB") {
			t.Errorf("banger %s prints:\n%s", strings.Join(args, " "), text)
		}
	}
	if ids := strings.Fields(w.ok(t, "ps", "-q")); !slices.Contains(ids, v.ID) {
		t.Errorf("ps -q prints %v, without %s", ids, v.ID)
	}
	if text := w.ok(t, "vm", "show", v.Name); !strings.Contains(text, "State:") || !strings.Contains(text, "running") {
		t.Errorf("vm show prints:\n%s", text)
	}
}

// TestCompletion asks for names the way shells do.
func TestCompletion(t *testing.T) {
	w := s.main
	v := sharedVM(t)
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"exec", ""}, v.Name},
		{[]string{"shell", "e2e"}, v.Name},
		{[]string{"vm", "stop", ""}, v.Name},
		{[]string{"vm", "show", ""}, v.Name},
		{[]string{"vm", "create", "--image", ""}, "debian"},
		{[]string{"vm", "create", "--kernel", ""}, "debian"},
		{[]string{"vm", "create", "--net", ""}, "none"},
		{[]string{"vm", "start", "--wait", ""}, "system"},
		{[]string{"image", "show", ""}, "debian"},
		{[]string{"kernel", "show", ""}, "debian"},
		{[]string{"vm", ""}, "create"},
	} {
		got := w.ok(t, append([]string{"__complete"}, c.args...)...)
		if !slices.ContainsFunc(strings.Split(got, "\n"), func(line string) bool {
			word, _, _ := strings.Cut(line, "\t")
			return word == c.want
		}) {
			t.Errorf("completing %q offers no %q:\n%s", c.args, c.want, got)
		}
	}
	if got := w.ok(t, "__complete", "vm", "start", ""); strings.Contains(got, v.Name+"\n") {
		t.Errorf("start offers a VM that runs:\n%s", got)
	}
	// Without a daemon there are no names, and none is started.
	other := scratchWorld(t, config)
	if got := other.ok(t, "__complete", "vm", "show", ""); !strings.HasPrefix(got, ":") {
		t.Errorf("completing without a daemon offers:\n%s", got)
	}
	if p, ok := other.daemon(); ok {
		t.Errorf("completing started %s", p)
	}
}

func TestSocketPathTooLong(t *testing.T) {
	long := filepath.Join(s.scratch, strings.Repeat("d", 60), strings.Repeat("e", 60))
	w, err := newWorld(long, config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(filepath.Dir(long)) })
	w.fails(t, 1, []string{"has 1", "the kernel allows 107", "BANGER_STATE_DIR"}, "vm", "list")
}
