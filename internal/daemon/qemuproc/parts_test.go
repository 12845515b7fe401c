package qemuproc_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"banger/internal/daemon/qemuproc"
	"banger/internal/errdefs"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/tsc"
)

// plainSpec is a spec whose files exist but hold nothing: it is not started.
func plainSpec(t *testing.T) hypervisor.Spec {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"kernel", "initramfs", "modules"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	vm := filepath.Join(dir, "vm")
	return hypervisor.Spec{
		VMID: "0123456789ab", Dir: vm, CPUs: 2, MemoryMiB: 512, Machine: "pc-q35-7.2", CPUModel: "Westmere-v1",
		Vmlinux: filepath.Join(dir, "kernel"), Initramfs: filepath.Join(dir, "initramfs"), MAC: "52:54:00:12:34:56",
		Disks: []hypervisor.Disk{
			{Serial: hypervisor.SerialRoot, Path: filepath.Join(vm, "root.qcow2"), Format: hypervisor.FormatQcow2},
			{Serial: hypervisor.SerialModules, Path: filepath.Join(dir, "modules"), Format: hypervisor.FormatRaw, ReadOnly: true},
		},
	}
}

// Two VMs of one shape have one command line: a template of the one restores as
// the other, and no guest can tell which it is.
func TestNothingOfOneVM(t *testing.T) {
	a, b := plainSpec(t), plainSpec(t)
	b.VMID = "ba9876543210"
	b.UID, b.GID = 1234, 1234
	one, err := qemuproc.Arguments(a, hypervisor.AccelTCG)
	if err != nil {
		t.Fatal(err)
	}
	two, err := qemuproc.Arguments(b, hypervisor.AccelTCG)
	if err != nil {
		t.Fatal(err)
	}
	for i, arg := range one {
		if i > 0 && one[i-1] == "-name" {
			continue
		}
		if two[i] != arg {
			t.Errorf("argument %d: %q and %q", i, arg, two[i])
		}
		if strings.Contains(arg, a.Dir) || strings.Contains(arg, a.VMID) {
			t.Errorf("argument %d names the VM: %q", i, arg)
		}
	}
	// Disks that are added later move none that were there.
	more := a
	more.Disks = append(slices.Clone(a.Disks), hypervisor.Disk{Serial: "more", Path: a.Disks[1].Path, Format: hypervisor.FormatRaw})
	three, err := qemuproc.Arguments(more, hypervisor.AccelTCG)
	if err != nil {
		t.Fatal(err)
	}
	for _, arg := range one {
		if strings.Contains(arg, "addr=") && !slices.Contains(three, arg) {
			t.Errorf("a third disk changed %q", arg)
		}
	}
}

func TestCheckSpec(t *testing.T) {
	for name, bend := range map[string]func(*hypervisor.Spec){
		"relative dir":  func(s *hypervisor.Spec) { s.Dir = "vm" },
		"no cpus":       func(s *hypervisor.Spec) { s.CPUs = 0 },
		"no memory":     func(s *hypervisor.Spec) { s.MemoryMiB = 0 },
		"negative":      func(s *hypervisor.Spec) { s.MemoryMiB = -512 },
		"no kernel":     func(s *hypervisor.Spec) { s.Vmlinux = "" },
		"id":            func(s *hypervisor.Spec) { s.VMID = "a,b" },
		"machine":       func(s *hypervisor.Spec) { s.Machine = "pc-q35-7.2,smm=on" },
		"cpu":           func(s *hypervisor.Spec) { s.CPUModel = "" },
		"mac":           func(s *hypervisor.Spec) { s.MAC = "52:54:00:12:34:56,x=y" },
		"serial":        func(s *hypervisor.Spec) { s.Disks[0].Serial = "a,b" },
		"long serial":   func(s *hypervisor.Spec) { s.Disks[0].Serial = strings.Repeat("s", 21) },
		"format":        func(s *hypervisor.Spec) { s.Disks[0].Format = "" },
		"nine disks":    func(s *hypervisor.Spec) { s.Disks = slices.Repeat(s.Disks, 5)[:9] },
		"absurd number": func(s *hypervisor.Spec) { s.CPUs = 100000 },
	} {
		t.Run(name, func(t *testing.T) {
			s := plainSpec(t)
			if err := qemuproc.CheckSpec(s); err != nil {
				t.Fatal(err)
			}
			bend(&s)
			if err := qemuproc.CheckSpec(s); errdefs.ClassOf(err) != errdefs.ClassInvalidArgument {
				t.Errorf("got %v", err)
			}
			// Start says the same, before it looks at anything.
			if _, err := newDriver().Start(t.Context(), s); errdefs.ClassOf(err) != errdefs.ClassInvalidArgument {
				t.Errorf("start: %v", err)
			}
		})
	}
}

func TestCmdline(t *testing.T) {
	tcg, kvm := qemuproc.Cmdline(hypervisor.AccelTCG, "banger.x=1"), qemuproc.Cmdline(hypervisor.AccelKVM, "")
	if !strings.HasSuffix(tcg, " banger.x=1") || !strings.Contains(tcg, "mitigations=off") {
		t.Errorf("tcg: %q", tcg)
	}
	if rate := fmt.Sprintf(" tsc_early_khz=%d ", tsc.MHz()*1000); tsc.MHz() != 0 && !strings.Contains(tcg, rate) {
		t.Errorf("tcg: %q lacks%s", tcg, rate)
	}
	if strings.Contains(kvm, "mitigations") || strings.Contains(kvm, "tsc") || strings.HasSuffix(kvm, " ") {
		t.Errorf("kvm: %q", kvm)
	}
}

func TestNewestMachine(t *testing.T) {
	for want, names := range map[string][]string{
		"":             {"none", "pc", "q35", "pc-q35-noble", "pc-i440fx-9.0", "pc-q35-4.0.1"},
		"pc-q35-7.2":   {"pc-q35-2.12", "pc-q35-7.2", "pc-q35-7.1", "q35"},
		"pc-q35-10.0":  {"pc-q35-9.2", "pc-q35-10.0", "pc-q35-9.10"},
		"pc-q35-10.10": {"pc-q35-10.2", "pc-q35-10.10", "pc-q35-plucky"},
	} {
		if got := qemuproc.NewestMachine(names); got != want {
			t.Errorf("%v: got %q, want %q", names, got, want)
		}
	}
}

func TestMissingQEMU(t *testing.T) {
	for name, path := range map[string]string{"missing": "/nonexistent/qemu", "not QEMU": "/bin/true", "no program": "/etc/hostname"} {
		t.Run(name, func(t *testing.T) {
			_, err := qemuproc.New(qemuproc.Deps{Binary: path}).Info(t.Context())
			if errdefs.ClassOf(err) != errdefs.ClassUnsupported || !strings.Contains(errdefs.HintOf(err), "apt-get install qemu-system-x86") {
				t.Errorf("got %v (hint %q)", err, errdefs.HintOf(err))
			}
		})
	}
}

func TestLastLines(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got := qemuproc.LastLines(f, 3); got != "" {
		t.Errorf("empty log: %q", got)
	}
	_, _ = f.WriteString(strings.Repeat("old ", 2000) + "\n" +
		"2026-01-02T03:04:05.678901Z qemu-system-x86_64: -device x: no such thing\n\n" +
		"warning: plain\n2026-01-02T03:04:05.678901Z /usr/libexec/qemu-kvm: bye\n")
	if got := qemuproc.LastLines(f, 3); got != "-device x: no such thing; warning: plain; bye" {
		t.Errorf("got %q", got)
	}
}

// An accelerator that hides what no guest needs is still good for a VM.
func TestPickModel(t *testing.T) {
	wanted := []string{"Haswell-v4", "Westmere-v1", "Nehalem-v1"}
	for _, c := range []struct {
		offered []qemuproc.CPUDefinition
		want    string
	}{
		{[]qemuproc.CPUDefinition{{Name: "Nehalem-v1"}, {Name: "Westmere-v1"}}, "Westmere-v1"},
		{[]qemuproc.CPUDefinition{{Name: "Nehalem-v1"}, {Name: "Westmere-v1", Missing: []string{"vme"}}}, "Nehalem-v1"},
		{[]qemuproc.CPUDefinition{{Name: "Haswell-v4", Missing: []string{"vme", "pcid"}},
			{Name: "Nehalem-v1", Missing: []string{"vme"}}, {Name: "Westmere-v1", Missing: []string{"vme"}}}, "Westmere-v1,-vme"},
		{[]qemuproc.CPUDefinition{{Name: "Westmere-v1", Missing: []string{"ssse3"}}, {Name: "qemu64-v1"}}, ""},
		{nil, ""},
	} {
		if got := qemuproc.PickModel(wanted, c.offered); got != c.want {
			t.Errorf("of %v: %q, want %q", c.offered, got, c.want)
		}
	}
	s := plainSpec(t)
	for model, good := range map[string]bool{"Westmere-v1,-vme": true, "EPYC-v1,-xsavec,+svm": true, "a,b=c": false, "a,b": false, "": false} {
		s.CPUModel = model
		if err := qemuproc.CheckSpec(s); (err == nil) != good {
			t.Errorf("CPU model %q: %v", model, err)
		}
	}
}

// A VM that runs VMs has the extension that the accelerator provides.
func TestNestedModel(t *testing.T) {
	offered := []qemuproc.CPUDefinition{{Name: "Westmere-v1"}, {Name: "EPYC-v1", Missing: []string{"sha-ni", "xsavec"}}}
	for _, c := range []struct {
		accel         hypervisor.Accel
		offered       []qemuproc.CPUDefinition
		nesting, want string
	}{
		{hypervisor.AccelTCG, offered, "", "EPYC-v1,-sha-ni,-xsavec,+svm,+npt"},
		{hypervisor.AccelTCG, offered[:1], "vmx", ""},
		{hypervisor.AccelKVM, offered, "vmx", "Westmere-v1,+vmx"},
		{hypervisor.AccelKVM, offered, "", ""},
	} {
		got := qemuproc.NestedModel(c.accel, "Westmere-v1", c.offered, c.nesting)
		s := plainSpec(t)
		if s.CPUModel = got; got != c.want || got != "" && qemuproc.CheckSpec(s) != nil {
			t.Errorf("%s, %q: %q, want %q", c.accel, c.nesting, got, c.want)
		}
	}
	modules := t.TempDir()
	for text, want := range map[string]string{"Y\n": "svm", "1": "svm", "N\n": "", "0\n": ""} {
		dir := filepath.Join(modules, "kvm_amd", "parameters")
		if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "nested"), []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
		if got := qemuproc.HostNesting(modules); got != want {
			t.Errorf("nested is %q: %q, want %q", text, got, want)
		}
	}
}
