//go:build lab

package lab

import (
	"errors"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// vm is what `vm show --json` says.
type vm struct {
	ID    string `json:"id"`
	Name  string `json:"name"`
	State string `json:"state"`
	Accel string `json:"accel"`
}

// The lab is a host with KVM that works, and banger finds that out by trying.
func TestKVM(t *testing.T) {
	var results []struct{ Name, Status, Detail string }
	decode(t, &results, "doctor", "--json")
	for _, r := range results {
		if r.Name == "accelerator" {
			if r.Status != "pass" || !strings.HasPrefix(r.Detail, "kvm") {
				t.Errorf("accelerator: %s, %s", r.Status, r.Detail)
			}
			return
		}
	}
	t.Errorf("doctor says nothing of the accelerator: %+v", results)
}

// A VM runs under KVM, with the exit code of its command, and is gone again.
func TestRun(t *testing.T) {
	args := append([]string{"vm", "run", "--rm"}, small...)
	out, err := lab(append([]string{"banger"}, append(args, "--", "sh", "-c", "uname; exit 7")...)...)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 7 || out != "Linux\n" {
		t.Errorf("%q, %v", out, err)
	}
	var left []vm
	if decode(t, &left, "vm", "list", "--all", "--json"); len(left) != 0 {
		t.Errorf("left: %+v", left)
	}
}

// The power of the host goes. What was acknowledged is there afterwards: the VM, and
// the file that its guest had synced. What was under way is not.
func TestPowerCut(t *testing.T) {
	ok(t, append([]string{"vm", "create", "--name", "kept"}, small...)...)
	var kept vm
	if decode(t, &kept, "vm", "show", "--json", "kept"); kept.State != "running" || kept.Accel != "kvm" {
		t.Fatalf("%+v", kept)
	}
	ok(t, "exec", "kept", "--", "sh", "-c", "echo written > /root/file && sync")
	ok(t, append([]string{"vm", "create", "--no-start", "--name", "still"}, small...)...)
	under := make(chan error, 1)
	go func() {
		_, err := lab(append([]string{"banger", "vm", "create", "--name", "lost"}, small...)...)
		under <- err
	}()
	// The row of the third is written when its directory is there.
	if _, err := lab("sh", "-c", `until [ "$(ls /var/lib/banger/vms | wc -l)" -ge 3 ]; do sleep 0.1; done`); err != nil {
		t.Fatal(err)
	}
	if _, err := host("vm", "kill", "lab"); err != nil {
		t.Fatal(err)
	}
	if err := <-under; err == nil {
		t.Error("a create succeeded on a host without power")
	}
	if _, err := host("vm", "start", "--wait", "system", "lab"); err != nil {
		t.Fatal(err)
	}
	if _, err := lab("sh", "-c", "modprobe kvm_amd 2>/dev/null || modprobe kvm_intel"); err != nil {
		t.Fatal(err)
	}
	var all []vm
	decode(t, &all, "vm", "list", "--all", "--json")
	var names, ids []string
	for _, v := range all {
		names, ids = append(names, v.Name), append(ids, v.ID)
		if v.State != "stopped" {
			t.Errorf("%s is %s", v.Name, v.State)
		}
	}
	slices.Sort(names)
	if !slices.Equal(names, []string{"kept", "still"}) {
		t.Errorf("VMs %v", names)
	}
	dirs, err := lab("ls", "/var/lib/banger/vms")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range strings.Fields(dirs) {
		if !slices.Contains(ids, dir) {
			t.Errorf("directory %s belongs to no VM", dir)
		}
	}
	ok(t, "vm", "start", "kept")
	if got := ok(t, "exec", "kept", "--", "cat", "/root/file"); got != "written\n" {
		t.Errorf("the file holds %q", got)
	}
	ok(t, "vm", "delete", "--force", "kept", "still")
}
