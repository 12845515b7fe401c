// Package networks is the service of named networks: which there are. That a network
// means something is hostnet's business and vmdns's, which hear of it with each VM that
// is on one; a network without VMs is a row and nothing on the host.
package networks

import (
	"context"
	"slices"

	"connectrpc.com/connect"

	"banger/internal/api"
	"banger/internal/api/bangerv1"
	"banger/internal/api/bangerv1/bangerv1connect"
	"banger/internal/daemon/vmcap"
	"banger/internal/errdefs"
	"banger/internal/model"
)

// Store keeps the networks.
type Store interface {
	ListNetworks(ctx context.Context) ([]model.Network, error)
	// CreateNetwork errors with class already_exists when there is one of that name.
	CreateNetwork(ctx context.Context, name string) error
	// RemoveNetwork errors with class not_found or, when VMs are on it,
	// failed_precondition.
	RemoveNetwork(ctx context.Context, name string) error
	// NeedNetwork errors with class not_found when there is no network of that name.
	NeedNetwork(ctx context.Context, name string) error
}

// Service serves NetworkService. It has no state but the store's: SQLite orders what
// happens at the same time, a create of a VM on a network that is removed included.
type Service struct{ store Store }

var _ bangerv1connect.NetworkServiceHandler = (*Service)(nil)

// New returns the service.
func New(store Store) *Service { return &Service{store} }

// Capability puts new VMs on the network that they ask for. It comes before those that
// go by the mode of a VM's network.
func (s *Service) Capability() vmcap.Capability {
	return vmcap.Capability{
		Name:      "network",
		Preflight: s.join,
		Describe: func(context.Context) (func(*model.VM, *bangerv1.VM), error) {
			return func(v *model.VM, out *bangerv1.VM) { out.Network = v.Network }, nil
		},
	}
}

func (s *Service) join(ctx context.Context, v *model.VM, req *bangerv1.CreateRequest) error {
	if req.Network == "" {
		return nil
	}
	if mode := model.Net(req.Net); mode != "" && mode != model.NetBridge {
		return errdefs.Invalid("a VM with a network of mode %s cannot be on network %q", mode, req.Network).
			WithHint("leave --net %s out: named networks are of the bridge", mode)
	}
	if err := model.CheckNetworkName(req.Network); err != nil {
		return err
	}
	v.Network, v.Spec.Net = req.Network, model.NetBridge
	return s.store.NeedNetwork(ctx, req.Network)
}

// List implements NetworkService.
func (s *Service) List(ctx context.Context, _ *connect.Request[bangerv1.ListRequest]) (*connect.Response[bangerv1.NetworkList], error) {
	all, err := s.store.ListNetworks(ctx)
	if err != nil {
		return nil, api.ToConnect(err)
	}
	out := &bangerv1.NetworkList{}
	for _, n := range all {
		out.Networks = append(out.Networks, wire(n))
	}
	return connect.NewResponse(out), nil
}

// Get implements NetworkService.
func (s *Service) Get(ctx context.Context, req *connect.Request[bangerv1.NetworkRef]) (*connect.Response[bangerv1.Network], error) {
	// This one says which there are.
	if err := s.store.NeedNetwork(ctx, req.Msg.Name); err != nil {
		return nil, api.ToConnect(err)
	}
	all, err := s.store.ListNetworks(ctx)
	if err != nil {
		return nil, api.ToConnect(err)
	}
	i := slices.IndexFunc(all, func(n model.Network) bool { return n.Name == req.Msg.Name })
	if i < 0 {
		return nil, api.ToConnect(errdefs.NotFound("network %q has just been removed", req.Msg.Name))
	}
	return connect.NewResponse(wire(all[i])), nil
}

func wire(n model.Network) *bangerv1.Network { return &bangerv1.Network{Name: n.Name, Vms: n.VMs} }

// Create implements NetworkService.
func (s *Service) Create(ctx context.Context, req *connect.Request[bangerv1.NetworkRef]) (*connect.Response[bangerv1.Network], error) {
	err := model.CheckNetworkName(req.Msg.Name)
	if err == nil {
		err = s.store.CreateNetwork(ctx, req.Msg.Name)
	}
	if err != nil {
		return nil, api.ToConnect(err)
	}
	return connect.NewResponse(&bangerv1.Network{Name: req.Msg.Name}), nil
}

// Remove implements NetworkService.
func (s *Service) Remove(ctx context.Context, req *connect.Request[bangerv1.NetworkRef]) (*connect.Response[bangerv1.Empty], error) {
	if err := s.store.RemoveNetwork(ctx, req.Msg.Name); err != nil {
		return nil, api.ToConnect(err)
	}
	return connect.NewResponse(&bangerv1.Empty{}), nil
}
