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
	// Admit lets guests ask on these gateways, or no longer. It follows the opening of the
	// port: whoever else had it would be asked. nil: nobody keeps them.
	Admit func(ctx context.Context, gateways []netip.Addr, yes bool) error
	// Wanted are the gateways that doctor is to try. nil: none.
	Wanted func(ctx context.Context) []netip.Addr
	// Forward answers guests' questions about other names; see Listener.
	Forward func(ctx context.Context, network string, query []byte) ([]byte, error)
	Log     *slog.Logger
}

// Names is the capability dns: others find a running VM by its name. Names are a
// comfort: what goes wrong with them is logged, and VMs run without.
type Names struct {
	NamesDeps

	port uint16 // on gateways; another one is for tests

	mu    sync.Mutex                 // a leaf (rank 40); guards the fields below
	known map[string]string          // names that are answered for, by the VM's id
	doors map[netip.AddrPort]opening // how far those are that were tried
	link  int                        // that resolved was told of; 0: none
	told  bool                       // resolved was told, or it was tried
}

// opening is how far an address is that is to be answered on.
type opening int

const (
	underWay opening = iota + 1
	open
	failed // the next VM tries again
)

// NewNames returns a capability that has touched nothing.
func NewNames(d NamesDeps) *Names {
	return &Names{NamesDeps: d, port: dnsPort, known: make(map[string]string), doors: make(map[netip.AddrPort]opening)}
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
		Checks:   n.checks,
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
	host := Host{VM: v.ID, Network: v.Network, Isolated: v.Spec.NoNAT}
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
		n.Names.Remove(old, v.ID) // only now: who asks meanwhile is known all the time
	}
	return nil
}

func (n *Names) forget(vmID string) {
	n.mu.Lock()
	name, ok := n.known[vmID]
	delete(n.known, vmID)
	n.mu.Unlock()
	if ok {
		n.Names.Remove(name, vmID)
	}
}

// begin opens what is neither open nor about to be, and reports whether it did.
func (n *Names) begin(ctx context.Context, l Listener) bool {
	n.mu.Lock()
	was := n.doors[l.Addr]
	if was == underWay || was == open {
		n.mu.Unlock()
		return false
	}
	n.doors[l.Addr] = underWay
	n.mu.Unlock()
	if _, err := n.Names.Open(l); err != nil {
		n.fail(ctx, l.Addr, err, was == failed)
		return false
	}
	return true
}

// fail leaves an address to the next VM. It is said once: VMs are many.
func (n *Names) fail(ctx context.Context, addr netip.AddrPort, err error, again bool) {
	level := slog.LevelWarn
	if again {
		level = slog.LevelDebug
	}
	n.Log.Log(ctx, level, "names of vms are not answered for", logkey.DNS, addr, logkey.Err, err)
	n.settle(addr, failed)
}

func (n *Names) settle(addr netip.AddrPort, is opening) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.doors[addr] = is
}

// answer begins to answer for names where that VM, or the host about it, asks: the
// first VM begins it, and the next where that failed.
func (n *Names) answer(ctx context.Context, at Place) {
	if n.Listen.IsValid() {
		if l := (Listener{Addr: n.Listen}); n.begin(ctx, l) {
			n.settle(l.Addr, open)
		}
	}
	var come []netip.Addr
	for i, gw := range at.Gateways {
		if n.begin(ctx, Listener{Addr: n.door(gw), Forward: n.Forward, Guests: at.Addrs[i].Masked()}) {
			come = append(come, gw)
		}
	}
	n.admit(ctx, come)
	if n.Listen.IsValid() { // else the host is not to know them
		n.tell(ctx, at)
	}
}

func (n *Names) door(gateway netip.Addr) netip.AddrPort { return netip.AddrPortFrom(gateway, n.port) }

// admit lets guests ask on gateways that have just been opened.
func (n *Names) admit(ctx context.Context, gateways []netip.Addr) {
	if len(gateways) == 0 {
		return
	}
	var err error
	if n.Admit != nil {
		err = n.Admit(ctx, gateways, true)
	}
	for _, gw := range gateways {
		if err == nil {
			n.settle(n.door(gw), open)
			continue
		}
		n.fail(ctx, n.door(gw), errors.Join(err, n.Names.Shut(n.door(gw))), false)
	}
}

// tell points resolved at the first gateway that is answered on, once.
func (n *Names) tell(ctx context.Context, at Place) {
	n.mu.Lock()
	i := slices.IndexFunc(at.Gateways, func(gw netip.Addr) bool { return n.doors[n.door(gw)] == open })
	again := n.told || i < 0
	n.told = n.told || i >= 0
	n.mu.Unlock()
	if again {
		return
	}
	device, err := net.InterfaceByName(at.Link)
	there := false
	if err == nil {
		there, err = n.Resolved.Point(ctx, resolved.Link{
			Index: device.Index, Servers: []netip.AddrPort{n.door(at.Gateways[i])}, Domains: []string{Domain},
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

// Close ends the answering, and what resolved was told. Guests may not ask from then on:
// the ports are anybody's.
func (n *Names) Close(ctx context.Context) error {
	n.mu.Lock()
	link := n.link
	n.link = 0
	var gateways []netip.Addr
	for at, is := range n.doors {
		if is == open && at != n.Listen {
			gateways = append(gateways, at.Addr())
		}
	}
	clear(n.doors)
	n.mu.Unlock()
	var errs []error
	if n.Admit != nil && len(gateways) > 0 {
		errs = append(errs, n.Admit(ctx, gateways, false))
	}
	if link != 0 {
		_, err := n.Resolved.Revert(ctx, link)
		errs = append(errs, err)
	}
	return errors.Join(append(slices.Clip(errs), n.Names.Close())...)
}
