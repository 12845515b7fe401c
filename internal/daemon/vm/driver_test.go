package vm_test

import (
	"strings"
	"testing"

	"banger/internal/errdefs"
	"banger/internal/hypervisor"
)

// A kernel that cannot boot in the machine that the driver makes is refused in words,
// and nothing of the VM is left.
func TestKernelForAnotherMachine(t *testing.T) {
	w := newWorld(t)
	w.fake.bend = func(can *hypervisor.Capabilities) { can.MMIO = true }
	was := w.snapshot()
	err := w.create("one", true)
	if errdefs.ClassOf(err) != errdefs.ClassUnsupported || !strings.Contains(err.Error(), "without PCI") || !strings.Contains(errdefs.HintOf(err), "--driver qemu") {
		t.Errorf("got %v (%s)", err, errdefs.HintOf(err))
	}
	if now := w.snapshot(); now != was {
		t.Errorf("the world is\n%swas\n%s", now, was)
	}
}
