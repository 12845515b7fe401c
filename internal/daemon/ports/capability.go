package ports

import (
	"context"
	"errors"
	"slices"

	"banger/internal/api/bangerv1"
	"banger/internal/daemon/vmcap"
	"banger/internal/errdefs"
	"banger/internal/model"
)

// Capability forwards ports to VMs that have been given some.
func (s *Service) Capability() vmcap.Capability {
	return vmcap.Capability{
		Name: "ports",
		Preflight: func(ctx context.Context, v *model.VM, req *bangerv1.CreateRequest) (err error) {
			if v.Ports, err = fromWire(v.ID, req.Ports); err != nil || len(v.Ports) == 0 {
				return err
			}
			return s.plan(ctx, v.Ports)
		},
		Image: func(ctx context.Context, v *model.VM, req *bangerv1.CreateRequest, image *model.ImageConfig) error {
			if !req.PublishAll {
				return nil
			}
			return s.expose(ctx, v, image)
		},
		Reserve: func(ctx context.Context, v *model.VM) error { return s.keep(ctx, v, v.Ports) },
		// They are had before the VMM is started: one that is taken is told at once.
		Prepare: func(ctx context.Context, v *model.VM) error { return s.listen(ctx, v.ID, false) },
		Running: func(_ context.Context, v *model.VM) error {
			if f := s.lookup(v.ID); f != nil {
				f.serve()
			}
			return nil
		},
		CleanUp: func(_ context.Context, v *model.VM) error { return s.enter(v.ID, nil) },
		Restore: func(ctx context.Context, running []*model.VM) error {
			var errs []error
			for _, v := range running {
				err := s.listen(ctx, v.ID, true)
				if err == nil {
					s.lookup(v.ID).serve()
				}
				errs = append(errs, err)
			}
			return errors.Join(errs...)
		},
		Describe: s.describe,
	}
}

// expose adds the ports that an image exposes, but for those that are forwarded as
// somebody said, to what a new VM is to have.
func (s *Service) expose(ctx context.Context, v *model.VM, image *model.ImageConfig) error {
	exposed, _, err := image.Exposed()
	if err != nil {
		return err
	}
	for _, guest := range exposed {
		if !slices.ContainsFunc(v.Ports, func(p model.Port) bool { return p.Guest == guest }) {
			v.Ports = append(v.Ports, model.Port{VMID: v.ID, Guest: guest})
		}
	}
	return s.plan(ctx, v.Ports)
}

func (s *Service) describe(ctx context.Context) (func(v *model.VM, out *bangerv1.VM), error) {
	ports, err := s.Store.Ports(ctx)
	if err != nil {
		return nil, err
	}
	own, err := s.Store.Loopbacks(ctx)
	return func(v *model.VM, out *bangerv1.VM) {
		out.Ports = s.toWire(v.ID, ports)
		if a, ok := own[v.ID]; ok {
			out.Addresses = append(out.Addresses, a.String())
		}
	}, err
}

// toWire turns the ports of a VM among all into messages.
func (s *Service) toWire(vmID string, all []model.Port) (out []*bangerv1.Port) {
	f := s.lookup(vmID)
	for _, p := range of(vmID, all) {
		m := &bangerv1.Port{HostPort: uint32(p.Host), GuestPort: uint32(p.Guest)}
		if p.Addr.IsValid() {
			m.Address = p.Addr.String()
		}
		if f != nil {
			m.Problem = f.problem(p)
		}
		out = append(out, m)
	}
	return out
}

// fromWire turns messages into ports of a VM.
func fromWire(vmID string, list []*bangerv1.Port) ([]model.Port, error) {
	var out []model.Port
	for _, m := range list {
		p := model.Port{VMID: vmID, Host: uint16(m.HostPort), Guest: uint16(m.GuestPort)}
		if m.HostPort > 65535 || m.GuestPort > 65535 {
			return nil, errdefs.Invalid("ports go up to 65535, not %d", max(m.HostPort, m.GuestPort))
		}
		if m.Address != "" {
			var err error
			if p.Addr, err = parseAddr(m.Address); err != nil {
				return nil, err
			}
		}
		out = append(out, p)
	}
	return out, nil
}
