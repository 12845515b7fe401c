package vm_test

import (
	"context"
	"errors"
	"testing"

	"banger/internal/errdefs"
	"banger/internal/model"
)

// A change of what a VM has is made under its claim, knowing whether it runs, and
// capabilities of a running one hear of it; a change that failed is nobody's to hear of.
func TestAlter(t *testing.T) {
	l := &locker{content: map[string]string{}}
	w := newWorldWith(t, func(w *world) { w.more = append(w.more, l) })
	w.must(w.create("dev", false))
	id := w.vms()[0].ID
	ctx := context.Background()
	alter := func(result error) (ran bool, err error) {
		err = w.svc.Alter(ctx, "dev", "tidy", func(_ context.Context, v *model.VM, running bool) error {
			if v.ID != id || w.locks.Holder(id) == "" {
				t.Errorf("vm %s is changed; who holds %s: %q", v.ID, id, w.locks.Holder(id))
			}
			ran = running
			return result
		})
		return ran, err
	}
	if ran, err := alter(nil); ran || err != nil {
		t.Errorf("of a stopped one: runs %v, %v", ran, err)
	}
	w.must(w.start("dev"))
	w.must(l.set(id, "ajar"))
	if ran, err := alter(errInjected); !ran || !errors.Is(err, errInjected) {
		t.Errorf("that fails: runs %v, %v", ran, err)
	}
	if l.legal([]string{id}, []string{id}) == nil {
		t.Error("a change that failed was told of")
	}
	if ran, err := alter(nil); !ran || err != nil {
		t.Errorf("of a running one: runs %v, %v", ran, err)
	}
	w.checkLegal()
	if err := w.svc.Alter(ctx, "nobody", "tidy", nil); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("of no vm: %v", err)
	}
}
