package hostnet

import (
	"context"
	"os"
	"slices"
	"strings"

	"banger/internal/daemon/firewalld"
	"banger/internal/daemon/nat"
	"banger/internal/daemon/tapdev"
	"banger/internal/doctor"
	"banger/internal/errdefs"
)

// Checks are what doctor asks of a host whose VMs are to have taps. They change
// nothing.
func (s *Service) Checks() []doctor.Check {
	check := func(name string, run func(context.Context) doctor.Result) doctor.Check {
		return doctor.Check{Name: name, Run: run}
	}
	return []doctor.Check{
		check("network devices", s.doctorHost),
		check("network bridge", s.doctorBridge),
		check("network prefix", s.doctorPrefix),
		check("network forwarding", s.doctorForwarding),
		check("network firewalls", s.doctorFirewalls),
	}
}

func failed(err error) doctor.Result { return doctor.Fail(errdefs.HintOf(err), "%v", err) }

func (s *Service) doctorHost(context.Context) doctor.Result {
	if err := checkHost(); err != nil {
		return failed(err)
	}
	return doctor.Pass("root, %s, nftables", tapdev.TunDevice)
}

// recorded is the plan of the daemon that runs, or ran, here.
func (s *Service) recorded(ctx context.Context) (*plan, error) {
	r, err := s.Memory.HostNet(ctx)
	return planOf(r, s.Bridge), err
}

func (s *Service) doctorBridge(ctx context.Context) doctor.Result {
	p, err := s.recorded(ctx)
	if err != nil {
		return failed(err)
	}
	exists, err := tapdev.CheckBridge(p.Bridge, p.mac)
	switch {
	case err != nil:
		return failed(err)
	case exists:
		return doctor.Pass("%s", p.Bridge)
	}
	return doctor.Pass("%s will be made for the first VM", p.Bridge)
}

func (s *Service) doctorPrefix(ctx context.Context) doctor.Result {
	p, err := s.recorded(ctx)
	if err != nil {
		return failed(err)
	}
	routes, err := tapdev.Routes()
	if err != nil {
		return failed(err)
	}
	prefix := p.Prefix4
	if s.Prefix.IsValid() {
		prefix = s.Prefix
	}
	err = checkPrefix(prefix, routes, p.Bridge)
	switch auto := !s.Prefix.IsValid(); {
	case auto && (!prefix.IsValid() || err != nil && !s.serving()):
		if prefix, err = autoPrefix(p.ID, routes, p.Bridge); err != nil {
			return failed(err)
		}
		return doctor.Pass("%s, for instance, is free", prefix)
	case auto && err != nil:
		return doctor.Fail("stop all VMs on the bridge and restart the daemon: it chooses another", "%v", err)
	case err != nil:
		return failed(err)
	}
	return doctor.Pass("%s", prefix)
}

func (s *Service) doctorForwarding(context.Context) doctor.Result {
	missing, err := nat.MissingSettings()
	switch {
	case err != nil:
		return failed(err)
	case len(missing) == 0:
		return doctor.Pass("on")
	}
	var keys []string
	for _, m := range missing {
		if m.Was == m.Want {
			continue // as it is to be
		}
		keys = append(keys, "net/"+m.Key+"="+m.Want)
	}
	return doctor.Pass("off; the first VM sets %s, and after the last one it is put back", strings.Join(keys, ", "))
}

func (s *Service) doctorFirewalls(ctx context.Context) doctor.Result {
	if os.Geteuid() != 0 {
		return doctor.Pass("not looked at: only root may")
	}
	p, err := s.recorded(ctx)
	if err != nil {
		return failed(err)
	}
	obstacles, err := tableFor(p.Bridge).Obstacles()
	if err != nil {
		return failed(err)
	}
	if s.Firewalld != nil {
		// One that can be asked is no obstacle: it is, when the first VM comes.
		if there, zone, err := s.Firewalld.Running(ctx, p.Bridge); there && err == nil {
			if zone != "" && zone != firewalld.Zone {
				return doctor.Warn("see what it lets through: firewall-cmd --info-zone="+zone, "firewalld has %s in its zone %s", p.Bridge, zone)
			}
			obstacles = slices.DeleteFunc(obstacles, func(o nat.Obstacle) bool { return o.Chain == nat.Firewalld })
		}
	}
	if len(obstacles) == 0 {
		return doctor.Pass("none in the way")
	}
	var why, fix []string
	for _, o := range obstacles {
		why = append(why, o.Chain+" "+o.Why)
		fix = append(fix, o.Fix)
	}
	return doctor.Warn(strings.Join(fix, "; "), "another firewall may stop guests: %s", strings.Join(why, "; "))
}
