package fcproc

import (
	"context"
	"errors"

	"banger/internal/daemon/fcproc/fcapi"
	"banger/internal/errdefs"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/vmmlog"
	"banger/internal/paths"
)

var _ hypervisor.Sampler = (*machine)(nil)

// Stats implements hypervisor.Sampler.
func (m *machine) Stats(ctx context.Context) (hypervisor.Stats, error) {
	var balloon fcapi.BalloonStats
	err := m.use(ctx, "ask for the metrics", func() error {
		if err := m.api.Put(ctx, fcapi.PathActions, fcapi.Action{Type: fcapi.ActionMetrics}); err != nil {
			return err
		}
		err := m.api.Get(ctx, fcapi.PathStats, &balloon)
		if fault := (*fcapi.Fault)(nil); errors.As(err, &fault) {
			return nil // the guest has not begun to use its balloon
		}
		return err
	})
	if err != nil {
		return hypervisor.Stats{}, err
	}
	st, err := m.Usage()
	if err != nil {
		return hypervisor.Stats{}, err
	}
	if balloon.Total > 0 && balloon.Free >= 0 && balloon.Available >= 0 {
		st.Guest = &hypervisor.GuestMemory{Total: balloon.Total, Free: balloon.Free, Available: balloon.Available}
	}
	f, err := vmmlog.Log{Dir: m.place, Name: paths.MetricsFile}.Open()
	if err != nil {
		return hypervisor.Stats{}, errdefs.Wrap(err, "read the metrics")
	}
	defer f.Close()
	sum, err := m.meter.read(ctx, f)
	if err != nil {
		return hypervisor.Stats{}, errdefs.Wrap(err, "read the metrics")
	}
	if !sum.Broken {
		st.Disk = &sum.Disk
		if m.card {
			st.Net = &sum.Net
		}
	}
	return st, nil
}
