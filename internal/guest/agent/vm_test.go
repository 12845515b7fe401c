package agent

import (
	"testing"
	"time"

	"banger/internal/guest"
)

func TestVMWithoutInit(t *testing.T) {
	vm := bootVM(t, vmConfig{root: busyboxRoot(t), modules: true})
	s := vm.connect()
	t.Logf("ready after %v (guest uptime %d ms)", time.Since(vm.started), s.Ready().UptimeMillis)
	if r := s.Ready(); !r.RootReady || r.InitSystem != "none" {
		t.Fatalf("ready = %+v", r)
	}
	t.Log(vm.sh(s, "id; ps; mount; df -h /; ls -la /lib/modules/*; ls -la /dev/pts /modules /init; cat /proc/*/oom_score_adj | head -50"))
}

func TestVMWithSystemd(t *testing.T) {
	vm := bootVM(t, vmConfig{root: debianRoot(t), modules: true})
	s := vm.connect()
	t.Logf("ready after %v (guest uptime %d ms)", time.Since(vm.started), s.Ready().UptimeMillis)
	if r := s.Ready(); !r.RootReady || r.InitSystem != "systemd" {
		t.Fatalf("ready = %+v", r)
	}
	vm.call(s, guest.Request{Kind: guest.KindConfigure, Configure: &guest.Configure{
		Hostname: "calm-otter", UnixNanos: time.Now().UnixNano(),
		Net: &guest.NetConf{Address: "192.168.127.2/24", Gateway: "192.168.127.1", DNS: []string{"192.168.127.1"}, MAC: "52:54:00:00:00:09"},
	}})
	t.Logf("configured after %v", time.Since(vm.started))
	c := vm.call(s, guest.Request{Kind: guest.KindWaitSystem})
	t.Logf("system %s after %v", c.State, time.Since(vm.started))
	t.Log(vm.sh(s, "ps axf; ip a; ip r; cat /etc/resolv.conf /etc/hosts; hostname; cat /proc/self/cgroup; systemctl --failed; systemctl status networking; systemd-analyze; sudo id; journalctl -b -p warning --no-pager"))
	vm.call(s, guest.Request{Kind: guest.KindShutdown})
	start := time.Now()
	select {
	case <-vm.done:
		t.Logf("off after %v", time.Since(start))
	case <-time.After(60 * time.Second):
		t.Error("the VM goes on")
	}
}
