package vmdns

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"

	"banger/internal/api/bangerv1"
	"banger/internal/daemon/resolved"
	"banger/internal/daemon/vmcap"
	"banger/internal/doctor"
	"banger/internal/logkey"
	"banger/internal/model"
)

// dnsPort is where guests ask for names, on their gateways.
const dnsPort = 53

// Place is where a VM is found.
type Place struct {
	Addrs    []netip.Prefix // each with the network it is on; none: the VM gets no name
	Gateways []netip.Addr   // of the networks of the first so many Addrs; guests ask these
	Link     string         // device of the host with the gateways
}

// NamesDeps are what the capability works with. Names and Log are required.
type NamesDeps struct {
	Names    *Service
	Resolved *resolved.Manager
	// Place says where a VM is found; the zero Place: nowhere.
	Place func(ctx context.Context, v *model.VM) (Place, error)
	// Named reads which VMs, though they may not run, are found somewhere when they do.
	Named  func(ctx context.Context) (func(v *model.VM) bool, error)
	Listen netip.AddrPort // for the host's own questions; invalid: nowhere
	// Forward answers guests' questions about other names; see Listener.
	Forward func(ctx context.Context, network string, query []byte) ([]byte, error)
	Log     *slog.Logger
}

// Names is the capability dns: others find a running VM by its name. Names are a
// comfort: what goes wrong with them is logged, and VMs run without.
type Names struct {
	NamesDeps

	mu     sync.Mutex              // a leaf (rank 40); guards the fields below
	known  map[string]string       // names that are answered for, by the VM's id
	opened map[netip.AddrPort]bool // addresses that are answered on, or were tried
	link   int                     // that resolved was told of; 0: none
	told   bool                    // resolved was told, or it was tried
}

// NewNames returns a capability that has touched nothing.
func NewNames(d NamesDeps) *Names {
	return &Names{NamesDeps: d, known: make(map[string]string), opened: make(map[netip.AddrPort]bool)}
}

// Capability returns the hooks.
func (n *Names) Capability() vmcap.Capability {
	return vmcap.Capability{
		Name: "dns",
		Prepare: func(ctx context.Context, v *model.VM) error {
			if at, ok := n.find(ctx, v); ok {
				n.answer(ctx, at) // guests ask while they boot
			}
			return nil
		},
		Running: n.announce,
		Changed: n.announce,
		CleanUp: func(_ context.Context, v *model.VM) error {
			n.forget(v.ID)
			return nil
		},
		Restore: func(ctx context.Context, running []*model.VM) error {
			for _, v := range running {
				_ = n.announce(ctx, v)
			}
			return nil
		},
		Describe: n.describe,
		Checks: func(context.Context) []doctor.Check {
			if !n.Listen.IsValid() {
				return nil
			}
			return []doctor.Check{Check(n.Listen)}
		},
	}
}

// find is the place of a VM that can have a name.
func (n *Names) find(ctx context.Context, v *model.VM) (Place, bool) {
	at, err := n.Place(ctx, v)
	if err != nil {
		n.Log.WarnContext(ctx, "a vm has no name on the network", logkey.VM, v.ID, logkey.Err, err)
	}
	return at, err == nil && len(at.Addrs) > 0
}

// announce makes a VM known by its name, and by no other it had before.
func (n *Names) announce(ctx context.Context, v *model.VM) error {
	at, ok := n.find(ctx, v)
	if !ok {
		n.forget(v.ID)
		return nil
	}
	n.answer(ctx, at)
	host := Host{Network: v.Network, Isolated: v.Spec.NoNAT}
	for _, a := range at.Addrs {
		host.Addrs = append(host.Addrs, a.Addr())
	}
	if err := n.Names.Set(v.Name, host); err != nil {
		n.Log.WarnContext(ctx, "a vm has no name on the network", logkey.VM, v.ID, logkey.Err, err)
		n.forget(v.ID)
		return nil
	}
	n.mu.Lock()
	old := n.known[v.ID]
	n.known[v.ID] = v.Name
	n.mu.Unlock()
	if old != "" && old != v.Name {
		n.Names.Remove(old) // only now: who asks meanwhile is known all the time
	}
	return nil
}

func (n *Names) forget(vmID string) {
	n.mu.Lock()
	name, ok := n.known[vmID]
	delete(n.known, vmID)
	n.mu.Unlock()
	if ok {
		n.Names.Remove(name)
	}
}

// first reports whether nobody has tried to answer there before.
func (n *Names) first(addr netip.AddrPort) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	again := n.opened[addr]
	n.opened[addr] = true
	return !again
}

// answer begins to answer for names where that VM, or the host about it, asks: the
// first VM begins it.
func (n *Names) answer(ctx context.Context, at Place) {
	var listeners []Listener
	if n.Listen.IsValid() {
		listeners = append(listeners, Listener{Addr: n.Listen})
	}
	for i, gw := range at.Gateways {
		listeners = append(listeners, Listener{
			Addr: netip.AddrPortFrom(gw, dnsPort), Forward: n.Forward, Guests: at.Addrs[i].Masked(),
		})
	}
	for _, l := range listeners {
		if !n.first(l.Addr) {
			continue
		}
		if _, err := n.Names.Open(l); err != nil {
			n.Log.WarnContext(ctx, "names of vms are not answered for", logkey.DNS, l.Addr, logkey.Err, err)
		}
	}
	if n.Listen.IsValid() && len(at.Gateways) > 0 { // else the host is not to know them
		n.tell(ctx, at)
	}
}

// tell points resolved at the gateway, once.
func (n *Names) tell(ctx context.Context, at Place) {
	n.mu.Lock()
	again := n.told
	n.told = true
	n.mu.Unlock()
	if again {
		return
	}
	device, err := net.InterfaceByName(at.Link)
	there := false
	if err == nil {
		there, err = n.Resolved.Point(ctx, resolved.Link{
			Index: device.Index, Servers: []netip.AddrPort{netip.AddrPortFrom(at.Gateways[0], dnsPort)}, Domains: []string{Domain},
		})
	}
	if err != nil {
		n.Log.WarnContext(ctx, "systemd-resolved does not know the names of vms", logkey.Err, err)
	}
	if there {
		n.mu.Lock()
		n.link = device.Index
		n.mu.Unlock()
	}
}

// describe says the name that a VM has while it runs, whether it does or not.
func (n *Names) describe(ctx context.Context) (func(v *model.VM, out *bangerv1.VM), error) {
	named, err := n.Named(ctx)
	return func(v *model.VM, out *bangerv1.VM) {
		if named(v) {
			out.DnsName = v.Name + "." + Domain
		}
	}, err
}

// Close ends the answering, and what resolved was told.
func (n *Names) Close(ctx context.Context) error {
	n.mu.Lock()
	link := n.link
	n.link = 0
	n.mu.Unlock()
	var errs []error
	if link != 0 {
		_, err := n.Resolved.Revert(ctx, link)
		errs = append(errs, err)
	}
	return errors.Join(append(slices.Clip(errs), n.Names.Close())...)
}
