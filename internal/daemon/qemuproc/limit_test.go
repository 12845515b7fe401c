package qemuproc_test

import (
	"testing"

	"banger/internal/daemon/qemuproc"
	"banger/internal/hypervisor"
)

// QEMU keeps each disk to its own bound.
func TestDiskLimits(t *testing.T) {
	dir := t.TempDir()
	spec := testSpec(t, dir)
	spec.Disks = append(spec.Disks, spec.Disks[0])
	spec.Disks[1].Serial, spec.Disks[1].ReadOnly, spec.Disks[0].ReadOnly = "other", true, true
	spec.Disks[0].Limit = hypervisor.DiskLimit{BytesPerSecond: 20 << 20, OpsPerSecond: 100}
	m := startMachine(t, spec)
	booted(t, dir)
	var disks []struct {
		Inserted struct {
			Node string `json:"node-name"`
			BPS  int64  `json:"bps"`
			IOPS int64  `json:"iops"`
		} `json:"inserted"`
	}
	if err := qemuproc.MonitorOf(m).Execute(t.Context(), "query-block", nil, &disks); err != nil {
		t.Fatal(err)
	}
	bounds := map[string][2]int64{}
	for _, d := range disks {
		bounds[d.Inserted.Node] = [2]int64{d.Inserted.BPS, d.Inserted.IOPS}
	}
	if len(bounds) != 2 || bounds["disk0"] != [2]int64{20 << 20, 100} || bounds["disk1"] != [2]int64{} {
		t.Errorf("bounds are %v", bounds)
	}
}
