package store_test

import (
	"context"
	"errors"
	"net/netip"
	"reflect"
	"testing"

	"banger/internal/errdefs"
	"banger/internal/model"
	"banger/internal/store"
)

// lease gives the VM an address and a tap, and returns the addresses of the others.
func lease(t *testing.T, s *store.Store, id, addr, tap string) (others []netip.Addr, err error) {
	t.Helper()
	err = s.UpdateLease(context.Background(), id, func(l *model.Lease, used []netip.Addr) error {
		if l.VMID != id {
			t.Errorf("the lease is of %q, want %q", l.VMID, id)
		}
		others, l.Tap = used, tap
		if addr != "" {
			l.Addr = netip.MustParseAddr(addr)
		}
		return nil
	})
	return others, err
}

func TestLeases(t *testing.T) {
	ctx := context.Background()
	s := seeded(t)
	must(t, s.InsertVM(ctx, newVM("aaaaaaaaaaaa", "one"), 0))
	must(t, s.InsertVM(ctx, newVM("bbbbbbbbbbbb", "two"), 0))
	if _, err := lease(t, s, "aaaaaaaaaaaa", "10.42.0.2", ""); err != nil {
		t.Fatal(err)
	}
	others, err := lease(t, s, "bbbbbbbbbbbb", "10.42.0.3", "bgr0-1")
	if err != nil || !reflect.DeepEqual(others, []netip.Addr{netip.MustParseAddr("10.42.0.2")}) {
		t.Errorf("the addresses of others are %v, %v", others, err)
	}
	// What change refuses, and what somebody has, leaves everything as it was.
	refused := errors.New("refused")
	err = s.UpdateLease(ctx, "aaaaaaaaaaaa", func(l *model.Lease, _ []netip.Addr) error { l.Tap = "x"; return refused })
	if !errors.Is(err, refused) {
		t.Errorf("got %v", err)
	}
	if _, err := lease(t, s, "aaaaaaaaaaaa", "10.42.0.3", ""); err == nil {
		t.Error("two VMs have one address")
	}
	if _, err := lease(t, s, "aaaaaaaaaaaa", "", "bgr0-1"); err == nil {
		t.Error("two VMs have one tap")
	}
	if _, err := lease(t, s, "cccccccccccc", "10.42.0.4", ""); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("a lease for no VM: %v", err)
	}
	want := []model.Lease{
		{VMID: "aaaaaaaaaaaa", Addr: netip.MustParseAddr("10.42.0.2")},
		{VMID: "bbbbbbbbbbbb", Addr: netip.MustParseAddr("10.42.0.3"), Tap: "bgr0-1"},
	}
	if got, err := s.Leases(ctx); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v", got, err)
	}
	for range 2 {
		if err := s.DropLease(ctx, "bbbbbbbbbbbb"); err != nil {
			t.Fatal(err)
		}
	}
	// A lease goes with its VM.
	if err := s.DeleteVM(ctx, "aaaaaaaaaaaa"); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Leases(ctx); err != nil || len(got) != 0 {
		t.Errorf("left are %+v, %v", got, err)
	}
}

func TestHostNet(t *testing.T) {
	ctx := context.Background()
	s := seeded(t)
	if got, err := s.HostNet(ctx); err != nil || !reflect.DeepEqual(got, model.HostNet{}) {
		t.Errorf("before anything was kept: %+v, %v", got, err)
	}
	for _, want := range []model.HostNet{
		{ID: "0123", Prefix6: netip.MustParsePrefix("fd00:1::/64")},
		{ID: "0123", Prefix4: netip.MustParsePrefix("10.42.0.0/16"), Up: true, Bridge: "bgr0",
			Settings: []model.Setting{{Key: "ipv4/ip_forward", Was: "0", Want: "1"}}},
	} {
		if err := s.KeepHostNet(ctx, want); err != nil {
			t.Fatal(err)
		}
		if got, err := s.HostNet(ctx); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, %v, want %+v", got, err, want)
		}
	}
}
