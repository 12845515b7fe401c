package store_test

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"banger/internal/errdefs"
	"banger/internal/model"
)

func TestPorts(t *testing.T) {
	ctx := context.Background()
	s := seeded(t)
	must(t, s.InsertVM(ctx, newVM("aaaaaaaaaaaa", "one"), 0))
	must(t, s.InsertVM(ctx, newVM("bbbbbbbbbbbb", "two"), 0))
	anything := func([]model.Port) error { return nil }
	one := []model.Port{
		{VMID: "aaaaaaaaaaaa", Host: 8080, Guest: 80},
		{VMID: "aaaaaaaaaaaa", Addr: netip.MustParseAddr("192.0.2.1"), Host: 8080, Guest: 81},
	}
	two := []model.Port{{VMID: "bbbbbbbbbbbb", Host: 2222, Guest: 22}}
	must(t, s.AddPorts(ctx, one, anything))
	refused := errors.New("refused")
	err := s.AddPorts(ctx, two, func(all []model.Port) error {
		if !slices.Equal(all, one) {
			t.Errorf("check sees %v", all)
		}
		return refused
	})
	if !errors.Is(err, refused) {
		t.Errorf("got %v", err)
	}
	if err := s.AddPorts(ctx, []model.Port{two[0], {VMID: "bbbbbbbbbbbb", Host: 8080, Guest: 1}}, anything); err == nil {
		t.Error("two VMs have one port")
	}
	if err := s.AddPorts(ctx, []model.Port{{VMID: "cccccccccccc", Host: 1, Guest: 1}}, anything); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("a port for no VM: %v", err)
	}
	got, err := s.Ports(ctx)
	must(t, err)
	if !slices.Equal(got, one) {
		t.Errorf("what was refused is there: %v", got)
	}
	must(t, s.AddPorts(ctx, two, anything))
	must(t, s.RemovePorts(ctx, one[:1]))
	must(t, s.RemovePorts(ctx, one[:1]))
	if got, err = s.Ports(ctx); err != nil || !slices.Equal(got, append(one[1:2:2], two...)) {
		t.Errorf("ports %v, %v", got, err)
	}
	must(t, s.DeleteVM(ctx, "aaaaaaaaaaaa"))
	if got, err = s.Ports(ctx); err != nil || !slices.Equal(got, two) {
		t.Errorf("ports of a VM that is gone: %v, %v", got, err)
	}
}

func TestLoopbacks(t *testing.T) {
	ctx := context.Background()
	s := seeded(t)
	must(t, s.InsertVM(ctx, newVM("aaaaaaaaaaaa", "one"), 0))
	must(t, s.InsertVM(ctx, newVM("bbbbbbbbbbbb", "two"), 0))
	a, b := netip.MustParseAddr("127.42.0.1"), netip.MustParseAddr("127.42.0.2")
	take := func(want netip.Addr) func(map[netip.Addr]bool) (netip.Addr, error) {
		return func(map[netip.Addr]bool) (netip.Addr, error) { return want, nil }
	}
	for _, offer := range []netip.Addr{a, b} { // the second time the first is kept
		if got, err := s.Loopback(ctx, "aaaaaaaaaaaa", take(offer)); err != nil || got != a {
			t.Errorf("got %v, %v", got, err)
		}
	}
	got, err := s.Loopback(ctx, "bbbbbbbbbbbb", func(used map[netip.Addr]bool) (netip.Addr, error) {
		if !maps.Equal(used, map[netip.Addr]bool{a: true}) {
			t.Errorf("used are %v", used)
		}
		return b, nil
	})
	if err != nil || got != b {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := s.Loopback(ctx, "cccccccccccc", take(netip.MustParseAddr("127.42.0.3"))); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("an address for no VM: %v", err)
	}
	must(t, s.DeleteVM(ctx, "aaaaaaaaaaaa"))
	if all, err := s.Loopbacks(ctx); err != nil || !maps.Equal(all, map[string]netip.Addr{"bbbbbbbbbbbb": b}) {
		t.Errorf("addresses %v, %v", all, err)
	}
}
