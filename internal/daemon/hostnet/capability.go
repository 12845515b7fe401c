package hostnet

import (
	"context"

	"banger/internal/api/bangerv1"
	"banger/internal/daemon/vmcap"
	"banger/internal/doctor"
	"banger/internal/errdefs"
	agent "banger/internal/guest"
	"banger/internal/hypervisor"
	"banger/internal/logkey"
	"banger/internal/model"
)

// Capability gives VMs of the mode bridge a tap, and an address that goes with their
// row. forAll says that new VMs are of that mode, unless they are asked to be of
// another.
func (s *Service) Capability(forAll bool) vmcap.Capability {
	return vmcap.Capability{
		Name:      "nat",
		Has:       func(v *model.VM) bool { return v.Spec.Net == model.NetBridge },
		Preflight: func(ctx context.Context, _ *model.VM, _ *bangerv1.CreateRequest) error { return s.Check(ctx) },
		Driver: func(can hypervisor.Capabilities) error {
			if !can.Tap {
				return errdefs.Unsupported("it connects no VM to the bridge").WithHint("use --net none, or --driver qemu")
			}
			return nil
		},
		Reserve: func(ctx context.Context, v *model.VM) error { return s.Reserve(ctx, v.ID) },
		Prepare: func(ctx context.Context, v *model.VM) error {
			_, err := s.Attach(ctx, place(v))
			return err
		},
		Machine:  s.plug,
		Guest:    s.tell,
		CleanUp:  func(ctx context.Context, v *model.VM) error { return s.Detach(ctx, v.ID) },
		Restore:  s.takeOver,
		Describe: s.describe,
		Checks:   func(ctx context.Context) []doctor.Check { return s.checksIfWanted(ctx, forAll) },
	}
}

func (s *Service) plug(ctx context.Context, v *model.VM, spec *hypervisor.Spec) error {
	at, err := s.Find(ctx, v.ID)
	spec.Tap = at.Tap
	return err
}

func (s *Service) tell(ctx context.Context, v *model.VM, conf *agent.Configure) error {
	at, err := s.Find(ctx, v.ID)
	if err != nil {
		return err
	}
	conf.Net = &agent.NetConf{
		Address: at.Addresses[0].String(), Gateway: at.Gateways[0].String(), MTU: at.MTU, MAC: at.MAC.String(),
		Search: model.DNSDomain,
	}
	if len(at.Addresses) > 1 {
		conf.Net.Address6, conf.Net.Gateway6 = at.Addresses[1].String(), at.Gateways[1].String()
	}
	for _, gw := range at.Gateways { // they know the names of VMs
		conf.Net.DNS = append(conf.Net.DNS, gw.String())
	}
	return nil
}

// takeOver also takes away what an earlier daemon left on the host when no VM needs
// it any more.
func (s *Service) takeOver(ctx context.Context, running []*model.VM) error {
	if left, err := s.leave(ctx); left || err != nil {
		return err
	}
	vms := make([]VM, 0, len(running))
	for _, v := range running {
		vms = append(vms, place(v))
	}
	lost, err := s.Restore(ctx, vms)
	for _, id := range lost {
		s.Log.WarnContext(ctx, "a vm has lost its tap; it has no network until it is restarted", logkey.VM, id)
	}
	return err
}

func (s *Service) describe(ctx context.Context) (func(v *model.VM, out *bangerv1.VM), error) {
	all, err := s.Addresses(ctx)
	return func(v *model.VM, out *bangerv1.VM) {
		for _, a := range all[v.ID] {
			out.Addresses = append(out.Addresses, a.String())
		}
	}, err
}

// Leave takes everything of ours off the host if no VM that exists is for the bridge;
// else all of it stays, and VMs that run keep their network.
func (s *Service) Leave(ctx context.Context) error {
	_, err := s.leave(ctx)
	return err
}

// leave reports whether there was something, and it was taken away.
func (s *Service) leave(ctx context.Context) (bool, error) {
	r, err := s.Memory.HostNet(ctx)
	if err != nil || !r.Up {
		return false, err
	}
	leases, err := s.Leases.Leases(ctx)
	if err != nil || len(leases) > 0 {
		return false, err
	}
	return true, s.Uninstall(ctx)
}

// checksIfWanted are for a host whose VMs are to be on the bridge. Others have no need
// of what they ask for.
func (s *Service) checksIfWanted(ctx context.Context, forAll bool) []doctor.Check {
	if !s.wanted(ctx, forAll) {
		return nil
	}
	return s.Checks()
}
