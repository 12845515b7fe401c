//go:build lab

package lab

import (
	"fmt"
	"strings"
	"testing"
)

// traces prints what an installation changes of a host, and the VMs on it.
const traces = `find /opt /etc/systemd/system /run/banger | sort
	find /var/lib/banger/vms /sys/fs/cgroup/banger -mindepth 1 -type d 2>/dev/null
	ip -br link | awk '{print $1}'; nft list tables; cat /proc/sys/net/ipv4/ip_forward
	pgrep -l 'qemu-system|firecracker'; true`

// system runs the command that is installed in the lab as root would.
func system(t *testing.T, script string) string {
	t.Helper()
	out, err := lab("sh", "-c", script)
	if err != nil {
		t.Fatalf("%s: %v", script, err)
	}
	return out
}

// The daemon becomes a service, and a VM does not notice; nor does it when the service
// is restarted or killed. It keeps banger from being removed, and when it is removed
// all the same, nothing is left.
func TestSystem(t *testing.T) {
	system(t, "banger daemon stop")
	before := system(t, traces)
	ok(t, append([]string{"vm", "create", "--name", "kept", "--net", "bridge"}, small...)...)
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := lab("sh", "-c", "journalctl -u bangerd | tail -50; banger system uninstall --force")
			t.Log(out)
		}
	})
	vmm := pidOf(t, "kept")
	ok(t, "system", "install", "--prefix", "/opt/banger", "--group", "nogroup")
	again := ok(t, "system", "install")
	pid := system(t, "systemctl show --property MainPID --value bangerd")
	if !strings.Contains(again, "in /opt/banger/bin\n") || !strings.Contains(again, "(pid "+strings.TrimSpace(pid)+")") {
		t.Errorf("a second time it says\n%s\nand the daemon is %s", again, pid)
	}
	if out := system(t, "setpriv --reuid nobody --clear-groups --regid nogroup /opt/banger/bin/banger vm list -q"); out != system(t, "banger vm list -q") {
		t.Errorf("a member of the group sees %q", out)
	}
	if out, err := lab("setpriv", "--reuid", "nobody", "--clear-groups", "--regid", "users", "/opt/banger/bin/banger", "--socket", "/run/banger/bangerd.sock", "vm", "list"); err == nil {
		t.Errorf("a stranger sees %q", out)
	}
	for _, end := range []string{
		"systemctl restart bangerd",
		"kill -KILL $(systemctl show --property MainPID --value bangerd); systemctl start bangerd",
		"banger daemon stop; banger daemon start",
	} {
		system(t, end)
		if out := ok(t, "exec", "kept", "--", "echo", "still here"); out != "still here\n" {
			t.Errorf("after %s: %q", end, out)
		}
		if now := pidOf(t, "kept"); now != vmm {
			t.Errorf("after %s the VMM is %d, not %d", end, now, vmm)
		}
		if now := system(t, "systemctl is-active bangerd"); now != "active\n" {
			t.Errorf("after %s the service is %s", end, now)
		}
	}
	if _, err := lab("banger", "system", "uninstall"); err == nil || !strings.Contains(err.Error(), "there are VMs: kept") {
		t.Errorf("with a VM: %v", err)
	}
	ok(t, "system", "uninstall", "--force")
	if left, err := lab("pgrep", "-a", "bangerd"); err == nil {
		t.Errorf("still running: %s", left)
	}
	if after := system(t, traces); after != before {
		t.Errorf("after removal there are\n%s\nand before were\n%s", after, before)
	}
	if out := ok(t, "system", "uninstall"); out != "banger is not installed as a service\n" {
		t.Errorf("a second time it says %q", out)
	}
}

// pidOf is the process of a VM's VMM, which must be there.
func pidOf(t *testing.T, name string) int {
	t.Helper()
	var v vm
	decode(t, &v, "vm", "show", "--json", name)
	system(t, fmt.Sprintf("kill -0 %d", v.PID))
	return v.PID
}
