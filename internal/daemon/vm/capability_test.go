package vm_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"banger/internal/api/bangerv1"
	"banger/internal/daemon/vmcap"
	"banger/internal/guest"
	"banger/internal/hypervisor"
	"banger/internal/model"
)

// A capability that nobody has heard of: a locker for each VM as long as it exists,
// which is open while the VM runs. Everything about it stands in this file.
type locker struct {
	mu      sync.Mutex
	content map[string]string // by the VM's id
}

func (l *locker) hooks(w *world) vmcap.Capability {
	set := func(call, state string) func(context.Context, *model.VM) error {
		return func(_ context.Context, v *model.VM) error {
			return w.around("locker "+call, func() error { return l.set(v.ID, state) })
		}
	}
	return vmcap.Capability{
		Name:    "locker",
		Reserve: set("Reserve", "shut"),
		Prepare: set("Prepare", "ajar"),
		Machine: func(context.Context, *model.VM, *hypervisor.Spec) error {
			return w.around("locker Machine", func() error { return nil })
		},
		Started: set("Started", "half open"),
		Guest: func(context.Context, *model.VM, *guest.Configure) error {
			return w.around("locker Guest", func() error { return nil })
		},
		Running: set("Running", "open"),
		Changed: set("Changed", "open"),
		CleanUp: func(_ context.Context, v *model.VM) error {
			return w.around("locker CleanUp", func() error {
				if slices.Contains(w.processes(), v.ID) {
					return errors.New("the locker is shut before the VMM has ended")
				}
				l.mu.Lock()
				defer l.mu.Unlock()
				if l.content[v.ID] != "" {
					l.content[v.ID] = "shut"
				}
				return nil
			})
		},
		Release: set("Release", ""),
		Restore: func(_ context.Context, running []*model.VM) error {
			l.mu.Lock()
			defer l.mu.Unlock()
			for id := range l.content {
				l.content[id] = "shut"
			}
			for _, v := range running {
				l.content[v.ID] = "open"
			}
			return nil
		},
		Describe: func(context.Context) (func(*model.VM, *bangerv1.VM), error) {
			return func(v *model.VM, out *bangerv1.VM) { out.Workdir = "/locker/" + v.ID }, nil
		},
	}
}

// set changes the state of a locker; one that is not there is made by "shut" only.
func (l *locker) set(id, state string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if state == "" {
		delete(l.content, id)
		return nil
	}
	if l.content[id] == "" && state != "shut" {
		return fmt.Errorf("the VM has no locker to be %s", state)
	}
	l.content[id] = state
	return nil
}

func (l *locker) state() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return fmt.Sprintf("lockers %v", l.content)
}

func (l *locker) legal(all, running []string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if have := slices.Sorted(maps.Keys(l.content)); !slices.Equal(have, all) {
		return fmt.Errorf("lockers are there for %v, want %v", have, all)
	}
	for id, state := range l.content {
		if open := state == "open"; open != slices.Contains(running, id) || !open && state != "shut" {
			return fmt.Errorf("the locker of %s is %s; running: %v", id, state, running)
		}
	}
	return nil
}

func withLocker(t *testing.T) []verb {
	var list []verb
	for _, v := range verbsOf(model.NetNone) {
		if v.name != "create without start" && v.name != "delete" { // less than their neighbours
			v.more = func() capability { return &locker{content: map[string]string{}} }
			list = append(list, v)
		}
	}
	if len(list) == 0 {
		t.Fatal("no verb is left to sweep")
	}
	return list
}

// The sweep knows the steps of a capability that was registered and nothing else.
func TestFailAtEveryStepOfAnotherCapability(t *testing.T) { failAtEveryStep(t, withLocker(t)) }

func TestCrashAtEveryStepOfAnotherCapability(t *testing.T) { crashAtEveryStep(t, withLocker(t)) }

func TestEveryHookOfACapabilityIsAPoint(t *testing.T) {
	passed := map[string]bool{}
	for _, v := range withLocker(t) {
		points, _, _ := v.passed(t)
		for _, p := range points {
			if call, ok := strings.CutPrefix(p.call, "locker "); ok {
				passed[call] = true
			}
		}
	}
	want := []string{"CleanUp", "Guest", "Machine", "Prepare", "Release", "Reserve", "Running", "Started"}
	if got := slices.Sorted(maps.Keys(passed)); !slices.Equal(got, want) {
		t.Errorf("the verbs call %v, want %v", got, want)
	}
}

// A rename and a restart of the daemon reach it, and what it says of a VM is told.
func TestCapabilityFollowsAVM(t *testing.T) {
	l := &locker{content: map[string]string{}}
	w := newWorldWith(t, func(w *world) { w.more = append(w.more, l) })
	w.must(w.create("dev", true))
	v := w.get("dev")
	if v.Workdir != "/locker/"+v.Id {
		t.Errorf("of the VM is said %q", v.Workdir)
	}
	w.checkLegal()
	w.restart()
	w.checkLegal()
	w.must(l.set(v.Id, "ajar"))
	w.rename("dev", "other")
	w.checkLegal() // open again
}
