// Package qemuproc drives QEMU, 7.2 to 10, behind hypervisor.Driver.
//
// One VM is one QEMU process, detached, in the VM's directory. The sockets it
// serves (qmp, agent, net) are bound and listening before it starts and handed
// over as descriptors: nobody polls for a socket file, and who connects early
// waits in the queue. QEMU keeps listening on each, so daemon and network helper
// can go away and come back.
//
// What the guest sees is the same for every VM of one shape: machine type and CPU
// model are versioned and come from the VM's row, every device has a fixed
// address, and nothing that names one VM is visible inside. See args.go.
package qemuproc

import (
	"context"
	"log/slog"
	"sync"

	"banger/internal/hypervisor"
)

// Name is the driver's name in a VM's row.
const Name = "qemu"

// Deps are what the driver needs.
type Deps struct {
	// Binary is the QEMU system emulator; empty: looked up where distributions put it.
	Binary string
	// Accel decides how guest code is executed; it may probe the host, and is asked
	// again for every Info and Start. Nil: always TCG.
	Accel func(ctx context.Context) (hypervisor.Accel, error)
	Log   *slog.Logger // nil: discard
}

// Driver drives QEMU.
type Driver struct {
	binary string
	accel  func(ctx context.Context) (hypervisor.Accel, error)
	log    *slog.Logger

	// mu guards known, what the binary said of itself; a leaf, never held over I/O.
	mu    sync.Mutex
	known map[identity]facts
}

// New returns a driver; it touches nothing yet.
func New(deps Deps) *Driver {
	d := &Driver{binary: deps.Binary, accel: deps.Accel, log: deps.Log, known: make(map[identity]facts)}
	if d.accel == nil {
		d.accel = func(context.Context) (hypervisor.Accel, error) { return hypervisor.AccelTCG, nil }
	}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	return d
}

// Name implements hypervisor.Driver.
func (d *Driver) Name() string { return Name }

var _ hypervisor.Driver = (*Driver)(nil)
