package daemon

import (
	"context"
	"errors"
	"strings"
	"testing"

	"banger/internal/daemon/vm"
	"banger/internal/errdefs"
	"banger/internal/hypervisor"
	"banger/internal/model"
)

// named is a driver of which only the name and the probe matter.
type named struct {
	hypervisor.Driver
	name    string
	userNet bool
	tap     bool
	err     error
}

func (n named) Name() string { return n.name }

func (n named) Info(context.Context) (hypervisor.Info, error) {
	return hypervisor.Info{Driver: n.name, Capabilities: hypervisor.Capabilities{UserNet: n.userNet, Tap: n.tap}}, n.err
}

func TestPick(t *testing.T) {
	noKVM := errors.New("Firecracker needs KVM: there is no /dev/kvm")
	for name, c := range map[string]struct {
		configured string
		want       vm.Want
		err        error // of Firecracker's probe
		driver     string
		why        string
	}{
		"fits":              {"auto", vm.Want{Net: model.NetNone}, nil, "firecracker", "KVM works"},
		"needs a network":   {"auto", vm.Want{Net: model.NetUser}, nil, "qemu", "no user-mode network"},
		"on the bridge":     {"auto", vm.Want{Net: model.NetBridge}, nil, "firecracker", "KVM works"},
		"nested":            {"auto", vm.Want{Net: model.NetNone, Nested: true}, nil, "qemu", "no VMs of their own"},
		"no KVM":            {"auto", vm.Want{Net: model.NetNone}, noKVM, "qemu", "no /dev/kvm"},
		"asked for":         {"auto", vm.Want{Net: model.NetNone, Driver: "qemu"}, nil, "qemu", "asked for"},
		"asked, configured": {"qemu", vm.Want{Net: model.NetUser, Driver: "firecracker"}, noKVM, "firecracker", "asked for"},
		"asked for auto":    {"qemu", vm.Want{Net: model.NetNone, Driver: "auto"}, nil, "firecracker", "KVM works"},
		"configured":        {"qemu", vm.Want{Net: model.NetNone}, nil, "qemu", "configured"},
	} {
		t.Run(name, func(t *testing.T) {
			p := picker{configured: c.configured, drivers: map[string]hypervisor.Driver{
				"qemu":        named{name: "qemu", userNet: true},
				"firecracker": named{name: "firecracker", tap: true, err: c.err},
			}}
			got, err := p.pick(t.Context(), c.want)
			if err != nil {
				t.Fatal(err)
			}
			if got.Driver.Name() != c.driver || !strings.Contains(got.Why, c.why) {
				t.Errorf("%s, %s; want %s, %s", got.Driver.Name(), got.Why, c.driver, c.why)
			}
		})
	}
	drivers := map[string]hypervisor.Driver{"qemu": named{name: "qemu"}, "firecracker": named{name: "firecracker"}}
	got, err := picker{configured: "auto", drivers: drivers}.pick(t.Context(), vm.Want{Net: model.NetBridge})
	if err != nil || got.Driver.Name() != "qemu" || !strings.Contains(got.Why, "not connected to the bridge") {
		t.Errorf("without taps: %+v, %v", got, err)
	}
	_, err = picker{configured: "auto"}.pick(t.Context(), vm.Want{Driver: "xen"})
	if errdefs.ClassOf(err) != errdefs.ClassUnsupported {
		t.Errorf("got %v", err)
	}
}

// The daemon's flag overrules its config.
func TestNoJailer(t *testing.T) {
	for _, without := range []bool{false, true} {
		h := newHost(t)
		h.opts.NoJailer = without
		d := h.serve()
		if d.conf.Config.Firecracker.Jail == without {
			t.Errorf("without the jailer: %v, jailed: %v", without, d.conf.Config.Firecracker.Jail)
		}
		d.end(h)
	}
}
