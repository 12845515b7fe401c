package fakevm

import (
	"context"

	"banger/internal/hypervisor"
)

var _ hypervisor.Sampler = (*fakeMachine)(nil)

// Stats implements hypervisor.Sampler. There is no guest that could read a disk.
func (m *fakeMachine) Stats(ctx context.Context) (hypervisor.Stats, error) {
	if err := m.control(ctx, command{Verb: verbPing}); err != nil {
		return hypervisor.Stats{}, err
	}
	return m.Usage()
}
