//go:build lab

package lab

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// firecracker brings Firecracker and its jailer into the lab, where FIRECRACKER_BIN
// and JAILER_BIN, else PATH, have them on this side, and returns what tells tests
// there of it. Nil: there is none. The jailer may lie beside it.
func firecracker(t *testing.T) (env []string) {
	t.Helper()
	find := func(variable, name string) string {
		if path := os.Getenv(variable); path != "" {
			return path
		}
		path, _ := exec.LookPath(name)
		return path
	}
	vmm := find("FIRECRACKER_BIN", "firecracker")
	if vmm == "" {
		return nil
	}
	jailer := find("JAILER_BIN", "jailer")
	if beside := filepath.Join(filepath.Dir(vmm), "jailer"); jailer == "" && exists(beside) {
		jailer = beside
	}
	send(t, vmm, inside+"/firecracker")
	env = append(env, "FIRECRACKER_BIN="+inside+"/firecracker")
	if jailer != "" {
		send(t, jailer, inside+"/jailer")
		env = append(env, "JAILER_BIN="+inside+"/jailer")
	}
	return env
}

// Where KVM works and Firecracker is there, it is what a VM runs on, in a jail, and on
// the bridge as well as without a network.
func TestFirecracker(t *testing.T) {
	if firecracker(t) == nil {
		t.Skip("no Firecracker: neither FIRECRACKER_BIN nor PATH has one")
	}
	ok(t, append([]string{"vm", "create", "--name", "fire", "--net", "bridge"}, small...)...)
	t.Cleanup(func() { deleteAll(t) })
	var v vm
	decode(t, &v, "vm", "show", "--json", "fire")
	if v.Driver != "firecracker" || v.Accel != "kvm" || v.DriverWhy == "" || len(v.Addresses) == 0 {
		t.Fatalf("%+v", v)
	}
	who, err := lab("sh", "-c", `ps -o uid=,args= -C firecracker`)
	if err != nil || strings.HasPrefix(strings.TrimSpace(who), "0 ") {
		t.Errorf("Firecracker runs as %q, %v", who, err)
	}
	if got := ok(t, "exec", "fire", "--", "nslookup", v.DNSName); !strings.Contains(got, v.Addresses[0]) {
		t.Errorf("its gateway, asked for %s, says %q", v.DNSName, got)
	}
	ok(t, "vm", "restart", "fire")
	ok(t, "vm", "delete", "--force", "fire")
	left, err := lab("sh", "-c", `pgrep -a firecracker; find /var/lib/banger/vms /sys/fs/cgroup/banger -mindepth 1 -type d 2>/dev/null; true`)
	if err != nil || strings.TrimSpace(left) != "" {
		t.Errorf("left: %s (%v)", left, err)
	}
}
