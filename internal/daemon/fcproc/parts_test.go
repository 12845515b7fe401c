package fcproc_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"banger/internal/daemon/fcproc"
	"banger/internal/errdefs"
	"banger/internal/hypervisor"
)

func TestParseVersion(t *testing.T) {
	for out, want := range map[string]string{
		"Firecracker v1.16.1\n\nexiting": "1.16.1",
		"Firecracker v1.8.0":             "1.8.0",
		"Firecracker v1.17.0-dev\n":      "1.17.0-dev",
		"Firecracker v1.10.1\r\n":        "1.10.1",
		"Firecracker":                    "",
		"Firecracker v1":                 "",
		"Firecracker v1.x.2":             "",
		"Jailer v1.16.1":                 "",
		"":                               "",
		"QEMU emulator version 7.2.22":   "",
		"Firecracker v1.2" + strings.Repeat("3", 60):         "",
		"Firecracker v99999999999999999999.2":                "",
		"Firecracker v1.16.1 with something behind it\nmore": "",
	} {
		_, _, text, err := fcproc.ParseVersion(out, "Firecracker")
		if text != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v; want %q", out, text, err, want)
		}
	}
	if major, minor, _, err := fcproc.ParseVersion("Jailer v1.12.9\n", "Jailer"); major != 1 || minor != 12 || err != nil {
		t.Errorf("%d.%d, %v", major, minor, err)
	}
}

// script makes a program of a few lines of shell.
func script(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "firecracker")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestUnfitPrograms(t *testing.T) {
	for name, c := range map[string]struct{ path, want string }{
		"missing":    {"/nonexistent/firecracker", "not installed"},
		"too old":    {script(t, "echo Firecracker v1.7.3"), "1.7.3 is too old"},
		"not one":    {script(t, "echo hello"), `is not Firecracker: asked for its version it says "hello"`},
		"fails":      {script(t, "echo wrong option >&2; exit 2"), "wrong option"},
		"no program": {"/etc/hostname", "/etc/hostname"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := fcproc.New(fcproc.Deps{Binary: c.path, NoJailer: true}).Info(t.Context())
			if errdefs.ClassOf(err) != errdefs.ClassUnsupported || !strings.Contains(errdefs.HintOf(err), "1.8 or newer") || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v (hint %q), want %q", err, errdefs.HintOf(err), c.want)
			}
		})
	}
}

func TestCapabilities(t *testing.T) {
	for release, want := range map[string][2]bool{
		"1.8.0": {false, false}, "1.12.0": {true, false}, "1.16.0": {true, true}, "2.0.0": {true, true},
	} {
		info, err := fcproc.New(fcproc.Deps{Binary: script(t, "echo Firecracker v"+release), NoJailer: true}).Info(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		c := info.Capabilities
		if got := [2]bool{c.NetOverride, c.VsockOverride}; got != want || c.QcowDisks || c.UserNet || c.Link || !c.Pause {
			t.Errorf("%s: %+v", release, c)
		}
	}
}

// The jailer must be of the same release; without one there is a way out.
func TestUnfitJailer(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root makes jails")
	}
	fc := script(t, "echo Firecracker v1.10.1")
	for name, c := range map[string]struct{ path, want string }{
		"missing": {"/nonexistent/jailer", "not installed"},
		"older":   {script(t, "echo Jailer v1.9.0"), "jailer has version 1.9.0 and Firecracker 1.10.1"},
	} {
		_, err := fcproc.New(fcproc.Deps{Binary: fc, Jailer: c.path}).Info(t.Context())
		if errdefs.ClassOf(err) != errdefs.ClassUnsupported || !strings.Contains(errdefs.HintOf(err), "firecracker.jail: false") || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v (%s)", name, err, errdefs.HintOf(err))
		}
	}
	// One that lies beside it is found, under the name of a release as well.
	dir := t.TempDir()
	for name, program := range map[string]string{"firecracker-v1.10.1-x86_64": "Firecracker", "jailer-v1.10.1-x86_64": "Jailer"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\necho "+program+" v1.10.1\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := fcproc.New(fcproc.Deps{Binary: filepath.Join(dir, "firecracker-v1.10.1-x86_64")}).Info(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestKVMIsAsked(t *testing.T) {
	d := fcproc.New(fcproc.Deps{Binary: script(t, "echo Firecracker v1.16.1"), NoJailer: true, KVM: kvmAbsent})
	if _, err := d.Info(t.Context()); errdefs.ClassOf(err) != errdefs.ClassUnsupported || !strings.Contains(err.Error(), "no KVM") {
		t.Errorf("got %v", err)
	}
}

func TestCheckSpec(t *testing.T) {
	good := hypervisor.Spec{
		VMID: "x", Dir: "/vm", CPUs: 2, MemoryMiB: 512, Machine: "fc-mmio-1", CPUModel: "host", Vmlinux: "/k", MAC: "52:54:00:12:34:56",
	}
	for name, bend := range map[string]func(*hypervisor.Spec){
		"relative dir":  func(s *hypervisor.Spec) { s.Dir = "vm" },
		"no cpus":       func(s *hypervisor.Spec) { s.CPUs = 0 },
		"many cpus":     func(s *hypervisor.Spec) { s.CPUs = 33 },
		"negative":      func(s *hypervisor.Spec) { s.MemoryMiB = -512 },
		"no kernel":     func(s *hypervisor.Spec) { s.Vmlinux = "" },
		"machine":       func(s *hypervisor.Spec) { s.Machine = "pc-q35-7.2" },
		"cpu":           func(s *hypervisor.Spec) { s.CPUModel = "Westmere-v1" },
		"mac":           func(s *hypervisor.Spec) { s.MAC = "x" },
		"card, no tap":  func(s *hypervisor.Spec) { s.LinkUp = true },
		"tap":           func(s *hypervisor.Spec) { s.Tap = "../etc" },
		"qcow2":         func(s *hypervisor.Spec) { s.Disks[0].Format = hypervisor.FormatQcow2 },
		"serial":        func(s *hypervisor.Spec) { s.Disks[0].Serial = "a,b" },
		"same serial":   func(s *hypervisor.Spec) { s.Disks[1].Serial = "root" },
		"nine disks":    func(s *hypervisor.Spec) { s.Disks = make([]hypervisor.Disk, 9) },
		"limit":         func(s *hypervisor.Spec) { s.Disks[0].Limit.OpsPerSecond = -1 },
		"absurd number": func(s *hypervisor.Spec) { s.CPUs = 100000 },
	} {
		t.Run(name, func(t *testing.T) {
			s := good
			s.Disks = []hypervisor.Disk{{Serial: "root", Format: hypervisor.FormatRaw}, {Serial: "modules", Format: hypervisor.FormatRaw}}
			if err := fcproc.CheckSpec(s); err != nil {
				t.Fatal(err)
			}
			bend(&s)
			switch err := fcproc.CheckSpec(s); errdefs.ClassOf(err) {
			case errdefs.ClassInvalidArgument, errdefs.ClassUnsupported, errdefs.ClassFailedPrecondition:
			default:
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestCmdline(t *testing.T) {
	line := fcproc.Cmdline([]hypervisor.Disk{{Serial: "root"}, {Serial: "modules"}}, "banger.x=1")
	if !strings.HasSuffix(line, " banger.machine=mmio banger.disks=root,modules banger.x=1") {
		t.Errorf("got %q", line)
	}
	if line := fcproc.Cmdline(nil, ""); strings.Contains(line, "banger.disks") || strings.HasSuffix(line, " ") {
		t.Errorf("got %q", line)
	}
}

// What Firecracker and its jailer say when something is wrong, and what it means.
func TestExplain(t *testing.T) {
	for text, want := range map[string]errdefs.Class{
		"The kernel file cannot be opened: No such file or directory (os error 2)":                                           errdefs.ClassFailedPrecondition,
		"The kernel file cannot be opened: Permission denied (os error 13)":                                                  errdefs.ClassPermission,
		"Start microvm error: Kernel Loader: failed to load ELF kernel image: Invalid ELF magic number":                      errdefs.ClassFailedPrecondition,
		"Start microvm error: Cannot load kernel due to invalid memory configuration or invalid kernel image: Kernel Loader": errdefs.ClassFailedPrecondition,
		"Start microvm error: Cannot load initrd due to an invalid memory configuration.":                                    errdefs.ClassFailedPrecondition,
		"Start microvm error: Invalid Memory Configuration: Cannot create mmap region: Cannot allocate memory (os error 12)": errdefs.ClassExhausted,
		"The memory size (MiB) is invalid.": errdefs.ClassInvalidArgument,
		"The vCPU number is invalid!":       errdefs.ClassInvalidArgument,
		"Start microvm error: Kvm error: Error creating KVM object: No such file or directory (os error 2)":                   errdefs.ClassUnavailable,
		"Internal error while starting microVM: Could not access KVM: Permission denied":                                      errdefs.ClassUnavailable,
		"Unable to create the block device: BackingFile(Os { code: 2, message: \"No such file or directory\" }, \"disk\")":    errdefs.ClassFailedPrecondition,
		"Could not create the network device: Open tap device failed: Error while creating ifreq structure: Resource busy":    errdefs.ClassFailedPrecondition,
		"Failed to exec into Firecracker: No such file or directory (os error 2)":                                             errdefs.ClassUnsupported,
		"Failed to create /dev/kvm via mknod inside the jail: Operation not permitted (os error 1)":                           errdefs.ClassUnsupported,
		"Failed to unshare into new mount namespace: Operation not permitted (os error 1)":                                    errdefs.ClassUnavailable,
		"An error occurred when deserializing the json body of a request: unknown field `stats_polling_interval_s`, expected": errdefs.ClassUnsupported,
		"Arguments parsing error: Found argument 'level' which wasn't expected":                                               errdefs.ClassUnsupported,
	} {
		class, hint := fcproc.Explain(text)
		if class != want || hint == "" {
			t.Errorf("%s:\n\tclass %s, want %s; hint %q", text, class, want, hint)
		}
	}
	if class, _ := fcproc.Explain("something new"); class != errdefs.ClassInternal {
		t.Errorf("class %s", class)
	}
}

func TestStrip(t *testing.T) {
	for line, want := range map[string]string{
		"2026-11-27T15:53:46.899034906 [vm:main] it ends":         "it ends",
		"2026-11-27T15:53:46.899034906 [vm:fc_vcpu 0] a [b] c":    "a [b] c",
		"thread 'main' panicked at src/main.rs: [vm] index":       "thread 'main' panicked at src/main.rs: [vm] index",
		"Error: Failed to create directory /T: [x] Not permitted": "Error: Failed to create directory /T: [x] Not permitted",
	} {
		if got := fcproc.Strip(line); got != want {
			t.Errorf("%q: got %q", line, got)
		}
	}
}

// A jail reaches only files of its own file system, and says so before anything runs.
func TestJailOnAnotherFileSystem(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root makes jails")
	}
	useFake(t)
	dir := t.TempDir()
	spec := testSpec(t, dir)
	var here, there unix.Stat_t
	other, err := os.MkdirTemp("/dev/shm", "banger-test-")
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(other) })
	if unix.Stat(dir, &here) != nil || unix.Stat(other, &there) != nil || here.Dev == there.Dev {
		t.Skip("/dev/shm is no other file system")
	}
	spec.Vmlinux = filepath.Join(other, "kernel")
	if err := os.WriteFile(spec.Vmlinux, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	_, err = newDriver().Start(t.Context(), spec)
	if errdefs.ClassOf(err) != errdefs.ClassFailedPrecondition || !strings.Contains(err.Error(), "another file system") || !strings.Contains(errdefs.HintOf(err), "firecracker.jail") {
		t.Errorf("got %v (%s)", err, errdefs.HintOf(err))
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("left behind: %v", entries)
	}
}
