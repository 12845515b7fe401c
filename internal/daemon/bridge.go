package daemon

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"

	"banger/internal/daemon/hostnet"
	"banger/internal/daemon/resolved"
	"banger/internal/daemon/vmdns"
	"banger/internal/guest"
	"banger/internal/logkey"
)

// dnsPort is where guests ask for names, on their gateways.
const dnsPort = 53

// bridge is what the VM service asks for of the host's network: places on it, and
// the names of those who have one. Names are a comfort: what goes wrong with them is
// logged, and VMs run without.
type bridge struct {
	hosts    *hostnet.Service
	names    *vmdns.Service
	resolved *resolved.Manager
	listen   netip.AddrPort                                                          // for the host's own questions; invalid: nowhere
	forward  func(ctx context.Context, network string, query []byte) ([]byte, error) // for guests' questions about other names
	log      *slog.Logger

	answering sync.Once // the first VM begins it: see answer

	mu    sync.Mutex        // a leaf (rank 40); guards the fields below
	known map[string]string // names that are answered for, by the VM's id
	link  int               // of the bridge, once resolved was told of it; 0: it was not
}

func (b *bridge) Check(ctx context.Context) error { return b.hosts.Check(ctx) }

func (b *bridge) Reserve(ctx context.Context, vmID string) error { return b.hosts.Reserve(ctx, vmID) }

func (b *bridge) Addresses(ctx context.Context) (map[string][]netip.Addr, error) {
	return b.hosts.Addresses(ctx)
}

func (b *bridge) Attach(ctx context.Context, vmID string) (*os.File, error) {
	at, err := b.hosts.Attach(ctx, hostnet.VM{ID: vmID})
	if err != nil {
		return nil, err
	}
	b.answering.Do(func() { b.answer(ctx, at) })
	return at.Open()
}

func (b *bridge) Conf(ctx context.Context, vmID string) (*guest.NetConf, error) {
	at, err := b.hosts.Find(ctx, vmID)
	if err != nil {
		return nil, err
	}
	conf := &guest.NetConf{
		Address: at.Addresses[0].String(), Gateway: at.Gateways[0].String(), MTU: at.MTU, MAC: at.MAC.String(),
	}
	if len(at.Addresses) > 1 {
		conf.Address6, conf.Gateway6 = at.Addresses[1].String(), at.Gateways[1].String()
	}
	for _, gw := range at.Gateways {
		conf.DNS = append(conf.DNS, gw.String())
	}
	return conf, nil
}

func (b *bridge) Announce(ctx context.Context, vmID, name string) {
	at, err := b.hosts.Find(ctx, vmID)
	if err == nil {
		b.forget(vmID)
		err = b.names.Set(name, hostOf(at))
	}
	if err != nil {
		b.log.WarnContext(ctx, "a vm has no name on the network", logkey.VM, vmID, logkey.Err, err)
		return
	}
	b.mu.Lock()
	b.known[vmID] = name
	b.mu.Unlock()
}

func hostOf(at hostnet.Attachment) (h vmdns.Host) {
	for _, a := range at.Addresses {
		h.Addrs = append(h.Addrs, a.Addr())
	}
	return h
}

func (b *bridge) forget(vmID string) {
	b.mu.Lock()
	name, ok := b.known[vmID]
	delete(b.known, vmID)
	b.mu.Unlock()
	if ok {
		b.names.Remove(name)
	}
}

func (b *bridge) Detach(ctx context.Context, vmID string) error {
	b.forget(vmID)
	return b.hosts.Detach(ctx, vmID)
}

// Restore also takes away what an earlier daemon left on the host when no VM needs
// it any more.
func (b *bridge) Restore(ctx context.Context, running map[string]string) error {
	if left, err := b.leave(ctx); left || err != nil {
		return err
	}
	vms := make([]hostnet.VM, 0, len(running))
	for id := range running {
		vms = append(vms, hostnet.VM{ID: id})
	}
	lost, err := b.hosts.Restore(ctx, vms)
	for _, id := range lost {
		b.log.WarnContext(ctx, "a vm has lost its tap; it has no network until it is restarted", logkey.VM, id)
	}
	for id, name := range running {
		at, ferr := b.hosts.Find(ctx, id)
		if ferr != nil {
			continue // it is among the lost
		}
		b.answering.Do(func() { b.answer(ctx, at) })
		b.Announce(ctx, id, name)
	}
	return err
}

// answer begins to answer for names: to the host, which resolved is told of, and to
// guests, which ask their gateways.
func (b *bridge) answer(ctx context.Context, at hostnet.Attachment) {
	var listeners []vmdns.Listener
	if b.listen.IsValid() {
		listeners = append(listeners, vmdns.Listener{Addr: b.listen})
	}
	for i, gw := range at.Gateways {
		listeners = append(listeners, vmdns.Listener{
			Addr: netip.AddrPortFrom(gw, dnsPort), Forward: b.forward, Guests: at.Addresses[i].Masked(),
		})
	}
	for _, l := range listeners {
		if _, err := b.names.Open(l); err != nil {
			b.log.WarnContext(ctx, "names of vms are not answered for", logkey.DNS, l.Addr, logkey.Err, err)
		}
	}
	if !b.listen.IsValid() {
		return // the host is not to know them
	}
	device, err := net.InterfaceByName(b.hosts.Bridge)
	told := false
	if err == nil {
		told, err = b.resolved.Point(ctx, resolved.Link{
			Index: device.Index, Servers: []netip.AddrPort{netip.AddrPortFrom(at.Gateways[0], dnsPort)}, Domains: []string{vmdns.Domain},
		})
	}
	if err != nil {
		b.log.WarnContext(ctx, "systemd-resolved does not know the names of vms", logkey.Err, err)
	}
	if told {
		b.mu.Lock()
		b.link = device.Index
		b.mu.Unlock()
	}
}

// leave takes everything of ours off the host if it is there and no VM that exists
// is for the bridge; it reports whether it did.
func (b *bridge) leave(ctx context.Context) (bool, error) {
	r, err := b.hosts.Memory.HostNet(ctx)
	if err != nil || !r.Up {
		return false, err
	}
	leases, err := b.hosts.Leases.Leases(ctx)
	if err != nil || len(leases) > 0 {
		return false, err
	}
	return true, b.hosts.Uninstall(ctx)
}

// Close ends the answering. While VMs for the bridge exist it stays, and those that
// run keep their network; after the last one the host is as it was before the first.
func (b *bridge) Close(ctx context.Context) error {
	b.mu.Lock()
	link := b.link
	b.mu.Unlock()
	var errs []error
	if link != 0 {
		_, err := b.resolved.Revert(ctx, link)
		errs = append(errs, err)
	}
	errs = append(errs, b.names.Close())
	_, err := b.leave(ctx)
	return errors.Join(append(errs, err, b.hosts.Close())...)
}
