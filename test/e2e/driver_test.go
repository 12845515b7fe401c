//go:build e2e

package e2e_test

import (
	"context"
	"os"
	"testing"
	"time"

	"banger/internal/daemon/qemuproc"
	"banger/internal/daemon/rootdisk"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/hypervisortest"
)

// TestDriver boots a guest with the driver alone and takes it through a daemon that
// goes and comes: it dies with the channel open.
func TestDriver(t *testing.T) {
	files, image := bootFiles(t), defaultRootfs(t)
	d := qemuproc.New(qemuproc.Deps{})
	info, err := d.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp(s.scratch, "driver-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	st, err := os.Stat(image)
	if err != nil {
		t.Fatal(err)
	}
	method, disk := rootdisk.QCOW2(), rootdisk.Disk{Dir: dir, Image: image, Size: st.Size()}
	if err := method.Create(t.Context(), disk); err != nil {
		t.Fatal(err)
	}
	spec := hypervisor.Spec{
		VMID: "0123456789ab", Dir: dir, CPUs: 2, MemoryMiB: 1024, Machine: info.Machine, CPUModel: info.CPUModel,
		Vmlinux: files.vmlinux, Initramfs: files.initramfs,
		LinkUp: true, MAC: "52:54:00:12:34:56", Disks: []hypervisor.Disk{method.View(disk)},
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	g := hypervisortest.BootGuest(ctx, t, d, spec)
	g.NextDaemon()
	g.Run(7, "exit 7")
	g.Shutdown()
}
