package hostnet

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"banger/internal/daemon/nat"
	"banger/internal/daemon/steps"
	"banger/internal/daemon/tapdev"
	"banger/internal/errdefs"
	"banger/internal/logkey"
)

// ensure puts up what all VMs share, once, and again when somebody has removed the
// bridge. What it cannot have (not root, a foreign bridge, an overlapping prefix) it
// says before it changes anything.
func (s *Service) ensure(ctx context.Context) (*plan, error) {
	if p := s.standing(); p != nil {
		return p, nil
	}
	if err := claim(ctx, s.hostUp); err != nil {
		return nil, err
	}
	defer func() { <-s.hostUp }()
	if p := s.standing(); p != nil {
		return p, nil
	}
	err := s.leaveOther(ctx)
	var p *plan
	if err == nil {
		p, err = s.prepare(ctx)
	}
	if err == nil {
		err = steps.Run(ctx, s.runner(), p, s.upSteps())
	}
	if err != nil {
		return nil, errdefs.Wrap(err, "set up the host's network")
	}
	s.mu.Lock()
	s.plan = p
	s.mu.Unlock()
	s.fill()
	s.refill(true)
	return p, nil
}

// standing is the plan while its bridge stands.
func (s *Service) standing() *plan {
	p := s.current()
	if p == nil {
		return nil
	}
	if there, err := tapdev.CheckBridge(p.Bridge, p.mac); err != nil || !there {
		return nil
	}
	return p
}

// leaveOther takes down a bridge of another name than the configured one, unless VMs
// are on it: their taps are its ports, and bear its name.
func (s *Service) leaveOther(ctx context.Context) error {
	r, err := s.Memory.HostNet(ctx)
	p := planOf(r, s.Bridge)
	if err != nil || p.Bridge == s.Bridge {
		return err
	}
	if s.serving() {
		s.Log.WarnContext(ctx, "network.bridge takes effect when no VM runs", logkey.Now, p.Bridge, logkey.Configured, s.Bridge)
		return nil
	}
	return s.takeDown(ctx, r)
}

// prepare makes a plan and checks that it can be carried out. It changes nothing.
func (s *Service) prepare(ctx context.Context) (*plan, error) {
	if err := checkHost(); err != nil {
		return nil, err
	}
	r, err := s.Memory.HostNet(ctx)
	if err != nil {
		return nil, err
	}
	if r.ID == "" {
		r = newRecord()
	}
	p := planOf(r, s.Bridge)
	exists, err := tapdev.CheckBridge(p.Bridge, p.mac)
	if err != nil {
		return nil, err
	}
	p.fresh = !exists
	routes, err := tapdev.Routes()
	if err != nil {
		return nil, err
	}
	_, overlaps := overlapping(p.Prefix4, routes, p.Bridge)
	switch configured := s.Prefix.IsValid(); {
	case configured && p.Prefix4 != s.Prefix && !s.serving():
		p.Prefix4 = s.Prefix
	case configured && p.Prefix4 != s.Prefix:
		// Guests were told of the old one.
		s.Log.WarnContext(ctx, "network.prefix takes effect when no VM runs", logkey.Now, p.Prefix4, logkey.Configured, s.Prefix)
	case !configured && (!p.Prefix4.IsValid() || overlaps && !s.serving()):
		if p.Prefix4, err = autoPrefix(p.ID, routes, p.Bridge); err != nil {
			return nil, err
		}
	}
	// With a bridge that is up, and VMs on it, what the prefix is was decided before.
	if p.fresh || !s.serving() {
		err = checkPrefix(p.Prefix4, routes, p.Bridge)
	}
	return p, err
}

func (s *Service) serving() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.guests) > 0
}

// checkHost says what this host lacks.
func checkHost() error {
	if os.Geteuid() != 0 {
		return errdefs.Permission("network devices of the host are for root").
			WithHint("run the daemon as root, or choose --net user")
	}
	if _, err := os.Stat(tapdev.TunDevice); err != nil {
		return errdefs.Unavailable("look at %s: %w", tapdev.TunDevice, err).
			WithHint("load the module: modprobe tun; in a container, pass the device in")
	}
	if _, err := tableFor("").Present(); err != nil {
		return errdefs.Unsupported("the kernel does not answer for nftables: %w", err).
			WithHint("load the module: modprobe nf_tables")
	}
	return nil
}

func (s *Service) upSteps() []steps.Step[*plan] {
	return []steps.Step[*plan]{
		{Name: "settings", Do: s.applySettings, Undo: s.undoSettings},
		{Name: "bridge", Do: s.makeBridge, Undo: s.undoBridge},
		{Name: "firewall", Do: s.syncRules, Undo: s.undoRules},
		{Name: "ports", Do: s.plugIn},
		{Name: "docker", Do: s.tellDocker, Undo: s.undoDocker},
		{Name: "firewalld", Do: s.tellFirewalld, Undo: s.undoFirewalld},
	}
}

// applySettings writes down what it will change, together with the plan, and
// changes it.
func (s *Service) applySettings(ctx context.Context, p *plan) error {
	missing, err := nat.MissingSettings()
	if err != nil {
		return err
	}
	before := len(p.Settings)
	p.Settings = nat.Merge(p.Settings, missing)
	p.added, p.Up = len(p.Settings)-before, true
	if err := s.Memory.KeepHostNet(ctx, p.Record); err != nil {
		return err
	}
	return nat.Apply(missing)
}

func (s *Service) undoSettings(ctx context.Context, p *plan) error {
	if !p.fresh {
		return nil
	}
	err := nat.PutBack(p.Settings[len(p.Settings)-p.added:])
	if err == nil {
		p.Settings = p.Settings[:len(p.Settings)-p.added]
		p.Up = len(p.Settings) > 0
		err = s.Memory.KeepHostNet(ctx, p.Record)
	}
	return err
}

func (s *Service) makeBridge(_ context.Context, p *plan) error {
	spec := tapdev.BridgeSpec{Name: p.Bridge, MAC: p.mac, Alias: p.alias, MTU: s.MTU, Addrs: p.addresses(p.gateways()[0])}
	if !p.hasIPv6() {
		spec.Addrs = spec.Addrs[:1]
	}
	return tapdev.EnsureBridge(spec)
}

// hasIPv6 reports whether the bridge takes IPv6 addresses, or one that is made now
// would: hosts are told to do without IPv6 in more than one way.
func (p *plan) hasIPv6() bool {
	for _, name := range []string{p.Bridge, "default"} {
		off, err := os.ReadFile(filepath.Join("/proc/sys/net/ipv6/conf", name, "disable_ipv6"))
		if err == nil {
			return strings.TrimSpace(string(off)) == "0"
		}
	}
	return false
}

func (s *Service) undoBridge(_ context.Context, p *plan) error {
	if !p.fresh {
		return nil
	}
	return tapdev.DeleteBridge(p.Bridge, p.mac)
}

// plugIn makes the taps of attached VMs ports of the bridge, where there was another when
// they became some. Warm ones are not worth it.
func (s *Service) plugIn(ctx context.Context, p *plan) error {
	s.hostBatch <- struct{}{} // what the filler makes from here on is for this bridge
	defer func() { <-s.hostBatch }()
	s.mu.Lock()
	guests, warm := slices.Collect(maps.Values(s.guests)), s.warm
	s.warm = nil
	s.mu.Unlock()
	for _, tap := range warm {
		if err := s.deleteTap(p, tap); err != nil {
			return err
		}
	}
	for _, g := range guests {
		err := tapdev.Plug(g.Tap, p.Bridge)
		if err == nil {
			err = errors.Join(tapdev.SetIsolated(g.Tap, g.Network == 0), tapdev.Direct(g.Tap, g.MAC))
		}
		if tapdev.Missing(err) {
			s.Log.WarnContext(ctx, "a vm has lost its tap; it has no network until it is restarted", logkey.Tap, g.Tap)
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *Service) undoRules(_ context.Context, p *plan) error {
	if !p.fresh {
		return nil
	}
	return tableFor(p.Bridge).Remove()
}

func (s *Service) tellDocker(context.Context, *plan) error { return nat.AllowInDocker() }

func (s *Service) undoDocker(_ context.Context, p *plan) error {
	if !p.fresh {
		return nil
	}
	return nat.LeaveDocker()
}

// tellFirewalld never fails: guests that it keeps from the world run all the same, and
// doctor says so.
func (s *Service) tellFirewalld(ctx context.Context, p *plan) error {
	if s.Firewalld == nil {
		return nil
	}
	if _, err := s.Firewalld.Trust(ctx, p.Bridge); err != nil {
		s.Log.WarnContext(ctx, "firewalld was not told of guests", logkey.Err, err)
	}
	return nil
}

func (s *Service) undoFirewalld(ctx context.Context, p *plan) error {
	if p.fresh {
		s.leaveFirewalld(ctx, p)
	}
	return nil
}

// leaveFirewalld does not fail either: what it leaves is about a device that is gone.
func (s *Service) leaveFirewalld(ctx context.Context, p *plan) {
	if s.Firewalld == nil {
		return
	}
	if err := s.Firewalld.Leave(ctx, p.Bridge); err != nil {
		s.Log.WarnContext(ctx, "firewalld still knows the bridge", logkey.Err, err)
	}
}

// Uninstall takes away everything of ours: rules, taps, bridge, changed settings.
// It works in a process that has restored nothing, and can be repeated. It refuses
// while VMs are attached. Addresses of VMs stay leased.
func (s *Service) Uninstall(ctx context.Context) error {
	if err := claim(ctx, s.hostUp); err != nil {
		return err
	}
	defer func() { <-s.hostUp }()
	if s.serving() {
		return errdefs.Precondition("VMs are on the host's network").WithHint("stop them first: banger vm stop NAME")
	}
	r, err := s.Memory.HostNet(ctx)
	if err != nil || r.ID == "" {
		return err
	}
	return s.takeDown(ctx, r)
}

// takeDown is Uninstall for a holder of hostUp who has looked.
func (s *Service) takeDown(ctx context.Context, r Record) error {
	s.mu.Lock()
	s.plan = nil // the filler makes no more taps
	s.warm = nil
	s.mu.Unlock()
	s.pause()
	p := planOf(r, s.Bridge)
	taps, err := tapdev.Taps(p.alias)
	errs := []error{err, tableFor(p.Bridge).Remove(), nat.LeaveDocker()}
	for _, tap := range taps {
		errs = append(errs, s.deleteTap(p, tap))
	}
	s.leaveFirewalld(ctx, p)
	errs = append(errs, tapdev.DeleteBridge(p.Bridge, p.mac), nat.PutBack(r.Settings))
	if err := errors.Join(errs...); err != nil {
		return errdefs.Wrap(err, "take away the host's network")
	}
	r.Settings, r.Up = nil, false
	return s.Memory.KeepHostNet(ctx, r)
}
