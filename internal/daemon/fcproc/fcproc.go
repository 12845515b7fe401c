// Package fcproc drives Firecracker, 1.8 and newer, behind hypervisor.Driver.
//
// One VM is one Firecracker process, detached, in a directory of its own below the
// VM's: there it makes its sockets (api, agent), which it cannot be handed. A daemon
// that is root has the jailer start it (see place.go), under the VM's user id, with
// that directory as its root.
//
// What the guest sees is the same for every VM of one shape, and is made by the
// order of the calls in start.go: devices get their places as they are added.
//
// The guest channel is a vsock connection (see channel.go). The console is the
// process's standard output.
package fcproc

import (
	"context"
	"log/slog"
	"sync"

	"banger/internal/hypervisor"
)

// Name is the driver's name in a VM's row.
const Name = "firecracker"

// Deps are what the driver needs.
type Deps struct {
	// Binary and Jailer are absolute paths, or names looked up in PATH; empty: the
	// usual names. A jailer that lies beside the binary comes first.
	Binary, Jailer string
	// NoJailer runs Firecracker without the jailer; it is never used by a daemon that
	// is not root.
	NoJailer bool
	// KVM says why KVM does not run guests here; nil: it does. It may probe the host,
	// and is asked again for every Info and Start. A nil func: it does.
	KVM func(ctx context.Context) error
	Log *slog.Logger // nil: discard
}

// Driver drives Firecracker.
type Driver struct {
	deps Deps
	log  *slog.Logger

	// mu guards known, what the programs said of themselves; a leaf, never held over I/O.
	mu    sync.Mutex
	known map[identity]version
}

// New returns a driver; it touches nothing yet.
func New(deps Deps) *Driver {
	d := &Driver{deps: deps, log: deps.Log, known: make(map[identity]version)}
	if d.deps.KVM == nil {
		d.deps.KVM = func(context.Context) error { return nil }
	}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	return d
}

// Name implements hypervisor.Driver.
func (d *Driver) Name() string { return Name }

var _ hypervisor.Driver = (*Driver)(nil)
