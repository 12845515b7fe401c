package vmdns

import (
	"context"
	"errors"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"banger/internal/api/bangerv1"
	"banger/internal/daemon/resolved"
	"banger/internal/doctor"
	"banger/internal/model"
)

// freeAddr is an address and a port of the loopback that can be answered on.
func freeAddr(t *testing.T) netip.AddrPort {
	t.Helper()
	udp, tcp, err := bind(loopback)
	if err != nil {
		t.Fatal(err)
	}
	at := udp.LocalAddr().(interface{ AddrPort() netip.AddrPort }).AddrPort()
	if err := errors.Join(udp.Close(), tcp.Close()); err != nil {
		t.Fatal(err)
	}
	return at
}

// A VM is known by its name while it runs, wherever it is found, and a VM that is
// found nowhere is not; what keeps it from having a name keeps it from nothing else.
func TestNamesFollowVMs(t *testing.T) {
	places := map[string]Place{
		"a": {Addrs: []netip.Prefix{netip.MustParsePrefix("127.42.7.8/32")}},
	}
	at := freeAddr(t)
	n := NewNames(NamesDeps{
		Names: New(Deps{Log: quiet()}), Resolved: resolved.New("/nonexistent"), Listen: at, Log: quiet(),
		Place: func(_ context.Context, v *model.VM) (Place, error) {
			if v.ID == "lost" {
				return Place{}, errors.New("nobody knows")
			}
			return places[v.ID], nil
		},
		Named: func(context.Context) (func(*model.VM) bool, error) {
			return func(v *model.VM) bool { _, ok := places[v.ID]; return ok }, nil
		},
	})
	ctx := context.Background()
	defer func() { _ = n.Close(ctx) }()
	hooks := n.Capability()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check := func(name, want string) {
		t.Helper()
		if got := summary(ask(t, at, "udp", name, dns.TypeA)); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	a, none := &model.VM{ID: "a", Name: "web"}, &model.VM{ID: "none", Name: "none"}
	for _, v := range []*model.VM{a, none, {ID: "lost", Name: "lost"}} {
		must(hooks.Prepare(ctx, v))
		must(hooks.Running(ctx, v))
	}
	const known = "NOERROR aa | web.vm. A 127.42.7.8 | "
	check("web.vm.", known)
	check("none.vm.", absent)
	check("lost.vm.", absent)

	// Its first port gives a VM a place, and another name replaces the one before.
	places["none"] = Place{Addrs: []netip.Prefix{netip.MustParsePrefix("127.42.7.9/32")}}
	must(hooks.Changed(ctx, none))
	check("none.vm.", "NOERROR aa | none.vm. A 127.42.7.9 | ")
	a.Name = "shop"
	must(hooks.Changed(ctx, a))
	check("web.vm.", absent)
	check("shop.vm.", "NOERROR aa | shop.vm. A 127.42.7.8 | ")
	describe, err := hooks.Describe(ctx)
	must(err)
	for id, want := range map[string]string{"a": "shop.vm", "lost": ""} {
		var out bangerv1.VM
		describe(&model.VM{ID: id, Name: "shop"}, &out)
		if out.DnsName != want {
			t.Errorf("%s is described as %q", id, out.DnsName)
		}
	}
	for range 2 {
		must(hooks.CleanUp(ctx, a))
		check("shop.vm.", absent)
	}

	// A name that is given up may be another's before that is known here.
	must(hooks.Running(ctx, a))
	none.Name, a.Name = "shop", "mall"
	must(hooks.Changed(ctx, none))
	must(hooks.Changed(ctx, a))
	check("shop.vm.", "NOERROR aa | shop.vm. A 127.42.7.9 | ")
	check("mall.vm.", "NOERROR aa | mall.vm. A 127.42.7.8 | ")
	must(hooks.CleanUp(ctx, none))
	check("shop.vm.", absent)
	a.Name = "shop"
	must(hooks.Changed(ctx, a))
	must(hooks.Restore(ctx, []*model.VM{a}))
	check("shop.vm.", "NOERROR aa | shop.vm. A 127.42.7.8 | ")
}

// Guests may ask on a gateway once the port there is ours, and not while somebody else
// has it; the next VM tries again.
func TestGatewaysAreAdmittedWhenOpen(t *testing.T) {
	one, two := netip.MustParseAddr("127.42.8.1"), netip.MustParseAddr("127.42.8.2")
	port := freeAddr(t).Port()
	in := func(gw netip.Addr) netip.Prefix { return netip.PrefixFrom(gw, 32) }
	admitted := map[netip.Addr]bool{}
	var refuse error
	n := NewNames(NamesDeps{
		Names: New(Deps{Log: quiet()}), Resolved: resolved.New("/nonexistent"), Log: quiet(),
		Place: func(context.Context, *model.VM) (Place, error) {
			return Place{Addrs: []netip.Prefix{in(one), in(two)}, Gateways: []netip.Addr{one, two}}, nil
		},
		Admit: func(_ context.Context, gateways []netip.Addr, yes bool) error {
			for _, gw := range gateways {
				if c, err := net.Dial("tcp", netip.AddrPortFrom(gw, port).String()); err != nil {
					t.Errorf("admitted %v to %s, where nobody listens: %v", yes, gw, err)
				} else {
					_ = c.Close()
				}
				if admitted[gw] = yes && refuse == nil; !admitted[gw] {
					delete(admitted, gw)
				}
			}
			return refuse
		},
		Wanted: func(context.Context) []netip.Addr { return []netip.Addr{one} },
	})
	n.port = port
	ctx := context.Background()
	hooks := n.Capability()
	boot := func(want ...netip.Addr) {
		t.Helper()
		if err := hooks.Prepare(ctx, &model.VM{ID: "a", Name: "web"}); err != nil {
			t.Fatal(err)
		}
		if got := slices.SortedFunc(maps.Keys(admitted), netip.Addr.Compare); !slices.Equal(got, want) {
			t.Errorf("admitted to %v, want %v", got, want)
		}
	}
	check := func(status doctor.Status, words string) {
		t.Helper()
		r := hooks.Checks(ctx)[0].Run(ctx)
		if r.Status != status || !strings.Contains(r.Detail, words) || status != doctor.StatusPass && !strings.Contains(r.Fix, "bind-interfaces") {
			t.Errorf("doctor says %+v, want %v with %q", r, status, words)
		}
	}
	check(doctor.StatusPass, "is free")
	other, err := net.Listen("tcp4", netip.AddrPortFrom(netip.IPv4Unspecified(), port).String())
	if err != nil {
		t.Skip("the port is taken elsewhere: ", err)
	}
	boot()
	boot()
	check(doctor.StatusWarn, "port is taken")
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	refuse = errors.New("no rules today")
	boot()
	refuse = nil
	boot(one, two)
	boot(one, two)
	check(doctor.StatusPass, "bangerd answers")
	if err := n.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if len(admitted) > 0 {
		t.Errorf("still admitted to %v", admitted)
	}
	check(doctor.StatusPass, "is free")
}

// A gateway is tried before this host has its address.
func TestCheckGatewayToCome(t *testing.T) {
	udp, tcp, err := bind(netip.MustParseAddrPort("[::1]:0"))
	if err != nil {
		t.Skip("no IPv6 here: ", err)
	}
	port := udp.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	_ = errors.Join(udp.Close(), tcp.Close())
	var gateways []netip.AddrPort
	for _, gw := range []string{"198.51.100.1", "2001:db8::1"} {
		gateways = append(gateways, netip.AddrPortFrom(netip.MustParseAddr(gw), port))
		if r := checkGateway(gateways[len(gateways)-1]).Run(t.Context()); r.Status != doctor.StatusPass {
			t.Errorf("%s: %+v", gw, r)
		}
	}
	other, err := net.ListenPacket("udp", netip.AddrPortFrom(netip.IPv6Unspecified(), port).String())
	if err != nil {
		t.Skip("the port is taken elsewhere: ", err)
	}
	defer func() { _ = other.Close() }()
	for _, gw := range gateways {
		if r := checkGateway(gw).Run(t.Context()); r.Status != doctor.StatusWarn || !strings.Contains(r.Detail, "port is taken") {
			t.Errorf("%s: %+v", gw, r)
		}
	}
}
