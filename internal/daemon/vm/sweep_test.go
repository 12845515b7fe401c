package vm_test

import (
	"errors"
	"slices"
	"sync"
	"testing"

	"banger/internal/daemon/steps"
	"banger/internal/model"
)

// verbs are swept: each begins in a world its before has made.
var verbs = []struct {
	name   string
	before func(w *world)
	do     func(w *world) error
	// restores says that a failure leaves the world as it was. A verb that has
	// ended a VMM cannot; its VM is then stopped, or being deleted.
	restores bool
}{
	{name: "create", before: func(*world) {}, do: func(w *world) error { return w.create("dev", true) }, restores: true},
	{name: "create without start", before: func(*world) {}, do: func(w *world) error { return w.create("dev", false) }, restores: true},
	{
		name: "start", before: func(w *world) { w.must(w.create("dev", false)) },
		do: func(w *world) error { return w.start("dev") }, restores: true,
	},
	{
		name: "stop", before: func(w *world) { w.must(w.create("dev", true)) },
		do: func(w *world) error { return w.stop("dev") },
	},
	{
		name: "delete", before: func(w *world) { w.must(w.create("dev", false)) },
		do: func(w *world) error { return w.delete("dev", false) },
	},
	{
		name: "delete a running one", before: func(w *world) { w.must(w.create("dev", true)) },
		do: func(w *world) error { return w.delete("dev", true) },
	},
}

// recorder fails, or crashes after, the n-th step of a verb, once.
type recorder struct {
	mu    sync.Mutex
	at    int // -1: never
	err   error
	steps []string
}

func (r *recorder) after(step string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.steps = append(r.steps, step)
	if r.at == len(r.steps)-1 {
		return r.err
	}
	return nil
}

// stepsOf runs the verb undisturbed and returns the names of its steps.
func stepsOf(t *testing.T, before func(*world), do func(*world) error) []string {
	t.Helper()
	w := newWorld(t)
	before(w)
	r := &recorder{at: -1}
	w.inject(r.after)
	w.must(do(w))
	w.inject(nil)
	w.checkLegal()
	if len(r.steps) < 2 {
		t.Fatalf("only steps %v were seen: the sweep would prove nothing", r.steps)
	}
	return r.steps
}

var errInjected = errors.New("injected fault")

// Every step of every verb fails once: the world is legal afterwards, and as it
// was where the verb promises that.
func TestFailAtEveryStep(t *testing.T) {
	for _, verb := range verbs {
		t.Run(verb.name, func(t *testing.T) {
			for i, step := range stepsOf(t, verb.before, verb.do) {
				t.Run(step, func(t *testing.T) {
					w := newWorld(t)
					verb.before(w)
					was := w.snapshot()
					r := &recorder{at: i, err: errInjected}
					w.inject(r.after)
					err := verb.do(w)
					w.inject(nil)
					if err == nil {
						t.Fatal("the verb succeeded although a step failed")
					}
					switch now := w.snapshot(); {
					case verb.restores && now != was:
						t.Errorf("the world is\n%swas\n%s", now, was)
					case verb.restores:
						w.checkLegal()
					default:
						finish(t, w)
					}
				})
			}
		})
	}
}

// finish lets what was interrupted come to its end: the watcher settles a VM whose
// VMM is gone, and a second delete finishes the first.
func finish(t *testing.T, w *world) {
	t.Helper()
	for _, v := range w.vms() {
		if v.State == model.StateDeleting {
			w.must(w.delete(v.Name, true))
			continue
		}
		if !slices.Contains(w.processes(), v.ID) {
			if got := w.settled(v.Name); got != model.StateStopped {
				t.Errorf("vm %s settled as %s", v.Name, got)
			}
		}
	}
	w.checkLegal()
}

// The daemon dies after every step of every verb; the next one finds its way.
func TestCrashAfterEveryStep(t *testing.T) {
	for _, verb := range verbs {
		t.Run(verb.name, func(t *testing.T) {
			for i, step := range stepsOf(t, verb.before, verb.do) {
				t.Run(step, func(t *testing.T) {
					w := newWorld(t)
					verb.before(w)
					r := &recorder{at: i, err: steps.ErrCrash}
					w.inject(r.after)
					if err := verb.do(w); err == nil {
						t.Fatal("the verb succeeded although the daemon died")
					}
					w.restart()
					w.checkLegal()
					// Nothing half-made stands in the way of doing it all again.
					for _, v := range w.vms() {
						if v.State == model.StateStopped {
							w.must(w.start(v.Name))
						}
					}
					if len(w.vms()) == 0 {
						w.must(w.create("dev", true))
					}
					w.checkLegal()
				})
			}
		})
	}
}
