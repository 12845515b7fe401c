package hostnet

import (
	"context"
	"math"
	"slices"

	"banger/internal/api/bangerv1"
	"banger/internal/daemon/vmcap"
	"banger/internal/errdefs"
	"banger/internal/model"
)

// maxExposed is how many ports of the host one VM may reach.
const maxExposed = 64

// Reach is what VMs on the bridge may be told to reach. It is a capability of all VMs,
// because those of other modes are to be refused what they cannot have; it comes before
// the one of Capability.
func (s *Service) Reach() vmcap.Capability {
	return vmcap.Capability{
		Name:      "reach",
		Preflight: func(_ context.Context, v *model.VM, req *bangerv1.CreateRequest) error { return parseReach(v, req) },
		Describe: func(context.Context) (func(*model.VM, *bangerv1.VM), error) {
			return describeReach, nil
		},
	}
}

// parseReach takes what a VM may reach from its request.
func parseReach(v *model.VM, req *bangerv1.CreateRequest) error {
	mode := v.Spec.Net
	switch {
	case mode == model.NetBridge:
	case req.NoNat:
		return errdefs.Unsupported("a VM with a network of mode %s cannot do without NAT", mode).
			WithHint("use --net bridge for one that reaches this host only, or --net none for no network at all")
	case len(req.ExposeHost) > 0:
		return errdefs.Unsupported("ports of this host cannot be exposed to a VM with a network of mode %s", mode).
			WithHint("use --net bridge, which needs a daemon that is root")
	}
	var ports []uint16
	for _, port := range req.ExposeHost {
		if port == 0 || port > math.MaxUint16 {
			return errdefs.Invalid("port %d of this host cannot be exposed", port).WithHint("choose one between 1 and 65535")
		}
		ports = append(ports, uint16(port))
	}
	slices.Sort(ports)
	if ports = slices.Compact(ports); len(ports) > maxExposed {
		return errdefs.Invalid("%d ports of this host are to be exposed; one VM may have %d", len(ports), maxExposed).
			WithHint("expose fewer, or one that leads to them all, such as a proxy's")
	}
	v.Spec.NoNAT, v.Spec.ExposeHost = req.NoNat, ports
	return nil
}

func describeReach(v *model.VM, out *bangerv1.VM) {
	out.NoNat = v.Spec.NoNAT
	for _, port := range v.Spec.ExposeHost {
		out.ExposeHost = append(out.ExposeHost, uint32(port))
	}
}

// place is what the network must know of a VM.
func place(v *model.VM) VM {
	return VM{ID: v.ID, UID: v.VMMUID, Network: v.Network, Isolated: v.Spec.NoNAT, Expose: v.Spec.ExposeHost}
}
