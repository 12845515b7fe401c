// Package vmdns answers for the names of VMs: it is the authority for the domain
// vm on the addresses it is given, and for nothing else. By itself it asks nobody, so
// it is no resolver, least of all an open one; on a gateway, what its guests ask of
// other names is put to whoever Listener.Forward is.
//
// A VM called web is web.vm; on a named network lab it is web.lab.vm as well. Who asks
// at a listener for guests is known by its address, and is told of the VMs that it
// sees: those of its own network, or itself alone. For it the others do not exist.
//
// Answers come from a zone that is never changed, only replaced: questions take
// no lock and wait for no verb.
package vmdns

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"banger/internal/errdefs"
	"banger/internal/model"
)

// Domain is what the service is the authority for.
const Domain = model.DNSDomain

// maxAddrs is how many addresses one VM may have.
const maxAddrs = 64

// Host is what is known of one VM.
type Host struct {
	VM       string // its id; see Remove
	Network  string // the named network it is on; empty for none
	Isolated bool   // it is told of VMs, and nothing is asked of others for it
	Addrs    []netip.Addr
}

// Listener is an address to answer on.
type Listener struct {
	Addr netip.AddrPort // of this host; port 0 takes a free one
	// Guests are the addresses of VMs. When it is valid VMs ask here: everybody whose
	// address is not Addr's own counts as one. It also makes their addresses ours to
	// name, on all listeners from then on: one that no VM has is nobody's.
	Guests netip.Prefix
	// Forward finds an answer to what is refused here, for VMs that are known and not
	// isolated, and for this host at Addr: only their network hears it. network is "udp"
	// or "tcp". nil: nobody does. The question of an address in Guests that is no VM's
	// yet is passed over: it comes again, and by then is known.
	Forward func(ctx context.Context, network string, query []byte) ([]byte, error)
}

// Deps are the service's collaborators; Log is required.
type Deps struct {
	Listen []Listener // opened by Restore
	Log    *slog.Logger
}

// Service is the authority of one daemon.
type Service struct {
	Deps
	limit limiter
	zone  atomic.Pointer[zone]

	zoneMu  sync.Mutex // a leaf (rank 40); guards what the next zone is made from
	hosts   map[string]known
	reverse []netip.Prefix // of guests
	serial  uint32

	mu      sync.Mutex // a leaf (rank 40); guards the sockets, so that none opens after Close
	servers map[netip.AddrPort]*server
	closed  bool
}

// New returns a service that has touched nothing yet, with an empty zone.
func New(d Deps) *Service {
	s := &Service{
		Deps: d, hosts: make(map[string]known), servers: make(map[netip.AddrPort]*server),
		// Later than any serial of an earlier daemon's, unless the clock went back.
		serial: uint32(time.Now().Unix()),
	}
	s.zone.Store(newZone(s.hosts, nil, s.serial))
	return s
}

// Restore begins to answer on the addresses of Deps. When it fails some may be
// open; Close closes them.
func (s *Service) Restore(context.Context) error {
	for _, l := range s.Listen {
		if _, err := s.Open(l); err != nil {
			return err
		}
	}
	return nil
}

// Open begins to answer on one more address and returns it, with the port that
// was taken for port 0. Errors say whether the address is bad (invalid_argument),
// not on this host (unavailable), taken (failed_precondition) or privileged
// (permission).
func (s *Service) Open(l Listener) (netip.AddrPort, error) {
	udp, tcp, err := bind(l.Addr)
	if err != nil {
		return netip.AddrPort{}, err
	}
	srv := newServer(s, l, udp, tcp)
	s.mu.Lock()
	closed := s.closed
	if !closed {
		s.servers[srv.addr] = srv
		srv.start()
	}
	s.mu.Unlock()
	if closed {
		return netip.AddrPort{}, errors.Join(errdefs.Unavailable("the daemon is stopping"), srv.close())
	}
	if l.Guests.IsValid() {
		s.change(func() {
			if p := l.Guests.Masked(); !slices.Contains(s.reverse, p) {
				s.reverse = append(slices.Clone(s.reverse), p)
			}
		})
	}
	return srv.addr, nil
}

// Shut stops answering on an address; one that is not open is no error.
func (s *Service) Shut(addr netip.AddrPort) error {
	s.mu.Lock()
	srv := s.servers[addr]
	delete(s.servers, addr)
	s.mu.Unlock()
	if srv == nil {
		return nil
	}
	return srv.close()
}

// Close stops answering and waits until nothing of it is left. It may be called
// again.
func (s *Service) Close() error {
	s.mu.Lock()
	s.closed = true
	servers := slices.Collect(maps.Values(s.servers))
	clear(s.servers)
	s.mu.Unlock()
	var errs []error
	for _, srv := range servers {
		errs = append(errs, srv.close())
	}
	return errors.Join(errs...)
}

// Set makes a VM known, or replaces what is known of it. The name is refused as
// invalid_argument when it is no DNS label, and so is an address nobody can have.
func (s *Service) Set(name string, h Host) error {
	k, err := h.checked(name)
	if err != nil {
		return err
	}
	s.change(func() { s.hosts[name] = k })
	return nil
}

// Remove forgets the VM of that name, if it is still the one with that id: after a
// rename the name may have become another's. One that is not known is no error.
func (s *Service) Remove(name, vmID string) {
	s.change(func() {
		if s.hosts[name].VM == vmID {
			delete(s.hosts, name)
		}
	})
}

// Replace makes these VMs known and forgets all others. When it fails nothing has
// changed.
func (s *Service) Replace(all map[string]Host) error {
	next := make(map[string]known, len(all))
	for name, h := range all {
		k, err := h.checked(name)
		if err != nil {
			return err
		}
		next[name] = k
	}
	s.change(func() { s.hosts = next })
	return nil
}

// change publishes a new zone.
func (s *Service) change(how func()) {
	s.zoneMu.Lock()
	defer s.zoneMu.Unlock()
	how()
	s.serial++
	s.zone.Store(newZone(s.hosts, s.reverse, s.serial))
}

// checked returns h as it is kept: a copy, without repetitions.
func (h Host) checked(name string) (known, error) {
	if err := model.CheckName(name); err != nil {
		return known{}, err
	}
	if h.Network != "" {
		if err := model.CheckNetworkName(h.Network); err != nil {
			return known{}, err
		}
	}
	if len(h.Addrs) > maxAddrs {
		return known{}, errdefs.Invalid("VM %q has %d addresses, more than %d", name, len(h.Addrs), maxAddrs)
	}
	addrs := make([]netip.Addr, 0, len(h.Addrs))
	for _, a := range h.Addrs {
		a = a.Unmap().WithZone("")
		if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() {
			return known{}, errdefs.Invalid("VM %q cannot have the address %v", name, a)
		}
		if !slices.Contains(addrs, a) {
			addrs = append(addrs, a)
		}
	}
	h.Addrs = addrs
	return newKnown(name, h), nil
}
