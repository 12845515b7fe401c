package hostnet

import (
	"context"
	"errors"
	"net/netip"
	"slices"

	"banger/internal/daemon/nat"
	"banger/internal/daemon/steps"
	"banger/internal/daemon/tapdev"
	"banger/internal/errdefs"
	"banger/internal/logkey"
)

// attach is one Attach, Detach or adoption under way.
type attach struct {
	plan   *plan
	vm     VM
	addr   netip.Addr
	leased bool   // the lease was made just now
	tap    string // empty: none yet
	guest  nat.Guest
}

// Reserve gives the VM an address that it keeps until Release, also while it does
// not run. It changes nothing on the host. It errors with class exhausted when the
// prefix has none left. Attach does it for a VM without one.
func (s *Service) Reserve(ctx context.Context, vmID string) error {
	p, err := s.planned(ctx)
	if err == nil {
		_, _, err = s.reserveAddress(ctx, p, vmID)
	}
	return err
}

// Check says what keeps one more VM off the host's network: not root, a device or a
// route in the way, no address left. It changes nothing. Attach says the same.
func (s *Service) Check(ctx context.Context) error {
	p := s.current()
	if p == nil {
		var err error
		if p, err = s.prepare(ctx); err != nil {
			return err
		}
	}
	leases, err := s.Leases.Leases(ctx)
	if err != nil {
		return err
	}
	used := make([]netip.Addr, 0, len(leases))
	for _, l := range leases {
		used = append(used, l.Addr)
	}
	_, err = allocate(p.Prefix4, used)
	return err
}

// planned is the plan, made and kept if there is none: the prefix is perhaps chosen
// just now, and whoever comes next must get the same.
func (s *Service) planned(ctx context.Context) (*plan, error) {
	if p := s.current(); p != nil {
		return p, nil
	}
	if err := claim(ctx, s.hostUp); err != nil {
		return nil, err
	}
	defer func() { <-s.hostUp }()
	p, err := s.prepare(ctx)
	if err != nil {
		return nil, err
	}
	return p, s.Memory.KeepHostNet(ctx, p.Record)
}

func (s *Service) reserveAddress(ctx context.Context, p *plan, vmID string) (addr netip.Addr, made bool, err error) {
	err = s.Leases.UpdateLease(ctx, vmID, func(l *Lease, used []netip.Addr) error {
		made = false
		if !p.Prefix4.Contains(l.Addr) { // none, or of a prefix from before
			a, err := allocate(p.Prefix4, used)
			if err != nil {
				return err
			}
			made, l.Addr = true, a
		}
		addr = l.Addr
		return nil
	})
	return addr, made, err
}

// Attach gives the VM a tap, and says what its VMM and its guest must know. The
// first one puts up the bridge and the firewall. Attaching an attached VM changes
// what it may reach to what vm says, in connections under way too, and nothing else.
// The caller holds the VM's claim.
func (s *Service) Attach(ctx context.Context, vm VM) (Attachment, error) {
	p, err := s.ensure(ctx)
	if err != nil {
		return Attachment{}, err
	}
	s.mu.Lock()
	old, attached := s.guests[vm.ID]
	s.mu.Unlock()
	a := &attach{plan: p, vm: vm}
	if attached {
		a.addr, a.tap = old.IPv4, old.Tap
		err = errors.Join(s.permit(ctx, a), tapdev.SetIsolated(a.tap, vm.Network == ""))
	} else {
		err = steps.Run(ctx, s.runner(), a, s.attachSteps())
	}
	if err != nil {
		return Attachment{}, errdefs.Wrap(err, "attach to the host's network")
	}
	return s.attachment(a), nil
}

// Find says how a VM is on the network that Attach has put there, or Restore left. It
// errors with class not_found when it is not.
func (s *Service) Find(ctx context.Context, vmID string) (Attachment, error) {
	l, ok, err := s.lease(ctx, vmID)
	if err != nil {
		return Attachment{}, err
	}
	p := s.current()
	if p == nil || !ok || l.Tap == "" {
		return Attachment{}, errdefs.NotFound("the vm is not on the host's network").WithHint("restart it: banger vm restart NAME")
	}
	return s.attachment(&attach{plan: p, addr: l.Addr, tap: l.Tap}), nil
}

// Addresses returns what every VM with an address has, whether it runs or not.
func (s *Service) Addresses(ctx context.Context) (map[string][]netip.Addr, error) {
	leases, err := s.Leases.Leases(ctx)
	if err != nil || len(leases) == 0 {
		return nil, err
	}
	r, err := s.Memory.HostNet(ctx)
	if err != nil {
		return nil, err
	}
	p := planOf(r, s.Bridge)
	all, six := make(map[string][]netip.Addr, len(leases)), p.hasIPv6()
	for _, l := range leases {
		if !l.Addr.IsValid() {
			continue
		}
		all[l.VMID] = []netip.Addr{l.Addr}
		if six {
			all[l.VMID] = append(all[l.VMID], p.ip6(l.Addr))
		}
	}
	return all, nil
}

func (s *Service) attachment(a *attach) Attachment {
	at := Attachment{
		Bridge: a.plan.Bridge, Tap: a.tap, MAC: guestMAC(a.addr), MTU: s.MTU,
		Addresses: a.plan.addresses(a.addr), Gateways: a.plan.gateways(),
	}
	if !a.plan.hasIPv6() {
		at.Addresses, at.Gateways = at.Addresses[:1], at.Gateways[:1]
	}
	return at
}

func (s *Service) attachSteps() []steps.Step[*attach] {
	return []steps.Step[*attach]{
		{Name: "address", Do: s.address, Undo: s.unaddress},
		{Name: "tap", Do: s.takeTap, Undo: s.returnTap},
		{Name: "bind", Do: s.bind, Undo: s.unbind},
		{Name: "port", Do: s.open, Undo: s.shut},
		{Name: "permit", Do: s.permit, Undo: s.forbid},
	}
}

// detachSteps are never undone: each can be repeated, and a Detach that failed is.
// Rules go first, so that a tap that becomes warm again lets nothing through.
func (s *Service) detachSteps() []steps.Step[*attach] {
	return []steps.Step[*attach]{
		{Name: "forbid", Do: s.forbid},
		{Name: "forget", Do: s.forget},
		{Name: "shut", Do: s.shut},
		{Name: "let go", Do: s.letGo},
	}
}

func (s *Service) address(ctx context.Context, a *attach) (err error) {
	a.addr, a.leased, err = s.reserveAddress(ctx, a.plan, a.vm.ID)
	return err
}

func (s *Service) unaddress(ctx context.Context, a *attach) error {
	if !a.leased {
		return nil
	}
	return s.Leases.DropLease(ctx, a.vm.ID)
}

func (s *Service) takeTap(ctx context.Context, a *attach) (err error) {
	a.tap, err = s.take(ctx, a.plan, a.vm.UID)
	return err
}

func (s *Service) returnTap(_ context.Context, a *attach) error {
	if a.tap == "" {
		return nil
	}
	tap := a.tap
	a.tap = ""
	return s.giveBack(a.plan, tap)
}

// bind writes down whose the tap is before anything passes through it.
func (s *Service) bind(ctx context.Context, a *attach) error { return s.setTap(ctx, a.vm.ID, a.tap) }

func (s *Service) unbind(ctx context.Context, a *attach) error { return s.setTap(ctx, a.vm.ID, "") }

// letGo is one step, lest a context that ends between its parts leave a tap that no
// lease names and that is not warm. The other order would be worse: a Detach that is
// repeated would take the tap from the VM that has it by then. A tap that cannot be
// given back even so is found by the next Restore.
func (s *Service) letGo(ctx context.Context, a *attach) error {
	if err := s.unbind(ctx, a); err != nil {
		return err
	}
	return s.returnTap(ctx, a)
}

func (s *Service) setTap(ctx context.Context, vmID, tap string) error {
	return s.Leases.UpdateLease(ctx, vmID, func(l *Lease, _ []netip.Addr) error {
		l.Tap = tap
		return nil
	})
}

// open makes the tap the VM's port of the bridge.
func (s *Service) open(_ context.Context, a *attach) error {
	return errors.Join(
		tapdev.SetIsolated(a.tap, a.vm.Network == ""),
		tapdev.Direct(a.tap, guestMAC(a.addr)))
}

// shut makes it anybody's; a tap that is gone needs no more.
func (s *Service) shut(_ context.Context, a *attach) error {
	if a.tap == "" || !a.addr.IsValid() {
		return nil
	}
	err := errors.Join(tapdev.Undirect(a.tap, guestMAC(a.addr)), tapdev.SetIsolated(a.tap, true))
	if tapdev.Missing(err) {
		return nil
	}
	return err
}

func (s *Service) permit(ctx context.Context, a *attach) error {
	a.guest = a.rules(s.network(a.vm.Network))
	return s.setRules(ctx, a.plan, a.vm.ID, &a.guest)
}

// rules is what the firewall must know of the VM.
func (a *attach) rules(network uint32) nat.Guest {
	return nat.Guest{
		Tap: a.tap, MAC: guestMAC(a.addr), IPv4: a.addr, IPv6: a.plan.ip6(a.addr),
		Outbound: !a.vm.Isolated, Network: network, Ports: slices.Clone(a.vm.Expose),
	}
}

func (s *Service) forbid(ctx context.Context, a *attach) error {
	return s.setRules(ctx, a.plan, a.vm.ID, nil)
}

// forget ends what the VM had under way: its address may be another's next. A kernel
// that does not let us leaves that to its own timeouts.
func (s *Service) forget(ctx context.Context, a *attach) error {
	if a.tap == "" || !a.addr.IsValid() { // it was done before the tap was let go
		return nil
	}
	if err := nat.Forget(a.addr, a.plan.ip6(a.addr)); err != nil {
		s.Log.WarnContext(ctx, "connections of a vm may be answered to the next one with its address", logkey.VM, a.vm.ID, logkey.Err, err)
	}
	return nil
}

// Detach takes the VM off the network; its address stays leased. One that is not
// attached is no error. The caller holds the VM's claim, and the VMM has ended.
func (s *Service) Detach(ctx context.Context, vmID string) error {
	l, ok, err := s.lease(ctx, vmID)
	p := s.current()
	if err != nil || !ok || p == nil {
		return err
	}
	a := &attach{plan: p, vm: VM{ID: vmID}, addr: l.Addr, tap: l.Tap}
	if err := steps.Run(ctx, s.runner(), a, s.detachSteps()); err != nil {
		return errdefs.Wrap(err, "detach from the host's network")
	}
	return nil
}

// Release takes the VM off the network and gives its address away.
func (s *Service) Release(ctx context.Context, vmID string) error {
	if err := s.Detach(ctx, vmID); err != nil {
		return err
	}
	return s.Leases.DropLease(ctx, vmID)
}
