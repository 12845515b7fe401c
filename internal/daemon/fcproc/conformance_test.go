package fcproc_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/daemon/fcproc"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/accel"
	"banger/internal/hypervisor/hypervisortest"
	"banger/internal/nettest"
	"banger/internal/paths"
)

// The tests with a real Firecracker need one, and KVM that runs guests:
//
//	FIRECRACKER_BIN  the program; else firecracker in PATH
//	JAILER_BIN       its jailer; else beside it or in PATH. It needs a Firecracker
//	                 that is statically linked.
//
// What is missing makes them skip.

// noJailEnv makes newDriver do without the jailer, in a child too.
const noJailEnv = "BANGER_TEST_NO_JAIL"

// vmmUID is who VMMs run as when the tests run as root.
const vmmUID = 65534

// fakeEnv makes newDriver take the test binary for Firecracker, in a child too; it
// names a directory of links to it.
const fakeEnv = "BANGER_TEST_FAKE"

func newDriver() hypervisor.Driver {
	binary, jailer := os.Getenv("FIRECRACKER_BIN"), os.Getenv("JAILER_BIN")
	if fakes := os.Getenv(fakeEnv); fakes != "" {
		binary, jailer = filepath.Join(fakes, "firecracker"), filepath.Join(fakes, "jailer")
	}
	return fcproc.New(fcproc.Deps{Binary: binary, Jailer: jailer, NoJailer: os.Getenv(noJailEnv) != ""})
}

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == probeArg {
		os.Exit(accel.ChildMain(os.Args[2:]))
	}
	if code, ok := fakeProgram(os.Args[1:]); ok {
		syscall.Exit(code) // under the race detector os.Exit takes a second
	}
	if code, ok := hypervisortest.Main(newDriver); ok {
		os.Exit(code)
	}
	if err := nettest.Move(); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// eachWay runs a test with the fake and with the real Firecracker, without the
// jailer and with it.
func eachWay(t *testing.T, test func(t *testing.T)) {
	for _, way := range []struct {
		name         string
		fake, jailed bool
	}{{"fake", true, false}, {"fake jailed", true, true}, {"bare", false, false}, {"jailed", false, true}} {
		t.Run(way.name, func(t *testing.T) {
			if way.jailed && os.Geteuid() != 0 {
				t.Skip("only root makes jails")
			}
			if way.fake {
				useFake(t)
			} else if way.jailed && os.Getenv("JAILER_BIN") == "" {
				t.Skip("JAILER_BIN names no jailer")
			}
			if !way.jailed {
				t.Setenv(noJailEnv, "1")
			}
			requireFirecracker(t)
			test(t)
		})
	}
}

// useFake makes newDriver take the test binary for Firecracker.
func useFake(t *testing.T) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	fakes := t.TempDir()
	if err := os.Chmod(filepath.Dir(fakes), 0o711); err != nil { // the VMM's user runs it
		t.Fatal(err)
	}
	for _, name := range []string{"firecracker", "jailer"} {
		if err := os.WriteFile(filepath.Join(fakes, name), b, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv(fakeEnv, fakes)
}

// requireFirecracker skips where there is none, or where KVM runs no guest.
func requireFirecracker(t *testing.T) hypervisor.Info {
	t.Helper()
	info, err := newDriver().Info(t.Context())
	if err != nil {
		if os.Getenv(fakeEnv) != "" {
			t.Fatal(err)
		}
		t.Skipf("needs Firecracker: %v", err)
	}
	if os.Getenv(fakeEnv) != "" {
		return info
	}
	if err := kvmRuns(); err != nil {
		t.Skipf("needs KVM that runs guests: %v", err)
	}
	return info
}

// testSpec is a machine with the suite's own kernel.
func testSpec(t *testing.T, dir string) hypervisor.Spec {
	t.Helper()
	info := requireFirecracker(t)
	// A jail reaches no other file system than its own.
	kernel := filepath.Join(filepath.Dir(dir), filepath.Base(dir)+" kernel")
	disk := filepath.Join(dir, "disk, raw.img")
	for name, data := range map[string][]byte{kernel: hypervisortest.Kernel(hypervisortest.Keyboard), disk: make([]byte, 1<<20)} {
		if err := os.WriteFile(name, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	spec := hypervisor.Spec{
		VMID: "0123456789ab", Dir: dir, CPUs: 1, MemoryMiB: 64, Machine: info.Machine, CPUModel: info.CPUModel,
		Vmlinux: kernel, MAC: "52:54:00:12:34:56",
		Disks: []hypervisor.Disk{{Serial: hypervisor.SerialRoot, Path: disk, Format: hypervisor.FormatRaw,
			Limit: hypervisor.DiskLimit{BytesPerSecond: 100 << 20, OpsPerSecond: 5000}}},
	}
	if os.Geteuid() == 0 {
		// As the daemon has it: the VMM's user owns its disk, and may only pass through
		// the directory.
		spec.UID, spec.GID = vmmUID, vmmUID
		if err := os.Chown(disk, vmmUID, vmmUID); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(dir, 0, vmmUID); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, 0o710); err != nil {
			t.Fatal(err)
		}
	}
	return spec
}

// booted waits until the guest has said hello on its console.
func booted(t *testing.T, dir string) {
	t.Helper()
	waitFor(t, filepath.Join(dir, paths.ConsoleLog), hypervisortest.Hello)
}

// waitFor waits until a file holds text.
func waitFor(t *testing.T, file, text string) {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	w := os.NewFile(uintptr(fd), "inotify")
	defer w.Close()
	if _, err := unix.InotifyAddWatch(fd, file, unix.IN_MODIFY); err != nil {
		t.Fatal(err)
	}
	if err := w.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	for buf := make([]byte, 4<<10); ; {
		b, _ := os.ReadFile(file)
		if strings.Contains(string(b), text) {
			return
		}
		if _, err := w.Read(buf); err != nil {
			t.Fatalf("waiting for %q in %s: %v; it holds %q", text, file, err, b)
		}
	}
}

// placeOf is where a VMM works in a VM directory.
func placeOf(t *testing.T) string {
	t.Helper()
	if os.Getenv(noJailEnv) != "" || os.Geteuid() != 0 {
		return paths.FirecrackerDir
	}
	return filepath.Join(paths.JailDir, filepath.Base(requireFirecracker(t).Binary), "vm/root")
}

func TestConformance(t *testing.T) {
	eachWay(t, func(t *testing.T) {
		place := placeOf(t)
		hypervisortest.Run(t, hypervisortest.Harness{
			New:     newDriver,
			Spec:    testSpec,
			Break:   func(s *hypervisor.Spec) { s.MemoryMiB = 1 << 40 },
			Booted:  booted,
			Taps:    os.Getenv(fakeEnv) == "", // the stand-in opens none
			Sockets: []string{filepath.Join(place, paths.AgentSocket), filepath.Join(place, paths.APISocket)},
		})
	})
}
