package vmcap_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"banger/internal/api/bangerv1"
	"banger/internal/daemon/steps"
	"banger/internal/daemon/vmcap"
	"banger/internal/doctor"
	"banger/internal/guest"
	"banger/internal/hypervisor"
	"banger/internal/model"
)

// recorder notes which hooks are called, and fails one of them.
type recorder struct {
	calls []string
	fail  string
}

var errHook = errors.New("the hook failed")

func (r *recorder) hook(name string) func(context.Context, *model.VM) error {
	return func(context.Context, *model.VM) error {
		r.calls = append(r.calls, name)
		if name == r.fail {
			return errHook
		}
		return nil
	}
}

func (r *recorder) take() string {
	all := strings.Join(r.calls, " ")
	r.calls = nil
	return all
}

// full has every hook that is about one VM.
func (r *recorder) full(name string) vmcap.Capability {
	return vmcap.Capability{
		Name:    name,
		Reserve: r.hook("Reserve-" + name), Prepare: r.hook("Prepare-" + name), Started: r.hook("Started-" + name),
		Running: r.hook("Running-" + name), Changed: r.hook("Changed-" + name),
		CleanUp: r.hook("CleanUp-" + name), Release: r.hook("Release-" + name),
	}
}

func run(list []steps.Step[*model.VM]) error {
	return steps.Run(context.Background(), steps.Runner{}, &model.VM{}, list)
}

// Hooks run in the order of the list, and in reverse where they undo.
func TestOrder(t *testing.T) {
	r := &recorder{}
	reg := vmcap.New(r.full("a"), vmcap.Capability{Name: "none"}, r.full("b"))
	v := &model.VM{}
	for _, c := range []struct {
		list []steps.Step[*model.VM]
		want string
	}{
		{reg.ReserveSteps(v), "Reserve-a Reserve-b"},
		{reg.PrepareSteps(v), "Prepare-a Prepare-b"},
		{reg.StartedSteps(v), "Started-a Started-b"},
		{reg.RunningSteps(v), "Running-a Running-b"},
		{reg.CleanUpSteps(v), "CleanUp-b CleanUp-a"},
		{reg.ReleaseSteps(v), "Release-b Release-a"},
	} {
		if err := run(c.list); err != nil {
			t.Error(err)
		}
		if got := r.take(); got != c.want {
			t.Errorf("called %q, want %q", got, c.want)
		}
	}
	r.fail = "Prepare-b"
	if err := run(reg.PrepareSteps(v)); !errors.Is(err, errHook) {
		t.Errorf("got %v", err)
	}
	if got, want := r.take(), "Prepare-a Prepare-b CleanUp-b CleanUp-a"; got != want {
		t.Errorf("called %q, want %q", got, want)
	}
	r.fail = "Reserve-a"
	if err := run(reg.ReserveSteps(v)); !errors.Is(err, errHook) {
		t.Errorf("got %v", err)
	}
	if got, want := r.take(), "Reserve-a Release-a"; got != want {
		t.Errorf("called %q, want %q", got, want)
	}
}

// What is done after the VMM has started is undone too, where nothing is to prepare.
func TestCleanUpWithoutPreparation(t *testing.T) {
	r := &recorder{}
	reg := vmcap.New(vmcap.Capability{Name: "late", Running: r.hook("Running"), CleanUp: r.hook("CleanUp")})
	v := &model.VM{}
	failing := steps.Step[*model.VM]{Name: "last", Do: func(context.Context, *model.VM) error { return errHook }}
	if err := run(slices.Concat(reg.PrepareSteps(v), reg.RunningSteps(v), []steps.Step[*model.VM]{failing})); !errors.Is(err, errHook) {
		t.Errorf("got %v", err)
	}
	if got, want := r.take(), "Running CleanUp"; got != want {
		t.Errorf("called %q, want %q", got, want)
	}
}

// Nothing is called for a VM that does not have the capability, and restore is called
// though no VM has it.
func TestOnlyOfThoseWhoHaveIt(t *testing.T) {
	r := &recorder{}
	c := r.full("bridge")
	c.Has = func(v *model.VM) bool { return v.Spec.Net == model.NetBridge }
	c.Preflight = func(context.Context, *model.VM, *bangerv1.CreateRequest) error { return errHook }
	c.Image = func(context.Context, *model.VM, *bangerv1.CreateRequest, *model.ImageConfig) error { return errHook }
	c.Driver = func(hypervisor.Capabilities) error { return errHook }
	c.Machine = func(context.Context, *model.VM, *hypervisor.Spec) error { return errHook }
	c.Guest = func(context.Context, *model.VM, *guest.Configure) error { return errHook }
	c.Describe = func(context.Context) (func(*model.VM, *bangerv1.VM), error) {
		return func(_ *model.VM, out *bangerv1.VM) { out.DnsName = "known" }, nil
	}
	var restored [][]*model.VM
	c.Restore = func(_ context.Context, running []*model.VM) error {
		restored = append(restored, running)
		return errHook
	}
	c.Checks = func(context.Context) []doctor.Check { return []doctor.Check{{Name: "one"}} }
	reg := vmcap.New(c, vmcap.Capability{Name: "none"})
	ctx := context.Background()
	has, hasNot := &model.VM{Spec: model.VMSpec{Net: model.NetBridge}}, &model.VM{Spec: model.VMSpec{Net: model.NetUser}}
	describe, err := reg.Describe(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range []*model.VM{has, hasNot} {
		want := error(nil)
		if v == has {
			want = errHook
		}
		r.fail = "Changed-bridge"
		for name, err := range map[string]error{
			"preflight": reg.Preflight(ctx, v, nil), "image": reg.Image(ctx, v, nil, nil), "driver": reg.Driver(v, hypervisor.Capabilities{}),
			"machine": reg.Machine(ctx, v, nil), "guest": reg.Guest(ctx, v, nil), "changed": reg.Changed(ctx, v),
		} {
			if !errors.Is(err, want) || (err == nil) != (want == nil) {
				t.Errorf("%s of a VM of mode %s: %v", name, v.Spec.Net, err)
			}
		}
		var out bangerv1.VM
		describe(v, &out)
		if (out.DnsName != "") != (v == has) {
			t.Errorf("a VM of mode %s is described as %q", v.Spec.Net, out.DnsName)
		}
		n := len(reg.ReserveSteps(v)) + len(reg.PrepareSteps(v)) + len(reg.StartedSteps(v)) + len(reg.RunningSteps(v)) +
			len(reg.CleanUpSteps(v)) + len(reg.ReleaseSteps(v))
		if (n == 6) != (v == has) || (n == 0) != (v == hasNot) {
			t.Errorf("%d steps for a VM of mode %s", n, v.Spec.Net)
		}
	}
	for _, running := range [][]*model.VM{{hasNot, has}, {hasNot}} {
		if err := reg.Restore(ctx, running); !errors.Is(err, errHook) {
			t.Errorf("restore: %v", err)
		}
	}
	if len(restored) != 2 || len(restored[0]) != 1 || restored[0][0] != has || len(restored[1]) != 0 {
		t.Errorf("restored %v", restored)
	}
	if checks := reg.Checks(ctx); len(checks) != 1 {
		t.Errorf("checks %v", checks)
	}
}

// A preflight may make a VM one that has what comes later in the list, and only that.
func TestPreflightGoesByWhatThoseBeforeItMade(t *testing.T) {
	asked := ""
	of := func(name string, mode model.Net) vmcap.Capability {
		return vmcap.Capability{
			Name: name, Has: func(v *model.VM) bool { return v.Spec.Net == mode },
			Preflight: func(context.Context, *model.VM, *bangerv1.CreateRequest) error { asked += name; return nil },
		}
	}
	reg := vmcap.New(of("a", model.NetBridge), vmcap.Capability{
		Name: "b", Preflight: func(_ context.Context, v *model.VM, _ *bangerv1.CreateRequest) error {
			v.Spec.Net = model.NetBridge
			return nil
		},
	}, of("c", model.NetBridge), of("d", model.NetUser))
	if err := reg.Preflight(t.Context(), &model.VM{Spec: model.VMSpec{Net: model.NetUser}}, &bangerv1.CreateRequest{}); err != nil || asked != "c" {
		t.Errorf("asked %q, %v", asked, err)
	}
}
