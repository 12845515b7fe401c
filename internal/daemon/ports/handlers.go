package ports

import (
	"context"
	"net/netip"

	"connectrpc.com/connect"

	"banger/internal/api"
	"banger/internal/api/bangerv1"
	"banger/internal/api/bangerv1/bangerv1connect"
	"banger/internal/errdefs"
	"banger/internal/model"
)

// VMs changes what a VM has, under its claim.
type VMs interface {
	Alter(ctx context.Context, ref, action string, change func(ctx context.Context, v *model.VM, running bool) error) error
}

// Handlers serves PortService.
type Handlers struct {
	s   *Service
	vms VMs
}

var _ bangerv1connect.PortServiceHandler = Handlers{}

// Handlers returns the Connect handlers of the service.
func (s *Service) Handlers(vms VMs) Handlers { return Handlers{s, vms} }

// Add implements PortService.
func (h Handlers) Add(ctx context.Context, req *connect.Request[bangerv1.PortsRequest]) (*connect.Response[bangerv1.PortList], error) {
	ports, err := fromWire("", req.Msg.Ports)
	if err == nil && len(ports) == 0 {
		err = errdefs.Invalid("no port is named")
	}
	if err != nil {
		return nil, api.ToConnect(err)
	}
	return h.alter(ctx, req.Msg.Ref, "port add", func(ctx context.Context, v *model.VM, running bool) error {
		return h.s.Add(ctx, v, running, ports)
	})
}

// Remove implements PortService.
func (h Handlers) Remove(ctx context.Context, req *connect.Request[bangerv1.PortsRequest]) (*connect.Response[bangerv1.PortList], error) {
	ports, err := fromWire("", req.Msg.Ports)
	if err != nil {
		return nil, api.ToConnect(err)
	}
	return h.alter(ctx, req.Msg.Ref, "port rm", func(ctx context.Context, v *model.VM, _ bool) error {
		return h.s.Remove(ctx, v, ports)
	})
}

// alter makes a change and answers with what is forwarded then.
func (h Handlers) alter(ctx context.Context, ref, action string, change func(ctx context.Context, v *model.VM, running bool) error) (*connect.Response[bangerv1.PortList], error) {
	var id string
	err := h.vms.Alter(ctx, ref, action, func(ctx context.Context, v *model.VM, running bool) error {
		id = v.ID
		return change(ctx, v, running)
	})
	if err != nil {
		return nil, api.ToConnect(err)
	}
	all, err := h.s.Store.Ports(ctx)
	if err != nil {
		return nil, api.ToConnect(err)
	}
	return connect.NewResponse(&bangerv1.PortList{Ports: h.s.toWire(id, all)}), nil
}

func parseAddr(text string) (netip.Addr, error) {
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return addr, errdefs.Invalid("%q is not an IP address", text).WithHint("leave it out to listen on the loopback")
	}
	return addr, nil
}
