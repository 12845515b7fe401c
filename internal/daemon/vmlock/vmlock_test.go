package vmlock_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"banger/internal/daemon/vmlock"
	"banger/internal/errdefs"
)

func TestExcludesPerKey(t *testing.T) {
	var s vmlock.Set
	var inside, most atomic.Int32
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			h, err := s.Acquire(context.Background(), "a", "work")
			if err != nil {
				t.Error(err)
				return
			}
			defer h.Release()
			most.Store(max(most.Load(), inside.Add(1)))
			inside.Add(-1)
		})
	}
	wg.Wait()
	if most.Load() != 1 {
		t.Errorf("%d holders at once", most.Load())
	}
	if s.Holder("a") != "" {
		t.Errorf("holder after release: %q", s.Holder("a"))
	}
}

func TestOtherKeysDoNotWait(t *testing.T) {
	var s vmlock.Set
	a, err := s.Acquire(context.Background(), "a", "work")
	if err != nil {
		t.Fatal(err)
	}
	defer a.Release()
	b, err := s.Acquire(context.Background(), "b", "work")
	if err != nil {
		t.Fatal(err)
	}
	b.Release()
}

func TestBusyNamesTheHolder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := vmlock.Set{Noun: "vm", Display: func(k string) string { return "dev-" + k }}
		h, err := s.Acquire(context.Background(), "a", "start")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		_, err = s.Acquire(ctx, "a", "stop")
		if !errors.Is(err, errdefs.ErrBusy) || !errors.Is(err, context.DeadlineExceeded) ||
			!strings.Contains(err.Error(), "vm dev-a is busy: start since ") {
			t.Errorf("busy: %v", err)
		}
		h.Release()
		h.Release() // harmless
		h, err = s.Acquire(context.Background(), "a", "stop")
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(s.Holder("a"), "stop since ") {
			t.Errorf("holder %q", s.Holder("a"))
		}
		h.Release()
	})
}

// Seize ends the holder and who queued before it, and can itself not be ended.
func TestSeizeDoesNotQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s vmlock.Set
		free, err := s.Seize(context.Background(), "a", "kill")
		if err != nil {
			t.Fatal(err)
		}
		free.Release()
		work := func(action string) {
			h, err := s.Acquire(context.Background(), "a", action)
			if err != nil {
				t.Error(err)
				return
			}
			defer h.Release()
			ctx := h.Context(context.Background())
			<-ctx.Done() // it would go on for ever
			if !errors.Is(context.Cause(ctx), vmlock.ErrPreempted) {
				t.Errorf("%s: cause %v", action, context.Cause(ctx))
			}
		}
		go work("start")
		synctest.Wait()
		go work("stop")
		synctest.Wait()
		h, err := s.Seize(context.Background(), "a", "kill")
		if err != nil {
			t.Fatal(err)
		}
		ctx := h.Context(context.Background())
		second := make(chan struct{})
		go func() {
			defer close(second)
			again, err := s.Seize(context.Background(), "a", "delete")
			if err != nil {
				t.Error(err)
				return
			}
			again.Release()
		}()
		synctest.Wait()
		if ctx.Err() != nil {
			t.Errorf("a seized claim was taken away: %v", context.Cause(ctx))
		}
		h.Release()
		<-second
		go work("later")
		synctest.Wait()
		if got := s.Holder("a"); !strings.HasPrefix(got, "later since ") {
			t.Errorf("a claim after the seizure is held by %q", got)
		}
		last, err := s.Seize(context.Background(), "a", "kill")
		if err != nil {
			t.Fatal(err)
		}
		last.Release()
	})
}
