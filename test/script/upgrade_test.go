package script_test

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// A CLI of another build restarts the daemon it finds, ahead of its first request,
// and VMs do not notice.
func TestAnotherBuildRestartsTheDaemon(t *testing.T) {
	r := newRig(t)
	r.ok("vm", "create", "--name", "box")
	before := r.daemonPID()
	pid := r.vmPID("box")

	cmd := by(otherBuild(t), r.cmd("vm", "rename", "box", "renamed"))
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

// It leaves one alone that commands in VMs would lose: those go on, and the daemon
// is restarted by the first command after them.
func TestAnotherBuildSparesOpenCommands(t *testing.T) {
	r := newRig(t)
	other := otherBuild(t)
	r.ok("vm", "create", "--name", "box")
	before := r.daemonPID()
	for holder, args := range map[string][]string{
		`exec of vm "box"`:   {"exec", "box", "--", "sh", "-c", "echo ready; hang"},
		`exec of vm "brief"`: {"vm", "run", "--rm", "--name", "brief", "--", "sh", "-c", "echo ready; hang"},
	} {
		p := r.start(args...)
		p.line("ready")
		var stderr bytes.Buffer
		cmd := by(other, r.cmd("vm", "list", "-q"))
		cmd.Stderr = &stderr
		if out, err := cmd.Output(); err != nil || len(out) == 0 {
			t.Errorf("%s: list printed %q, %v", holder, out, err)
		}
		if text := stderr.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, "v0-other") || !strings.Contains(text, holder) {
			t.Errorf("stderr of list: %q, want what holds the daemon: %s", text, holder)
		}
		if now := r.daemonPID(); now != before {
			t.Fatalf("the daemon was restarted under %s", holder)
		}
		p.signal(syscall.SIGTERM)
		p.ends(143)
	}
	// The daemon notices the end of a stream a little after its client.
	for r.daemonPID() == before {
		if out, err := by(other, r.cmd("vm", "list", "-q")).CombinedOutput(); err != nil {
			t.Fatalf("list: %v\n%s", err, out)
		}
	}
	r.ok("vm", "delete", "-f", "box")
	r.noVMs()
}

// Who says stop means it, and is told what ends.
func TestStopOfABusyDaemon(t *testing.T) {
	r := newRig(t)
	r.ok("vm", "create", "--name", "box")
	p := r.start("exec", "box", "--", "sh", "-c", "echo ready; hang")
	p.line("ready")
	if out := r.ok("daemon", "status"); !strings.Contains(out, `exec of vm "box"`) {
		t.Errorf("status printed %q", out)
	}
	var stderr bytes.Buffer
	cmd := r.cmd("daemon", "stop")
	cmd.Stderr = &stderr
	if out, err := cmd.Output(); err != nil || string(out) != "stopped the daemon\n" {
		t.Errorf("stop: %q, %v", out, err)
	}
	if !strings.Contains(stderr.String(), `exec of vm "box"`) {
		t.Errorf("stop did not say what ended: %q", stderr.Bytes())
	}
	p.ends(125)
	if out := r.ok("exec", "box", "--", "echo", "alive"); out != "alive\n" {
		t.Errorf("exec printed %q", out)
	}
}

// otherBuild builds a banger of another version, beside the same daemon.
func otherBuild(t *testing.T) string {
	t.Helper()
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
	return filepath.Join(other, "banger")
}

// by makes another program run a command of the rig's.
func by(program string, cmd *exec.Cmd) *exec.Cmd {
	cmd.Path = program
	return cmd
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
