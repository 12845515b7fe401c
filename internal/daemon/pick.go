package daemon

import (
	"context"

	"banger/internal/config"
	"banger/internal/daemon/vm"
	"banger/internal/errdefs"
	"banger/internal/hypervisor"
	"banger/internal/model"
)

// picker chooses the driver of new VMs.
type picker struct {
	configured string
	drivers    map[string]hypervisor.Driver
}

// pick takes what was asked for, else what is configured, else what suits this host
// and the VM.
func (p picker) pick(ctx context.Context, want vm.Want) (vm.Choice, error) {
	name, why := want.Driver, "as asked for"
	if name == "" {
		name, why = p.configured, "as configured"
	}
	if name == config.Auto {
		name, why = p.auto(ctx, want)
	}
	d, ok := p.drivers[name]
	if !ok {
		return vm.Choice{}, errdefs.Unsupported("driver %q is not in this build", name).
			WithHint("use --driver qemu or --driver firecracker, or set driver: auto in the config")
	}
	return vm.Choice{Driver: d, Why: why}, nil
}

// auto prefers Firecracker where it runs at all and can do what the VM needs.
func (p picker) auto(ctx context.Context, want vm.Want) (name, why string) {
	info, err := p.drivers[config.DriverFirecracker].Info(ctx)
	switch {
	case err != nil:
		return config.DriverQEMU, err.Error()
	case want.Nested && info.NestedModel == "":
		return config.DriverQEMU, "Firecracker's guests run no VMs of their own"
	case want.Net == model.NetUser && !info.Capabilities.UserNet:
		return config.DriverQEMU, "Firecracker has no user-mode network"
	case want.Net == model.NetBridge && !info.Capabilities.Tap:
		return config.DriverQEMU, "Firecracker is not connected to the bridge by a daemon that is not root"
	}
	return config.DriverFirecracker, "KVM works and Firecracker is installed"
}
