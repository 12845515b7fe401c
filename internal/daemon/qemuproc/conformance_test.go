package qemuproc_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/daemon/qemuproc"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/hypervisortest"
	"banger/internal/nettest"
	"banger/internal/paths"
)

func newDriver() hypervisor.Driver { return qemuproc.New(qemuproc.Deps{}) }

func TestMain(m *testing.M) {
	if code, ok := hypervisortest.Main(newDriver); ok {
		os.Exit(code)
	}
	if err := nettest.Move(); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// requireQEMU skips where there is none.
func requireQEMU(t *testing.T) hypervisor.Info {
	t.Helper()
	info, err := newDriver().Info(t.Context())
	if err != nil {
		t.Skipf("needs QEMU: %v", err)
	}
	return info
}

// testSpec is a machine with the suite's own kernel: real QEMU, no downloads.
func testSpec(t *testing.T, dir string) hypervisor.Spec {
	t.Helper()
	info := requireQEMU(t)
	kernel := filepath.Join(t.TempDir(), "kernel")
	disk := filepath.Join(dir, "disk, raw.img")
	for name, data := range map[string][]byte{kernel: hypervisortest.Kernel(hypervisortest.ACPI), disk: make([]byte, 1<<20)} {
		if err := os.WriteFile(name, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return hypervisor.Spec{
		VMID: "0123456789ab", Dir: dir, CPUs: 1, MemoryMiB: 64, Machine: info.Machine, CPUModel: info.CPUModel,
		Vmlinux: kernel, LinkUp: true, MAC: "52:54:00:12:34:56",
		Disks: []hypervisor.Disk{{Serial: hypervisor.SerialRoot, Path: disk, Format: hypervisor.FormatRaw}},
	}
}

// booted waits until the guest has said hello on its console.
func booted(t *testing.T, dir string) {
	t.Helper()
	waitFor(t, filepath.Join(dir, paths.ConsoleLog), hypervisortest.Hello)
}

// waitFor waits until a file holds text.
func waitFor(t *testing.T, file, text string) {
	t.Helper()
	onChange(t, filepath.Dir(file), func() bool {
		b, _ := os.ReadFile(file)
		return strings.Contains(string(b), text)
	})
}

// onChange waits until done, which is asked again whenever a file in dir changes.
func onChange(t *testing.T, dir string, done func() bool) {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	w := os.NewFile(uintptr(fd), "inotify")
	defer w.Close()
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_MODIFY|unix.IN_CREATE); err != nil {
		t.Fatal(err)
	}
	if err := w.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	for buf := make([]byte, 4<<10); !done(); {
		if _, err := w.Read(buf); err != nil {
			t.Fatalf("waiting for a change in %s: %v", dir, err)
		}
	}
}

func TestConformance(t *testing.T) {
	requireQEMU(t)
	hypervisortest.Run(t, hypervisortest.Harness{
		New:    newDriver,
		Spec:   testSpec,
		Break:  func(s *hypervisor.Spec) { s.Vmlinux = filepath.Join(s.Dir, "no-kernel") },
		Booted: booted,
		Taps:   true,
	})
}
