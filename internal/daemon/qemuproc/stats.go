package qemuproc

import (
	"context"

	"banger/internal/hypervisor"
)

var _ hypervisor.Sampler = (*machine)(nil)

// blockStats is QEMU's answer to query-blockstats: one per disk.
type blockStats []struct {
	Stats struct {
		ReadBytes  int64 `json:"rd_bytes"`
		WriteBytes int64 `json:"wr_bytes"`
		Reads      int64 `json:"rd_operations"`
		Writes     int64 `json:"wr_operations"`
	} `json:"stats"`
}

// Stats implements hypervisor.Sampler. QEMU does not count what goes through the card.
func (m *machine) Stats(ctx context.Context) (hypervisor.Stats, error) {
	var disks blockStats
	if err := m.execute(ctx, "count what the disks did", "query-blockstats", nil, &disks); err != nil {
		return hypervisor.Stats{}, err
	}
	st, err := m.Usage()
	if err != nil {
		return hypervisor.Stats{}, err
	}
	st.Disk = new(hypervisor.Transfer)
	for _, d := range disks {
		st.Disk.ReadBytes += max(0, d.Stats.ReadBytes)
		st.Disk.WriteBytes += max(0, d.Stats.WriteBytes)
		st.Disk.Reads += max(0, d.Stats.Reads)
		st.Disk.Writes += max(0, d.Stats.Writes)
	}
	return st, nil
}
