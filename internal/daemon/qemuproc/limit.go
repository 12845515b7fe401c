package qemuproc

import (
	"context"
	"strconv"

	"banger/internal/daemon/qemuproc/qmp"
	"banger/internal/hypervisor"
)

// diskDevice is what QEMU calls the device of a disk.
func diskDevice(i int) string { return "blk" + strconv.Itoa(i) }

// throttle is what a disk may do per second; 0 is no bound.
type throttle struct {
	ID         string `json:"id"`
	Bytes      int64  `json:"bps"`
	ReadBytes  int64  `json:"bps_rd"`
	WriteBytes int64  `json:"bps_wr"`
	Ops        int64  `json:"iops"`
	Reads      int64  `json:"iops_rd"`
	Writes     int64  `json:"iops_wr"`
}

// limitDisks bounds what the guest does with its disks. A bound is set on a machine
// that is made, not part of what it is made of: it may be another at the next start.
func limitDisks(ctx context.Context, c *qmp.Client, disks []hypervisor.Disk) error {
	for i, d := range disks {
		if d.Limit == (hypervisor.DiskLimit{}) {
			continue
		}
		// The part of the device behind PCI has the disk.
		limit := throttle{ID: "/machine/peripheral/" + diskDevice(i) + "/virtio-backend", Bytes: d.Limit.BytesPerSecond, Ops: d.Limit.OpsPerSecond}
		if err := c.Execute(ctx, "block_set_io_throttle", limit, nil); err != nil {
			return err
		}
	}
	return nil
}
