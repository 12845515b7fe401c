package hostnet

import (
	"context"
	"net/netip"
	"os"
	"slices"

	"banger/internal/daemon/nat"
	"banger/internal/errdefs"
)

// dnsPort is where the host answers guests' questions for names, on the gateways.
const dnsPort = 53

// AnswerNames lets guests ask for names on these gateways, or no longer. They may not
// before: who has the port of all addresses otherwise, and was not asked for guests,
// would be reached instead.
func (s *Service) AnswerNames(ctx context.Context, gateways []netip.Addr, yes bool) error {
	if err := claim(ctx, s.hostRules); err != nil {
		return err
	}
	defer func() { <-s.hostRules }()
	s.mu.Lock()
	p, guests, was := s.plan, s.guests, s.names
	s.mu.Unlock()
	now := slices.DeleteFunc(slices.Clone(was), func(gw netip.Addr) bool { return slices.Contains(gateways, gw) })
	if yes {
		now = append(now, gateways...)
	}
	if p != nil && len(now) != len(was) {
		if err := tableFor(p.Bridge).Sync(p.state(guests, now)); err != nil {
			return errdefs.Wrap(err, "let guests ask for names")
		}
	}
	s.mu.Lock()
	s.names = now
	s.mu.Unlock()
	return nil
}

// services are what all guests reach where names are answered.
func services(names []netip.Addr) []nat.Service {
	var all []nat.Service
	for _, gw := range names {
		for _, udp := range []bool{false, true} {
			all = append(all, nat.Service{Addr: netip.AddrPortFrom(gw, dnsPort), UDP: udp})
		}
	}
	return all
}

// Gateways are where guests would ask for names, for doctor; forAll is as in Capability.
// There are none where no VM is to be on the bridge or can be. It changes nothing.
func (s *Service) Gateways(ctx context.Context, forAll bool) []netip.Addr {
	if !s.wanted(ctx, forAll) {
		return nil
	}
	p, err := s.prepare(ctx)
	if err != nil {
		return nil // which is another check's to say
	}
	if !p.hasIPv6() {
		return p.gateways()[:1]
	}
	return p.gateways()
}

// wanted says whether VMs of this host are to be on the bridge: by default, or one that
// is there.
func (s *Service) wanted(ctx context.Context, forAll bool) bool {
	if os.Geteuid() != 0 || forAll {
		return os.Geteuid() == 0
	}
	// What cannot be read is the database's check to say.
	leases, err := s.Leases.Leases(ctx)
	return err == nil && len(leases) > 0
}
