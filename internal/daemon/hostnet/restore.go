package hostnet

import (
	"context"
	"errors"
	"slices"

	"banger/internal/daemon/nat"
	"banger/internal/daemon/tapdev"
)

// What Restore takes for granted, and what follows:
//
//  1. A tap of ours bears our alias from before it can outlive the process that makes
//     it. So all of them are found by it, whatever else was lost.
//  2. A lease names its VM's tap before anything passes through it, and until nothing
//     does and its connections are forgotten. So a tap that no running VM's lease names
//     serves nobody, whoever may still hold it open, and is deleted; where a lease names
//     one that no running VM has, there are connections to forget. Warm taps are deleted
//     too: new ones cost a millisecond, and nobody has to know which was warm.
//  3. The firewall is a function of the running VMs. It is written anew as a whole, so
//     no element of another VM is left.
//  4. Settings are written down before they are changed. One that was written down
//     and not changed is found as it was and changed now.
//  5. Where nothing was ever put up (Record.Up), nothing is looked for.

// Restore takes over what a daemon before this one left: taps of the VMs that run
// stay as they are, connections included, and everything else of ours goes. VMs of
// running that have lost their tap stay without a network until they are started
// again; their ids are returned.
func (s *Service) Restore(ctx context.Context, running []VM) (lost []string, err error) {
	r, err := s.Memory.HostNet(ctx)
	if err != nil || !r.Up {
		return nil, err
	}
	p := planOf(r, s.Bridge)
	leases, err := s.Leases.Leases(ctx)
	if err != nil {
		return nil, err
	}
	taps, err := tapdev.Taps(p.alias)
	if err != nil {
		return nil, err
	}
	var adopted []*attach
	for _, vm := range running {
		i := slices.IndexFunc(leases, func(l Lease) bool { return l.VMID == vm.ID && slices.Contains(taps, l.Tap) })
		if i < 0 || !p.Prefix4.Contains(leases[i].Addr) {
			lost = append(lost, vm.ID)
			continue
		}
		adopted = append(adopted, &attach{plan: p, vm: vm, addr: leases[i].Addr, tap: leases[i].Tap})
	}
	s.adopt(p, adopted, taps)
	// The firewall comes first: what it does not know passes nothing from then on.
	up, err := s.ensure(ctx)
	if err != nil {
		return lost, err
	}
	if up.Bridge != p.Bridge {
		taps = nil // they went with it
	}
	var errs []error
	for _, a := range adopted {
		errs = append(errs, s.open(ctx, a))
	}
	for _, tap := range taps {
		if !slices.ContainsFunc(adopted, func(a *attach) bool { return a.tap == tap }) {
			errs = append(errs, s.deleteTap(p, tap))
		}
	}
	for _, l := range leases {
		if l.Tap != "" && !slices.ContainsFunc(adopted, func(a *attach) bool { return a.vm.ID == l.VMID }) {
			a := &attach{plan: p, vm: VM{ID: l.VMID}, addr: l.Addr, tap: l.Tap}
			errs = append(errs, s.forget(ctx, a), s.unbind(ctx, a))
		}
	}
	return lost, errors.Join(errs...)
}

// adopt takes the VMs for attached, and the names of all taps for taken.
func (s *Service) adopt(p *plan, adopted []*attach, taps []string) {
	guests := map[string]nat.Guest{}
	for _, a := range adopted {
		guests[a.vm.ID] = a.rules(s.network(a.vm.Network))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.guests = guests
	for _, tap := range taps {
		if n, ok := tapdev.TapIndex(p.Bridge, tap); ok {
			s.taken[n] = true
		}
	}
}
