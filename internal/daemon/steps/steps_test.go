package steps_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"banger/internal/daemon/steps"
	"banger/internal/errdefs"
)

type world struct{ log []string }

func list(n int) []steps.Step[*world] {
	var out []steps.Step[*world]
	for i := range n {
		out = append(out, steps.Step[*world]{
			Name: fmt.Sprint(i),
			Do: func(_ context.Context, w *world) error {
				w.log = append(w.log, fmt.Sprint("do", i))
				return nil
			},
			Undo: func(ctx context.Context, w *world) error {
				w.log = append(w.log, fmt.Sprint("undo", i))
				return ctx.Err() // the undo's context is alive
			},
		})
	}
	return out
}

func TestUndoesInReverseIncludingTheFailedStep(t *testing.T) {
	w := &world{}
	boom := errors.New("boom")
	all := list(3)
	all[2].Do = func(context.Context, *world) error { return boom }
	err := steps.Run(context.Background(), steps.Runner{}, w, all)
	if !errors.Is(err, boom) {
		t.Errorf("error %v", err)
	}
	if want := []string{"do0", "do1", "undo2", "undo1", "undo0"}; !reflect.DeepEqual(w.log, want) {
		t.Errorf("ran %v, want %v", w.log, want)
	}
}

func TestCancelledContextUndoes(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	w := &world{}
	all := list(3)
	all[1].Do = func(context.Context, *world) error { cancel(); return nil }
	err := steps.Run(ctx, steps.Runner{}, w, all)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if want := []string{"do0", "undo2", "undo1", "undo0"}; !reflect.DeepEqual(w.log, want) {
		t.Errorf("ran %v, want %v", w.log, want)
	}
}

func TestCrashUndoesNothing(t *testing.T) {
	for done, want := range map[bool][]string{false: {"do0"}, true: {"do0", "do1"}} {
		w := &world{}
		err := steps.Run(context.Background(), steps.Runner{Faults: func(s string, d bool) error {
			if s == "1" && d == done {
				return steps.ErrCrash
			}
			return nil
		}}, w, list(3))
		if !errors.Is(err, steps.ErrCrash) {
			t.Errorf("error %v", err)
		}
		if !reflect.DeepEqual(w.log, want) {
			t.Errorf("ran %v, want %v", w.log, want)
		}
	}
}

// A step that is made to fail before it did anything is undone like any other.
func TestFaultBeforeAStep(t *testing.T) {
	w := &world{}
	boom := errors.New("boom")
	err := steps.Run(context.Background(), steps.Runner{Faults: func(s string, done bool) error {
		if s == "1" && !done {
			return boom
		}
		return nil
	}}, w, list(3))
	if !errors.Is(err, boom) {
		t.Errorf("error %v", err)
	}
	if want := []string{"do0", "undo1", "undo0"}; !reflect.DeepEqual(w.log, want) {
		t.Errorf("ran %v, want %v", w.log, want)
	}
}

// What comes before an undo that failed is what is left of the change, and stays.
func TestFailedUndoIsTheLast(t *testing.T) {
	w := &world{}
	boom, bang := errors.New("boom"), errors.New("bang")
	all := list(4)
	all[3].Do = func(context.Context, *world) error { return boom }
	all[1].Undo = func(context.Context, *world) error { return bang }
	err := steps.Run(context.Background(), steps.Runner{}, w, all)
	if !errors.Is(err, boom) || !errors.Is(err, bang) {
		t.Errorf("error %v", err)
	}
	if want := []string{"do0", "do1", "do2", "undo3", "undo2"}; !reflect.DeepEqual(w.log, want) {
		t.Errorf("ran %v, want %v", w.log, want)
	}
}

// A step reports its cancellation in the words, and so the class, of what it was doing.
func TestCancelledStepKeepsTheClassOfTheCause(t *testing.T) {
	ctx, cancel := context.WithCancelCause(context.Background())
	cause := errdefs.New(errdefs.ClassCanceled, "killed")
	all := list(2)
	all[1].Do = func(context.Context, *world) error {
		cancel(cause)
		return errdefs.Unavailable("dial: %w", cause)
	}
	if err := steps.Run(ctx, steps.Runner{}, &world{}, all); errdefs.ClassOf(err) != errdefs.ClassCanceled || !errors.Is(err, cause) {
		t.Errorf("error %v has class %s", err, errdefs.ClassOf(err))
	}
}

// Steps on a part of something run, and are undone, as that part's.
func TestOn(t *testing.T) {
	type whole struct{ part *world }
	w := whole{&world{}}
	all := list(2)
	all[1].Undo = nil
	boom := errors.New("boom")
	parts := append(steps.On(all, func(w whole) *world { return w.part }), steps.Step[whole]{
		Name: "last", Do: func(context.Context, whole) error { return boom },
	})
	if err := steps.Run(context.Background(), steps.Runner{}, w, parts); !errors.Is(err, boom) {
		t.Errorf("got %v", err)
	}
	if want := []string{"do0", "do1", "undo0"}; !reflect.DeepEqual(w.part.log, want) {
		t.Errorf("got %v, want %v", w.part.log, want)
	}
}

// The limit of a step ends what it waits for, and nothing else: one that takes longer
// all the same, and does what it is to do, has done so.
func TestLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var part []steps.Step[*world]
		for range 2 {
			part = append(part, steps.Step[*world]{Name: "slow", Do: func(context.Context, *world) error {
				<-time.After(2 * time.Minute)
				return nil
			}})
		}
		all := steps.On(steps.Limit(part, time.Minute), func(w *world) *world { return w })
		all = append(all, steps.Step[*world]{Name: "last", Do: func(ctx context.Context, _ *world) error {
			if _, bounded := ctx.Deadline(); bounded {
				t.Error("a step without a limit has one")
			}
			return nil
		}})
		if err := steps.Run(t.Context(), steps.Runner{}, &world{}, all); err != nil {
			t.Errorf("slow steps: %v", err)
		}
		all[1].Do = func(ctx context.Context, _ *world) error {
			<-ctx.Done()
			return context.Cause(ctx)
		}
		err := steps.Run(t.Context(), steps.Runner{}, &world{}, all)
		if errdefs.ClassOf(err) != errdefs.ClassTimeout || !strings.Contains(err.Error(), "slow takes longer than 1m0s") {
			t.Errorf("a step that waits: %v", err)
		}
	})
}
