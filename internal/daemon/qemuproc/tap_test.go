package qemuproc_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/daemon/qemuproc"
	"banger/internal/hypervisor/hypervisortest"
	"banger/internal/paths"
)

// A machine with a tap has the same card, and no socket for it.
func TestTap(t *testing.T) {
	dir := t.TempDir()
	spec := testSpec(t, dir)
	spec.Tap = hypervisortest.NewTap(t, 0)
	m := startMachine(t, spec)
	booted(t, dir)
	var network string
	if err := qemuproc.MonitorOf(m).Execute(t.Context(), "human-monitor-command", map[string]string{"command-line": "info network"}, &network); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(network, "nic0: index=0,type=nic,model=virtio-net-pci,macaddr="+spec.MAC) || !strings.Contains(network, "net0: index=0,type=tap,fd=") {
		t.Errorf("the network is\n%s", network)
	}
	if _, err := os.Stat(filepath.Join(dir, paths.NetSocket)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s: %v", paths.NetSocket, err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, paths.VMMLog)); err != nil || len(b) > 0 {
		t.Errorf("QEMU complains: %s %v", b, err)
	}
}
