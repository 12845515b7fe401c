package script_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// A CLI of another build restarts the daemon it finds, ahead of its first request,
// and VMs do not notice.
func TestAnotherBuildRestartsTheDaemon(t *testing.T) {
	r := newRig(t)
	r.ok("vm", "create", "--name", "box")
	before := r.daemonPID()
	pid := r.vmPID("box")

	other := t.TempDir()
	build := exec.Command("go", "build", "-o", other+"/", "-ldflags", "-X banger/internal/version.Version=v0-other", "banger/cmd/banger")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build another banger: %v\n%s", err, out)
	}
	for _, name := range []string{"bangerd", "banger-agent"} {
		if err := os.Symlink(filepath.Join(programs, name), filepath.Join(other, name)); err != nil {
			t.Fatal(err)
		}
	}
	cmd := r.cmd("vm", "rename", "box", "renamed")
	cmd.Path = filepath.Join(other, "banger")
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != "renamed\n" {
		t.Fatalf("rename: %v\n%s", err, out)
	}
	if after := r.daemonPID(); after == before {
		t.Error("the daemon was not restarted")
	}
	if now := r.vmPID("renamed"); now != pid {
		t.Errorf("the VM's process was %d and is %d", pid, now)
	}
	if out := r.ok("exec", "renamed", "--", "echo", "alive"); out != "alive\n" {
		t.Errorf("exec printed %q", out)
	}
}

func (r *rig) daemonPID() int { return r.pid("daemon", "status", "--json") }

func (r *rig) vmPID(name string) int { return r.pid("vm", "show", "--json", name) }

func (r *rig) pid(args ...string) int {
	r.t.Helper()
	var v struct {
		PID int `json:"pid"`
	}
	if err := json.Unmarshal([]byte(r.ok(args...)), &v); err != nil || v.PID == 0 {
		r.t.Fatalf("banger %v: no pid: %v", args, err)
	}
	return v.PID
}
