package hostnet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/nftables"

	"banger/internal/daemon/steps"
)

// verbs are swept: fails in each step, and separately the daemon dies after it.
var verbs = []struct {
	name   string
	before func(*world)
	do     func(*world) error
}{
	{name: "first attach", before: func(*world) {}, do: attachOne},
	{name: "attach", before: func(w *world) { w.attach(VM{ID: "old", Network: "lab"}) }, do: attachOne},
	{name: "detach", before: func(w *world) {
		w.attach(VM{ID: "old", Network: "lab"})
		w.must(attachOne(w))
	}, do: func(w *world) error { return w.s.Detach(context.Background(), "new") }},
}

func attachOne(w *world) error {
	_, err := w.s.Attach(context.Background(), VM{ID: "new", Network: "lab", Expose: []uint16{80}})
	return err
}

// stepsOf runs the verb undisturbed and returns how many steps it has.
func stepsOf(t *testing.T, before func(*world), do func(*world) error) (names []string) {
	t.Helper()
	t.Run("undisturbed", func(t *testing.T) {
		w := newWorld(t)
		before(w)
		w.s.Faults = func(step string, done bool) error {
			if done {
				names = append(names, step)
			}
			return nil
		}
		w.must(do(w))
		w.s.Faults = nil
		w.end()
	})
	return names
}

// end detaches everybody, so that the world's own end may take all away.
func (w *world) end() {
	w.t.Helper()
	for _, id := range []string{"old", "new"} {
		w.must(w.s.Release(context.Background(), id))
	}
}

// legal compares what is on the host with who is attached: everything of an attached
// VM is there, and nothing of another.
func (w *world) legal() {
	w.t.Helper()
	w.s.hostBatch <- struct{}{} // the filler waits meanwhile
	defer func() { <-w.s.hostBatch }()
	w.s.mu.Lock()
	guests, warm := len(w.s.guests), slices.Clone(w.s.warm)
	up := w.s.plan != nil
	w.s.mu.Unlock()
	bound := 0
	for _, l := range w.mem.leases {
		if l.Tap != "" {
			bound++
			warm = append(warm, l.Tap)
		}
	}
	if bound != guests {
		w.t.Errorf("%d leases name a tap, %d VMs are attached", bound, guests)
	}
	slices.Sort(warm)
	if owned := w.owned(); !slices.Equal(owned, warm) {
		w.t.Errorf("taps on the host: %v, bound or warm: %v", owned, warm)
	}
	if !up {
		return
	}
	for set, each := range map[string]int{"source": 1, "source4": 1, "source6": 2, "network": 1, "members": 1} {
		if n := w.elements(nftables.TableFamilyBridge, set); n != each*guests {
			w.t.Errorf("set %s has %d elements for %d VMs", set, n, guests)
		}
	}
	for set, each := range map[string]int{"outside4": 1, "outside6": 1, "network4": 1, "network6": 2, "members6": 2} {
		if n := w.elements(nftables.TableFamilyINet, set); n != each*guests {
			w.t.Errorf("set %s has %d elements for %d VMs", set, n, guests)
		}
	}
}

var errInjected = errors.New("injected fault")

func TestFailAtEveryStep(t *testing.T) {
	for _, verb := range verbs {
		t.Run(verb.name, func(t *testing.T) {
			for i, step := range stepsOf(t, verb.before, verb.do) {
				t.Run(step, func(t *testing.T) {
					w := newWorld(t)
					traces := w.traces()
					verb.before(w)
					before := fmt.Sprint(w.mem.leases)
					n := 0
					w.s.Faults = func(_ string, done bool) error {
						if !done {
							return nil
						}
						if n++; n == i+1 {
							return errInjected
						}
						return nil
					}
					err := verb.do(w)
					w.s.Faults = nil
					if !errors.Is(err, errInjected) {
						t.Fatalf("the verb gave %v", err)
					}
					switch {
					case verb.name == "detach":
						w.must(verb.do(w)) // it is repeated, not undone
					case fmt.Sprint(w.mem.leases) != before:
						t.Errorf("leases are %v, were %s", w.mem.leases, before)
					case verb.name == "first attach" && w.s.current() == nil && w.traces() != traces:
						t.Errorf("left on the host:\n%s", w.traces())
					}
					w.legal()
					w.must(attachOne(w))
					w.legal()
					w.end()
				})
			}
		})
	}
}

// The daemon dies after every step. The next one is told that the VM of before
// runs and that the other does not: its start, or its stop, was under way.
func TestCrashAfterEveryStep(t *testing.T) {
	for _, verb := range verbs {
		t.Run(verb.name, func(t *testing.T) {
			for i, step := range stepsOf(t, verb.before, verb.do) {
				t.Run(step, func(t *testing.T) {
					w := newWorld(t)
					verb.before(w)
					n := 0
					w.s.Faults = func(_ string, done bool) error {
						if !done {
							return nil
						}
						if n++; n == i+1 {
							return steps.ErrCrash
						}
						return nil
					}
					if err := verb.do(w); !errors.Is(err, steps.ErrCrash) {
						t.Fatalf("the verb gave %v", err)
					}
					var running []VM
					if _, there := w.mem.leases["old"]; there {
						running = append(running, VM{ID: "old", Network: "lab"})
					}
					w.restart(running...)
					w.legal()
					if guests := len(w.s.guests); guests != len(running) {
						t.Errorf("%d VMs are attached, %d run", guests, len(running))
					}
					w.must(attachOne(w))
					w.legal()
					w.end()
				})
			}
		})
	}
}

// Everything that was known is lost but what the store keeps; and then even a tap.
func TestRestoreFindsWhatNobodyRemembers(t *testing.T) {
	w := newWorld(t)
	keep, lose := VM{ID: "old", Network: "lab"}, VM{ID: "new", Network: "lab"}
	kept, _ := w.attach(keep), w.attach(lose)
	w.must(w.mem.UpdateLease(t.Context(), "new", func(l *Lease, _ []netip.Addr) error { l.Tap = ""; return nil }))
	w.must(w.s.Close())
	w.s = New(w.deps)
	lost, err := w.s.Restore(t.Context(), []VM{keep, lose})
	w.must(err)
	if !slices.Equal(lost, []string{"new"}) {
		t.Errorf("lost %v, want the VM of which no tap is known", lost)
	}
	w.legal()
	if again := w.attach(keep); again.Tap != kept.Tap {
		t.Errorf("the running VM is at %s, was at %s", again.Tap, kept.Tap)
	}
	w.end()
}
