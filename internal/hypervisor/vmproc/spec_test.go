package vmproc_test

import (
	"testing"

	"banger/internal/errdefs"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/vmproc"
)

func TestCheckSpec(t *testing.T) {
	good := hypervisor.Spec{Dir: "/vm", MemoryMiB: 32, MAC: "52:54:00:12:34:56"}
	for name, bend := range map[string]func(*hypervisor.Spec){
		"relative dir": func(s *hypervisor.Spec) { s.Dir = "vm" },
		"negative":     func(s *hypervisor.Spec) { s.MemoryMiB = -512 },
		"little":       func(s *hypervisor.Spec) { s.MemoryMiB = 31 },
		"mac":          func(s *hypervisor.Spec) { s.MAC = "x" },
		"no serial":    func(s *hypervisor.Spec) { s.Disks[0].Serial = "" },
		"serial":       func(s *hypervisor.Spec) { s.Disks[0].Serial = "a,b" },
		"long serial":  func(s *hypervisor.Spec) { s.Disks[0].Serial = "a23456789012345678901" },
		"same serial":  func(s *hypervisor.Spec) { s.Disks[1].Serial = "root" },
		"nine disks":   func(s *hypervisor.Spec) { s.Disks = make([]hypervisor.Disk, 9) },
		"bytes":        func(s *hypervisor.Spec) { s.Disks[1].Limit.BytesPerSecond = -1 },
		"operations":   func(s *hypervisor.Spec) { s.Disks[0].Limit.OpsPerSecond = -1 },
	} {
		t.Run(name, func(t *testing.T) {
			s := good
			s.Disks = []hypervisor.Disk{{Serial: "root"}, {Serial: "modules"}}
			if err := vmproc.CheckSpec(s); err != nil {
				t.Fatal(err)
			}
			bend(&s)
			if err := vmproc.CheckSpec(s); errdefs.ClassOf(err) != errdefs.ClassInvalidArgument {
				t.Errorf("got %v", err)
			}
		})
	}
}
