package serve

import (
	"errors"
	"testing"

	"banger/internal/errdefs"
	"banger/internal/guest"
)

func TestGrow(t *testing.T) {
	w := newWorld(t)
	if _, err := w.call(guest.Request{Kind: guest.KindGrow, Grow: &guest.Grow{Bytes: 1 << 30}}); err != nil || w.machine.grown != 1<<30 {
		t.Errorf("grown to %d, %v", w.machine.grown, err)
	}
	w.machine.growErr = errdefs.Unavailable("no such disk")
	if _, err := w.call(guest.Request{Kind: guest.KindGrow, Grow: &guest.Grow{Bytes: 1}}); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("a disk that is not there: %v", err)
	}
	w.machine.grown = 0
	for _, bad := range []*guest.Grow{nil, {Bytes: 0}, {Bytes: -1}} {
		if _, err := w.call(guest.Request{Kind: guest.KindGrow, Grow: bad}); !errors.Is(err, errdefs.ErrInvalidArgument) || w.machine.grown != 0 {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}
