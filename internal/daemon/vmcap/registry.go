package vmcap

import (
	"context"
	"errors"
	"slices"

	"banger/internal/api/bangerv1"
	"banger/internal/daemon/steps"
	"banger/internal/doctor"
	"banger/internal/errdefs"
	"banger/internal/guest"
	"banger/internal/hypervisor"
	"banger/internal/model"
)

// Registry is the list of capabilities of one daemon. It does not change.
type Registry struct{ list []Capability }

// New returns a registry whose hooks run in the order of the list, and in reverse
// where they undo: a capability may rely on those before it.
func New(list ...Capability) *Registry { return &Registry{slices.Clone(list)} }

// of are the capabilities of a VM.
func (r *Registry) of(v *model.VM) []*Capability {
	var own []*Capability
	for i := range r.list {
		if c := &r.list[i]; c.has(v) {
			own = append(own, c)
		}
	}
	return own
}

// Preflight completes a new VM from its request and says what keeps it from being
// made. Nothing was changed before and is after.
func (r *Registry) Preflight(ctx context.Context, v *model.VM, req *bangerv1.CreateRequest) error {
	for i := range r.list {
		c := &r.list[i]
		if c.Preflight == nil || !c.has(v) { // as those before it have left it
			continue
		}
		if err := c.Preflight(ctx, v, req); err != nil {
			return err
		}
	}
	return nil
}

// Image completes a new VM from the image that it is to have.
func (r *Registry) Image(ctx context.Context, v *model.VM, req *bangerv1.CreateRequest, image *model.ImageConfig) error {
	for _, c := range r.of(v) {
		if c.Image == nil {
			continue
		}
		if err := c.Image(ctx, v, req, image); err != nil {
			return err
		}
	}
	return nil
}

// Driver says what a driver that can do this lacks for a VM.
func (r *Registry) Driver(v *model.VM, can hypervisor.Capabilities) error {
	for _, c := range r.of(v) {
		if c.Driver == nil {
			continue
		}
		if err := c.Driver(can); err != nil {
			return err
		}
	}
	return nil
}

// ReserveSteps follow the one that writes the row of a VM.
func (r *Registry) ReserveSteps(v *model.VM) (list []steps.Step[*model.VM]) {
	for _, c := range r.of(v) {
		if c.Reserve != nil {
			list = append(list, steps.Step[*model.VM]{Name: "reserve " + c.Name, Do: c.Reserve, Undo: c.Release})
		}
	}
	return list
}

// PrepareSteps come before the VMM is started. Undoing them undoes what is done for
// the VM later as well, for which they are there even where nothing is to prepare.
func (r *Registry) PrepareSteps(v *model.VM) (list []steps.Step[*model.VM]) {
	for _, c := range r.of(v) {
		if c.Prepare == nil && c.CleanUp == nil {
			continue
		}
		step := steps.Step[*model.VM]{Name: "prepare " + c.Name, Do: c.Prepare, Undo: c.CleanUp}
		if step.Do == nil {
			step.Do = func(context.Context, *model.VM) error { return nil }
		}
		list = append(list, step)
	}
	return list
}

// StartedSteps follow the start of the VMM.
func (r *Registry) StartedSteps(v *model.VM) []steps.Step[*model.VM] {
	return r.forward(v, "connect ", func(c *Capability) hook { return c.Started })
}

// RunningSteps come when the guest is configured.
func (r *Registry) RunningSteps(v *model.VM) []steps.Step[*model.VM] {
	return r.forward(v, "publish ", func(c *Capability) hook { return c.Running })
}

// CleanUpSteps follow the end of the VMM. They have no undo.
func (r *Registry) CleanUpSteps(v *model.VM) []steps.Step[*model.VM] {
	return r.backward(v, "clean up ", func(c *Capability) hook { return c.CleanUp })
}

// ReleaseSteps come before the row of a VM is deleted. They have no undo.
func (r *Registry) ReleaseSteps(v *model.VM) []steps.Step[*model.VM] {
	return r.backward(v, "release ", func(c *Capability) hook { return c.Release })
}

// hook is one that is about a VM and nothing else.
type hook func(ctx context.Context, v *model.VM) error

func (r *Registry) forward(v *model.VM, verb string, of func(*Capability) hook) (list []steps.Step[*model.VM]) {
	for _, c := range r.of(v) {
		if do := of(c); do != nil {
			list = append(list, steps.Step[*model.VM]{Name: verb + c.Name, Do: do})
		}
	}
	return list
}

func (r *Registry) backward(v *model.VM, verb string, of func(*Capability) hook) []steps.Step[*model.VM] {
	list := r.forward(v, verb, of)
	slices.Reverse(list)
	return list
}

// Machine completes what the VMM of a VM is told.
func (r *Registry) Machine(ctx context.Context, v *model.VM, spec *hypervisor.Spec) error {
	for _, c := range r.of(v) {
		if c.Machine == nil {
			continue
		}
		if err := c.Machine(ctx, v, spec); err != nil {
			return errdefs.Wrap(err, "plan the machine for %s", c.Name)
		}
	}
	return nil
}

// Guest completes what the guest of a VM is told.
func (r *Registry) Guest(ctx context.Context, v *model.VM, conf *guest.Configure) error {
	for _, c := range r.of(v) {
		if c.Guest == nil {
			continue
		}
		if err := c.Guest(ctx, v, conf); err != nil {
			return errdefs.Wrap(err, "tell the guest of %s", c.Name)
		}
	}
	return nil
}

// Changed is to be called when a running VM has become what v is. It goes on after an
// error.
func (r *Registry) Changed(ctx context.Context, v *model.VM) error {
	var errs []error
	for _, c := range r.of(v) {
		if c.Changed != nil {
			errs = append(errs, errdefs.Wrap(c.Changed(ctx, v), "change %s", c.Name))
		}
	}
	return errors.Join(errs...)
}

// Restore hands every capability those of the running VMs that have it, though there
// be none. It goes on after an error.
func (r *Registry) Restore(ctx context.Context, running []*model.VM) error {
	var errs []error
	for i := range r.list {
		c := &r.list[i]
		if c.Restore == nil {
			continue
		}
		var own []*model.VM
		for _, v := range running {
			if c.has(v) {
				own = append(own, v)
			}
		}
		errs = append(errs, errdefs.Wrap(c.Restore(ctx, own), "restore %s", c.Name))
	}
	return errors.Join(errs...)
}

// Describe returns what completes the messages of VMs, true at this moment.
func (r *Registry) Describe(ctx context.Context) (func(v *model.VM, out *bangerv1.VM), error) {
	type part struct {
		of    *Capability
		write func(v *model.VM, out *bangerv1.VM)
	}
	var parts []part
	for i := range r.list {
		c := &r.list[i]
		if c.Describe == nil {
			continue
		}
		write, err := c.Describe(ctx)
		if err != nil {
			return nil, errdefs.Wrap(err, "look up %s", c.Name)
		}
		parts = append(parts, part{c, write})
	}
	return func(v *model.VM, out *bangerv1.VM) {
		for _, p := range parts {
			if p.of.has(v) {
				p.write(v, out)
			}
		}
	}, nil
}

// Checks are what doctor asks of a host for all capabilities.
func (r *Registry) Checks(ctx context.Context) (list []doctor.Check) {
	for i := range r.list {
		if checks := r.list[i].Checks; checks != nil {
			list = append(list, checks(ctx)...)
		}
	}
	return list
}
