// Package vmcap is the registry of capabilities: what a VM may have beyond
// processors, memory and a disk. A network, a name, forwarded ports are capabilities.
//
// Each hooks into the lifecycle of VMs where it needs to. The VM service knows the
// registry and none of them; none of them knows another, or the service. A new one
// is written in a package of its own, and added to the list where the daemon is put
// together.
package vmcap

import (
	"context"

	"banger/internal/api/bangerv1"
	"banger/internal/doctor"
	"banger/internal/guest"
	"banger/internal/hypervisor"
	"banger/internal/model"
)

// Capability is one of them: its name and its hooks, in the order in which a VM meets
// them. A hook that is nil has nothing to do. Hooks change nothing of the VM they are
// given but where they say so, and are called under its claim, but for Preflight,
// Describe and Checks.
type Capability struct {
	Name string // of its steps in logs and progress

	// Has reports whether a VM has it; nil: every VM. Hooks that are about one VM are
	// called for no other.
	Has func(v *model.VM) bool

	// Preflight takes what concerns it from a request for a new VM, into v, and says
	// what keeps the VM from being made. Nothing has been changed yet, and it changes
	// nothing.
	Preflight func(ctx context.Context, v *model.VM, req *bangerv1.CreateRequest) error
	// Image takes what concerns it from the image that a new VM is to have, into v.
	// Nothing of the VM has been made yet.
	Image func(ctx context.Context, v *model.VM, req *bangerv1.CreateRequest, image *model.ImageConfig) error
	// Driver says what a driver lacks for such VMs.
	Driver func(c hypervisor.Capabilities) error
	// Reserve takes what the VM is to have for as long as it exists. Its row has just
	// been written; what does not go with the row, Release gives back.
	Reserve func(ctx context.Context, v *model.VM) error

	// Prepare readies the host, before the VMM is started.
	Prepare func(ctx context.Context, v *model.VM) error
	// Machine completes what the VMM is told.
	Machine func(ctx context.Context, v *model.VM, spec *hypervisor.Spec) error
	// Started is called when the VMM runs; its guest boots meanwhile.
	Started func(ctx context.Context, v *model.VM) error
	// Guest completes what the guest is told: at the start, and when that changes.
	Guest func(ctx context.Context, v *model.VM, conf *guest.Configure) error
	// Running is called when the guest is configured and can be used.
	Running func(ctx context.Context, v *model.VM) error
	// Changed is called when a running VM has become what v is: it has another name.
	// That holds already, so an error is logged.
	Changed func(ctx context.Context, v *model.VM) error

	// CleanUp undoes all that was done since Reserve, when the VMM has ended or was not
	// started. It is called after a failure half way, again after its own failure, and
	// by a daemon that did none of it: nothing to undo is no error.
	CleanUp func(ctx context.Context, v *model.VM) error
	// Release gives back what Reserve took, before the row goes; as often as CleanUp.
	Release func(ctx context.Context, v *model.VM) error

	// Restore takes over the VMs that run when a daemon starts, and takes away what
	// others have left.
	Restore func(ctx context.Context, running []*model.VM) error

	// Describe reads what there is to say of all VMs and returns what completes the
	// message of one. It waits for no verb.
	Describe func(ctx context.Context) (func(v *model.VM, out *bangerv1.VM), error)
	// Checks are what doctor asks of a host for it; none when nobody wants it here.
	Checks func(ctx context.Context) []doctor.Check
}

func (c *Capability) has(v *model.VM) bool { return c.Has == nil || c.Has(v) }
