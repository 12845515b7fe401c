package vmdns

import (
	"context"
	"errors"
	"net/netip"
	"testing"

	"github.com/miekg/dns"

	"banger/internal/api/bangerv1"
	"banger/internal/daemon/resolved"
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
	must(hooks.Restore(ctx, []*model.VM{a}))
	check("shop.vm.", "NOERROR aa | shop.vm. A 127.42.7.8 | ")
}
