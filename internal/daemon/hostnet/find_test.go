package hostnet

import (
	"context"
	"errors"
	"net/netip"
	"reflect"
	"testing"

	"banger/internal/errdefs"
)

// What the guest was told is found again: while it is attached, after a restart of
// the daemon, and its addresses also when it is not.
func TestFind(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	w.must(w.s.Check(ctx))
	if _, err := w.s.Find(ctx, "new"); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("before it was attached: %v", err)
	}
	want := w.attach(VM{ID: "new"})
	check := func(when string) {
		t.Helper()
		if got, err := w.s.Find(ctx, "new"); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: found %+v, %v, want %+v", when, got, err, want)
		}
	}
	check("attached")
	w.restart(VM{ID: "new"})
	check("after a restart")
	w.must(w.s.Detach(ctx, "new"))
	if _, err := w.s.Find(ctx, "new"); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("after it was detached: %v", err)
	}
	addrs := map[string][]netip.Addr{"new": {want.Addresses[0].Addr(), want.Addresses[1].Addr()}}
	if got, err := w.s.Addresses(ctx); err != nil || !reflect.DeepEqual(got, addrs) {
		t.Errorf("addresses %v, %v, want %v", got, err, addrs)
	}
	w.end()
}
