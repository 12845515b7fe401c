package agent

import (
	"testing"
	"time"
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
