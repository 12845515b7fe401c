//go:build lab

package lab

import (
	"errors"
	"os/exec"
	"strings"
	"testing"
)

// vm is what `vm show --json` says.
type vm struct {
	ID    string `json:"id"`
	Name  string `json:"name"`
	State string `json:"state"`
	Accel string `json:"accel"`

	PID       int    `json:"pid"`
	Driver    string `json:"driver"`
	DriverWhy string `json:"driver_why"`

	Addresses []string `json:"addresses"`
	DNSName   string   `json:"dns_name"`
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
