// Package ports is the service that forwards TCP ports of the host to VMs. A
// connection goes through the VM's agent to a loopback address of the guest, so it
// needs no network, and is the same for every kind of one.
//
// The ports of a VM are listened on while it runs. One that has any, and no address
// of another kind, also has a loopback address of its own, on which its ports have the
// numbers they have in the guest.
package ports

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"

	"banger/internal/errdefs"
	"banger/internal/guest"
	"banger/internal/logkey"
	"banger/internal/model"
)

// maxPorts is how many ports one VM may have, and maxConns how many connections. What
// a guest sends and nobody takes is kept by the multiplexer, up to 4 MiB a connection.
const (
	maxPorts = 256
	maxConns = 128
)

// Store is what the service needs of the database.
type Store interface {
	Ports(ctx context.Context) ([]model.Port, error)
	// AddPorts keeps all of them or none; check sees those there are.
	AddPorts(ctx context.Context, ports []model.Port, check func(all []model.Port) error) error
	RemovePorts(ctx context.Context, ports []model.Port) error
	Loopbacks(ctx context.Context) (map[string]netip.Addr, error)
	// Loopback returns a VM's address; one that has none gets what choose returns.
	Loopback(ctx context.Context, vmID string, choose func(used map[netip.Addr]bool) (netip.Addr, error)) (netip.Addr, error)
}

// Deps are the service's collaborators; all are required.
type Deps struct {
	Store Store
	// Open opens a stream to the agent of a VM that runs, and sends the request.
	Open   func(ctx context.Context, vmID string, req guest.Request) (net.Conn, error)
	Name   func(vmID string) string // of a VM, for people
	Prefix netip.Prefix             // of loopback addresses for VMs
	Log    *slog.Logger
}

// Service forwards the ports of one daemon's VMs. Methods about one VM are called
// under its claim.
type Service struct {
	Deps
	lowest int // port that this user may listen on

	mu     sync.Mutex             // a leaf (rank 40); guards the fields below
	vms    map[string]*forwarding // VMs whose ports are listened on, by id
	closed bool
}

// New returns a service that listens nowhere yet.
func New(d Deps) *Service {
	return &Service{Deps: d, lowest: lowestPort(), vms: make(map[string]*forwarding)}
}

// Close ends all listening and all connections. It may be called again.
func (s *Service) Close() error {
	s.mu.Lock()
	s.closed = true
	all := s.vms
	s.vms = make(map[string]*forwarding)
	s.mu.Unlock()
	for _, f := range all {
		f.close()
	}
	return nil
}

// of are the ports of one VM among all.
func of(vmID string, all []model.Port) (own []model.Port) {
	for _, p := range all {
		if p.VMID == vmID {
			own = append(own, p)
		}
	}
	return own
}

// check says which of these ports a VM cannot have beside all that are forwarded.
func (s *Service) check(ports, all []model.Port) error {
	for i, p := range ports {
		if err := p.Check(); err != nil {
			return err
		}
		for _, o := range ports[:i] {
			if p.Overlaps(o) {
				return errdefs.Invalid("port %s of the host is asked for twice", p.At())
			}
		}
		for _, o := range all {
			if p.Overlaps(o) {
				return errdefs.AlreadyExists("port %s of the host is forwarded to vm %q already", p.At(), s.Name(o.VMID)).
					WithHint("choose another port, or take that one away: banger port rm %s %s", s.Name(o.VMID), o.At())
			}
		}
		if n := len(of(p.VMID, all)) + len(ports); n > maxPorts {
			return errdefs.Exhausted("%d ports for one VM: at most %d are forwarded", n, maxPorts).
				WithHint("take some away (banger port rm), or use --net bridge, which reaches all ports")
		}
	}
	return nil
}

// plan makes sure that a VM can have these ports, and chooses those of the host that
// are left open. It holds none of them.
func (s *Service) plan(ctx context.Context, ports []model.Port) error {
	all, err := s.Store.Ports(ctx)
	if err != nil {
		return err
	}
	if err := s.check(ports, all); err != nil {
		return err
	}
	for i := range ports {
		l, err := bindFree(&ports[i], slices.Concat(all, ports[:i]))
		if err != nil {
			return err
		}
		l.close()
	}
	return nil
}

// keep writes down the ports of a VM and, if it is to have one, its own address.
func (s *Service) keep(ctx context.Context, v *model.VM, ports []model.Port) error {
	if len(ports) == 0 {
		return nil
	}
	err := s.Store.AddPorts(ctx, ports, func(all []model.Port) error { return s.check(ports, all) })
	if err == nil && v.Spec.Net != model.NetBridge {
		_, err = s.Store.Loopback(ctx, v.ID, func(used map[netip.Addr]bool) (netip.Addr, error) {
			return choose(s.Prefix, v.ID, used)
		})
	}
	return err
}

// listen begins to listen on all ports of a VM, without answering yet. With lenient it
// goes on without those that are taken; what is wrong with them is noted.
func (s *Service) listen(ctx context.Context, vmID string, lenient bool) error {
	all, err := s.Store.Ports(ctx)
	if err != nil {
		return err
	}
	f := newForwarding(s, vmID)
	for _, p := range of(vmID, all) {
		l, err := bind(p)
		if err != nil && !lenient {
			f.close()
			return err
		}
		if err != nil {
			s.Log.WarnContext(ctx, "a port is not forwarded", logkey.VM, vmID, logkey.Addr, p.String(), logkey.Err, err)
		}
		f.add(p, l, err)
	}
	if err := s.listenOwn(ctx, f); err != nil {
		f.close()
		return err
	}
	return s.enter(vmID, f)
}

// enter makes f what is forwarded to a VM; nil: nothing.
func (s *Service) enter(vmID string, f *forwarding) error {
	s.mu.Lock()
	old, closed := s.vms[vmID], s.closed
	delete(s.vms, vmID)
	if f != nil && !closed {
		s.vms[vmID] = f
	}
	s.mu.Unlock()
	if old != nil {
		old.close()
	}
	if f != nil && closed {
		f.close()
		return errdefs.Unavailable("the daemon is stopping")
	}
	return nil
}

func (s *Service) lookup(vmID string) *forwarding {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.vms[vmID]
}

// listenOwn makes f listen on the VM's own address on the ports of the guest that are
// forwarded, and on no others. That is a comfort: a number that is not to be had there
// is left out.
func (s *Service) listenOwn(ctx context.Context, f *forwarding) error {
	if len(f.ports()) == 0 && len(f.ownPorts()) == 0 {
		return nil
	}
	all, err := s.Store.Loopbacks(ctx)
	own, ok := all[f.vm]
	if err != nil || !ok {
		return err
	}
	want := make(map[model.Port]bool)
	for _, p := range f.ports() {
		if p.Addr != own && int(p.Guest) >= s.lowest {
			want[model.Port{VMID: f.vm, Addr: own, Host: p.Guest, Guest: p.Guest}] = true
		}
	}
	for _, p := range f.ownPorts() {
		if !want[p] {
			f.remove(p)
		}
		delete(want, p)
	}
	for p := range want {
		l, err := bind(p)
		if err != nil {
			s.Log.WarnContext(ctx, "a vm's own address lacks a port", logkey.VM, f.vm, logkey.Addr, p.At(), logkey.Err, err)
			continue
		}
		f.addOwn(p, l)
	}
	return nil
}

// Add forwards more ports to a VM, from now on if it runs. It returns what it has then.
func (s *Service) Add(ctx context.Context, v *model.VM, running bool, ports []model.Port) (err error) {
	for i := range ports {
		ports[i].VMID = v.ID
	}
	f := s.lookup(v.ID)
	if !running || f == nil {
		if err := s.plan(ctx, ports); err != nil {
			return err
		}
		return s.keep(ctx, v, ports)
	}
	all, err := s.Store.Ports(ctx)
	if err != nil {
		return err
	}
	if err := s.check(ports, all); err != nil {
		return err
	}
	// They are listened on before they are written down: afterwards nothing can fail
	// but the comforts.
	bound := make([]*listener, len(ports))
	defer func() {
		if err != nil {
			for _, l := range bound {
				l.close()
			}
		}
	}()
	for i := range ports {
		if bound[i], err = bindFree(&ports[i], slices.Concat(all, ports[:i])); err != nil {
			return err
		}
	}
	if err := s.keep(ctx, v, ports); err != nil {
		return errors.Join(err, s.Store.RemovePorts(context.WithoutCancel(ctx), ports))
	}
	for i, p := range ports {
		f.add(p, bound[i], nil)
	}
	return s.listenOwn(ctx, f)
}

// Remove stops forwarding ports of a VM. One that it does not have is not_found, and
// then nothing is changed.
func (s *Service) Remove(ctx context.Context, v *model.VM, ports []model.Port) error {
	all, err := s.Store.Ports(ctx)
	if err != nil {
		return err
	}
	own := of(v.ID, all)
	gone := make([]model.Port, 0, len(ports))
	for _, p := range ports {
		i := slices.IndexFunc(own, func(o model.Port) bool { return o.Addr == p.Addr && o.Host == p.Host })
		if i < 0 {
			return errdefs.NotFound("no port %s of the host is forwarded to vm %q", p.At(), v.Name).
				WithHint("see which are: banger port list %s", v.Name)
		}
		gone = append(gone, own[i])
	}
	if err := s.Store.RemovePorts(ctx, gone); err != nil {
		return err
	}
	f := s.lookup(v.ID)
	if f == nil {
		return nil
	}
	for _, p := range gone {
		f.remove(p)
	}
	return s.listenOwn(ctx, f)
}

// Addresses returns the VMs' own addresses, by id.
func (s *Service) Addresses(ctx context.Context) (map[string]netip.Addr, error) {
	return s.Store.Loopbacks(ctx)
}
