package daemon

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"

	"banger/internal/config"
	"banger/internal/daemon/firewalld"
	"banger/internal/daemon/hostnet"
	"banger/internal/daemon/networks"
	"banger/internal/daemon/ports"
	"banger/internal/daemon/resolved"
	"banger/internal/daemon/sysbus"
	"banger/internal/daemon/usernet"
	"banger/internal/daemon/vmcap"
	"banger/internal/daemon/vmdns"
	"banger/internal/errdefs"
	"banger/internal/guest"
	"banger/internal/model"
	"banger/internal/paths"
)

// capStore is what capabilities keep in the database.
type capStore interface {
	hostnet.Memory
	hostnet.Leases
	ports.Store
}

// capabilities are what VMs of this build may have, with the parts they are made of.
type capabilities struct {
	registry *vmcap.Registry
	network  *usernet.Client
	hosts    *hostnet.Service
	ports    *ports.Service
	names    *vmdns.Names
}

// agents opens streams to the agents of VMs that run.
type agents func(ctx context.Context, vmID string, req guest.Request) (net.Conn, error)

// newCapabilities wires them, for a daemon or for doctor, and touches nothing. Each
// comes after those it relies on: names need addresses. open is called when a VM runs.
func newCapabilities(opts Options, conf config.Config, db capStore, nets *networks.Service, open agents, name func(vmID string) string, log *slog.Logger) *capabilities {
	layout := opts.Layout
	network := usernet.New(usernet.Deps{
		Socket: layout.Usernet(), LogFile: layout.UsernetLogFile(),
		Command: append(append([]string(nil), opts.Self...), "usernet", "--socket", layout.Usernet()),
		Log:     log,
	})
	host := hostnet.Configured(conf.Network)
	host.Memory, host.Leases, host.VNet, host.Log = db, db, true, log
	host.Firewalld = firewalld.New(sysbus.Socket)
	hosts := hostnet.New(host)
	forwarded := ports.New(ports.Deps{
		Store: db, Open: open, Name: name, Prefix: conf.Network.Loopback.Std(), Log: log,
	})
	at := places{hosts, forwarded}
	listen, _ := conf.DNS.Addr()
	names := vmdns.NewNames(vmdns.NamesDeps{
		Names: vmdns.New(vmdns.Deps{Log: log}), Resolved: resolved.New(sysbus.Socket), Listen: listen,
		Forward: usernet.NewResolver(usernet.HostResolvers).Resolve,
		Admit:   hosts.AnswerNames,
		Wanted:  func(ctx context.Context) []netip.Addr { return hosts.Gateways(ctx, conf.VM.Net == model.NetBridge) },
		Place:   at.find, Named: at.named, Log: log,
	})
	return &capabilities{
		registry: vmcap.New(
			network.Capability(func(vmID string) string { return filepath.Join(layout.VM(vmID), paths.NetSocket) }),
			nets.Capability(),
			hosts.Reach(),
			hosts.Capability(conf.VM.Net == model.NetBridge),
			forwarded.Capability(),
			names.Capability(),
		),
		network: network, hosts: hosts, ports: forwarded, names: names,
	}
}

// close ends what the capabilities do in this process; what VMs have, they keep. After
// the last VM on the bridge the host is as it was before the first.
func (c *capabilities) close(ctx context.Context) error {
	return errors.Join(c.names.Close(ctx), c.ports.Close(), c.hosts.Leave(ctx), c.hosts.Close(), c.network.Close())
}

// places says where VMs are found by their names: on the bridge, or where their ports
// are forwarded.
type places struct {
	hosts *hostnet.Service
	ports *ports.Service
}

func (p places) find(ctx context.Context, v *model.VM) (vmdns.Place, error) {
	if v.Spec.Net == model.NetBridge {
		at, err := p.hosts.Find(ctx, v.ID)
		return vmdns.Place{Addrs: at.Addresses, Gateways: at.Gateways, Link: at.Bridge}, err
	}
	own, err := p.ports.Addresses(ctx)
	if a, ok := own[v.ID]; ok {
		return vmdns.Place{Addrs: []netip.Prefix{netip.PrefixFrom(a, a.BitLen())}}, err
	}
	return vmdns.Place{}, err
}

func (p places) named(ctx context.Context) (func(v *model.VM) bool, error) {
	own, err := p.ports.Addresses(ctx)
	return func(v *model.VM) bool { return v.Spec.Net == model.NetBridge || own[v.ID].IsValid() }, err
}

// kept is what the database held when it was read once. Nothing that needs more of it
// is called by doctor.
type kept struct {
	ports.Store
	host   model.HostNet
	leases []model.Lease
}

func (k kept) HostNet(context.Context) (model.HostNet, error) { return k.host, nil }

func (k kept) Leases(context.Context) ([]model.Lease, error) { return k.leases, nil }

func (kept) KeepHostNet(context.Context, model.HostNet) error { return errReadOnly }

func (kept) UpdateLease(context.Context, string, func(*model.Lease, []netip.Addr) error) error {
	return errReadOnly
}

func (kept) DropLease(context.Context, string) error { return errReadOnly }

var errReadOnly = errdefs.Internal("doctor changes nothing")
