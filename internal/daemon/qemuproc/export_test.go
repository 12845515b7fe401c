package qemuproc

import (
	"os"

	"banger/internal/daemon/qemuproc/qmp"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/vmmlog"
)

// MonitorOf gives tests the connection a machine holds; QEMU has no second.
func MonitorOf(hm hypervisor.Machine) *qmp.Client {
	return hm.(*machine).monitor.current()
}

// Arguments is the command line for s.
func Arguments(s hypervisor.Spec, accel hypervisor.Accel) ([]string, error) {
	out := &outside{dir: s.Dir}
	defer out.close()
	return arguments(s, accel, out)
}

// The parts below are tested by themselves.
var (
	CheckSpec     = checkSpec
	NewestMachine = newestMachine
	PickModel     = pickModel
	NestedModel   = nestedModel
	HostNesting   = hostNesting
	LastLines     = func(f *os.File, n int) string { return vmmlog.Last(f, n, strip) }
)

// CPUDefinition is a CPU model as QEMU describes it.
type CPUDefinition = cpuDefinition
