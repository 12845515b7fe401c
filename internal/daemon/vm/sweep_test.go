package vm_test

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"banger/internal/daemon/steps"
	"banger/internal/daemon/steps/stepstest"
	"banger/internal/errdefs"
	"banger/internal/model"
)

// verb is swept: it begins in a world its before has made.
type verb struct {
	name   string
	mode   model.Net
	more   func() capability // one that the world has besides; nil: none
	before func(w *world)
	do     func(w *world) error
	// after is the state of the VM when the verb has succeeded; "": it is gone.
	after model.State
	// final is the first point after which a failure does not put everything back:
	// something was destroyed. The zero point: there is none.
	final point
	// commit is the point from which on the verb holds although the daemon dies.
	commit point
}

// verbs are those of VMs on the user-mode network, and of VMs on the bridge those
// that pass all of its steps.
func verbs() []verb {
	all := verbsOf(model.NetUser)
	for _, v := range verbsOf(model.NetBridge) {
		if v.name == "create" || v.name == "delete a running one" {
			v.name += " on the bridge"
			all = append(all, v)
		}
	}
	return all
}

func verbsOf(mode model.Net) []verb {
	create := func(start bool) func(w *world) error {
		return func(w *world) error { return w.create("dev", start) }
	}
	nothing := func(*world) {}
	running := func(w *world) { w.must(w.create("dev", true)) }
	stopped := func(w *world) {
		w.must(w.create("dev", true)) // its logs and its guest's files are there
		w.must(w.stop("dev"))
	}
	remove := func(w *world) error { return w.delete("dev", true) }
	list := []verb{
		{
			name: "create", before: nothing, do: create(true), after: model.StateRunning,
			commit: point{"publish", "UpdateVM", true},
		}, {
			name: "create without start", before: nothing, do: create(false), after: model.StateStopped,
			commit: point{"settle", "UpdateVM", true},
		}, {
			name: "start", before: stopped, do: func(w *world) error { return w.start("dev") }, after: model.StateRunning,
			commit: point{"publish", "UpdateVM", true},
		}, {
			name: "stop", before: running, do: func(w *world) error { return w.stop("dev") }, after: model.StateStopped,
			final: point{"shut down", "", true}, commit: point{"shut down", "", true},
		}, {
			name: "delete", before: stopped, do: remove,
			final: point{"remove files", "RemoveDisk", false}, commit: point{"mark", "UpdateVM", true},
		}, {
			name: "delete a running one", before: running, do: remove,
			final: point{"end vmm", "ReleaseDisk", false}, commit: point{"mark", "UpdateVM", true},
		},
	}
	for i := range list {
		list[i].mode = mode
	}
	return list
}

// recorder notes the points a verb passes, and fails, or crashes, at one of them.
type recorder struct {
	mu     sync.Mutex
	at     int // -1: never
	err    error
	points []point
	over   bool // the daemon has died: nothing it does reaches the world any more
}

func (r *recorder) hit(p point) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over {
		return steps.ErrCrash
	}
	r.points = append(r.points, p)
	if r.at != len(r.points)-1 {
		return nil
	}
	r.over = errors.Is(r.err, steps.ErrCrash)
	return r.err
}

// passed returns the points so far. The watcher of a VMM may still pass some.
func (r *recorder) passed() []point {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.points)
}

// passed runs the verb undisturbed and returns the points it passes, and which of
// them is the final and which the committing one.
func (v verb) passed(t *testing.T) (points []point, final, commit int) {
	t.Helper()
	w := newSweptWorld(t, v)
	v.before(w)
	r := &recorder{at: -1}
	w.injectAt(r.hit)
	w.must(v.do(w))
	w.inject(nil)
	w.checkLegal()
	v.check(t, w)
	points = r.passed()
	final, commit = slices.Index(points, v.final), slices.Index(points, v.commit)
	if v.final == (point{}) {
		final = len(points)
	}
	if final < 0 || commit < 0 {
		t.Fatalf("the final or the committing point is not among %v: the sweep would prove nothing", points)
	}
	return points, final, commit
}

// newSweptWorld makes a world with one turn to boot: one that is not given back is
// missed by the next start.
func newSweptWorld(t *testing.T, v verb) *world {
	return newWorldWith(t, func(w *world) {
		w.boots, w.mode = 1, v.mode
		if v.more != nil {
			w.more = append(w.more, v.more())
		}
	})
}

// check verifies that the world is as after the verb.
func (v verb) check(t *testing.T, w *world) {
	t.Helper()
	switch all := w.vms(); {
	case v.after == "" && len(all) == 0:
	case v.after != "" && len(all) == 1 && all[0].State == v.after:
	default:
		t.Errorf("VMs %+v are left, want one that is %q", all, v.after)
	}
}

var errInjected = errors.New("injected fault")

func (p point) String() string {
	when := "before"
	if p.done {
		when = "after"
	}
	return fmt.Sprintf("%s %s %s", when, p.step, p.call)
}

// sweep runs fn once for every point of every verb, in a world of its own.
func sweep(t *testing.T, verbs []verb, err error, fn func(t *testing.T, w *world, v verb, was string, final, commit bool)) {
	for _, v := range verbs {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			points, final, commit := v.passed(t)
			for i, p := range points {
				// Before a step and before the first call it makes is the same moment; so is,
				// to one that dies, before something and after what came last.
				first := i+1 < len(points) && !p.done && p.call == "" && !points[i+1].done
				if first || !p.done && i > 0 && errors.Is(err, steps.ErrCrash) {
					continue
				}
				if !stepstest.Sampled() {
					continue
				}
				t.Run(p.String(), func(t *testing.T) {
					w := newSweptWorld(t, v)
					v.before(w)
					was := w.snapshot()
					r := &recorder{at: i, err: err}
					w.injectAt(r.hit)
					if v.do(w) == nil {
						t.Fatal("the verb succeeded")
					}
					if got := r.passed(); len(got) <= i || !slices.Equal(got[:i+1], points[:i+1]) {
						t.Fatalf("the verb passed %v, undisturbed %v", got, points)
					}
					fn(t, w, v, was, i >= final, i >= commit)
				})
			}
		})
	}
}

// Every step of every verb fails, having done nothing, half of it (around each call
// it makes) or all: the world is as it was, or where something was destroyed legal,
// and the verb can be done again.
func TestFailAtEveryStep(t *testing.T) { failAtEveryStep(t, verbs()) }

func failAtEveryStep(t *testing.T, verbs []verb) {
	sweep(t, verbs, errInjected, func(t *testing.T, w *world, v verb, was string, final, _ bool) {
		w.inject(nil)
		if final {
			finish(t, w)
			return
		}
		if now := w.snapshot(); now != was {
			t.Errorf("the world is\n%swas\n%s", now, was)
		}
		w.must(v.do(w))
		v.check(t, w)
		w.checkLegal()
	})
}

// finish lets what was interrupted come to its end: the watcher settles a VM whose
// VMM is gone, and a second delete finishes the first.
func finish(t *testing.T, w *world) {
	t.Helper()
	for _, v := range w.vms() {
		if v.State == model.StateDeleting {
			if err := w.delete(v.Name, true); !errors.Is(err, errdefs.ErrNotFound) { // else the watcher was first
				w.must(err)
			}
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

// The daemon dies at every one of these points: for the next one either nothing has
// happened or all of it.
func TestCrashAtEveryStep(t *testing.T) { crashAtEveryStep(t, verbs()) }

func crashAtEveryStep(t *testing.T, verbs []verb) {
	sweep(t, verbs, steps.ErrCrash, func(t *testing.T, w *world, v verb, was string, _, commit bool) {
		w.restart()
		w.checkLegal()
		if commit {
			v.check(t, w)
			return
		}
		if now := w.snapshot(); now != was {
			t.Errorf("the world is\n%swas\n%s", now, was)
		}
		w.must(v.do(w))
		v.check(t, w)
		w.checkLegal()
	})
}

// undoes makes a verb fail at the point last, and with it the undoing at one of the
// points that this passes.
type undoes struct {
	recorder
	last   point
	undone []point // passed after the verb has failed
}

func (u *undoes) hit(p point) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.over {
		if u.over = p == u.last; u.over {
			return errInjected
		}
		return nil
	}
	u.undone = append(u.undone, p)
	if u.at == len(u.undone)-1 {
		return errInjected
	}
	return nil
}

// A verb that has done all but its last step fails, and so does the undoing, at each of
// its points: the VM is still known by its row, as whatever is left is found from that,
// and a kill and a delete, or the next daemon, brings all to an end.
func TestFailAtEveryUndo(t *testing.T) {
	for _, v := range verbs() {
		if v.final != (point{}) || v.name == "create" || v.name == "create without start" {
			continue // it undoes next to nothing, or less than another does
		}
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			fail := func(t *testing.T, at int) (*world, *undoes) {
				w := newSweptWorld(t, v)
				v.before(w)
				u := &undoes{recorder: recorder{at: at}, last: point{v.commit.step, v.commit.call, false}}
				w.injectAt(u.hit)
				if v.do(w) == nil {
					t.Fatal("the verb succeeded")
				}
				w.inject(nil)
				return w, u
			}
			_, all := fail(t, -1)
			if len(all.undone) < 4 {
				t.Fatalf("undoing passes only %v: the sweep would prove nothing", all.undone)
			}
			for i, p := range all.undone {
				for name, settle := range map[string]func(w *world){
					"delete": func(w *world) { w.must(w.delete("dev", true)) },
					"kill":   func(w *world) { w.must(w.kill("dev")) },
					"daemon": func(w *world) { w.restart() },
				} {
					if !stepstest.Sampled() {
						continue
					}
					t.Run(fmt.Sprintf("%d %s, %s", i, p, name), func(t *testing.T) {
						w, u := fail(t, i)
						if len(u.undone) <= i || !slices.Equal(u.undone[:i+1], all.undone[:i+1]) {
							t.Fatalf("undoing passed %v, undisturbed %v", u.undone, all.undone)
						}
						if len(w.vms()) == 0 {
							w.checkLegal() // the last undo removes the row, and did
							return
						}
						settle(w)
						w.checkLegal()
						if len(w.vms()) > 0 {
							w.must(w.start("dev"))
							w.checkLegal()
						} else {
							w.must(w.create("dev", true))
						}
					})
				}
			}
		})
	}
}
