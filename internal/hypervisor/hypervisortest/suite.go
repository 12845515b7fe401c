// Package hypervisortest is the conformance suite of hypervisor.Driver: what the
// rest of banger relies on, checked against real processes. Every driver runs it
// from its own tests:
//
//	func TestMain(m *testing.M) {
//		if code, ok := hypervisortest.Main(newDriver); ok { // plays the daemon that dies
//			os.Exit(code)
//		}
//		os.Exit(m.Run())
//	}
//
//	func TestConformance(t *testing.T) { hypervisortest.Run(t, hypervisortest.Harness{…}) }
package hypervisortest

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
	"banger/internal/hypervisor"
	"banger/internal/paths"
	"banger/internal/sysexec"
)

// Harness is what the suite needs to know of one driver.
type Harness struct {
	// New returns a driver as a freshly started daemon would have it.
	New func() hypervisor.Driver
	// Spec returns a machine to start in dir, which exists. Its guest must end the
	// machine when the power button is pressed.
	Spec func(t *testing.T, dir string) hypervisor.Spec
	// Break changes a spec so that Start must fail, after a process was started
	// where the driver can only find out that way.
	Break func(*hypervisor.Spec)
	// Booted waits until the guest of a machine in dir runs; nil: it does when Start
	// returns.
	Booted func(t *testing.T, dir string)
	// Full leaves no space for the disks of a machine in dir, until free is called.
	// Nil: the guest of Spec writes nothing, so it never stalls.
	Full func(t *testing.T, dir string) (free func())
	// Taps: the driver does connect cards to taps, for which the tests have moved (see
	// nettest.Move); otherwise it only says so.
	Taps bool
	// Sockets are what the driver makes in a VM directory; nil: QEMU's. The first is
	// the agent's.
	Sockets []string
}

func (h Harness) sockets() []string {
	if h.Sockets != nil {
		return h.Sockets
	}
	return []string{paths.AgentSocket, paths.QMPSocket, paths.NetSocket}
}

// patience bounds every single wait of the suite; only failures take that long. Where
// everything is emulated twice over it is not enough: BANGER_TEST_PATIENCE replaces it.
var patience = func() time.Duration {
	if d, err := time.ParseDuration(os.Getenv("BANGER_TEST_PATIENCE")); err == nil {
		return d
	}
	return time.Minute
}()

// Run runs the suite.
func Run(t *testing.T, h Harness) {
	for _, c := range []struct {
		name string
		test func(*testing.T, Harness)
	}{
		{"Info", testInfo},
		{"StartAndKill", testStartAndKill},
		{"KilledFromOutside", testKilledFromOutside},
		{"PowerButton", testPowerButton},
		{"SetLink", testSetLink},
		{"Tap", testTap},
		{"Pause", testPause},
		{"Stats", testStats},
		{"DiskLimit", testDiskLimit},
		{"Resize", testResize},
		{"Stall", testStall},
		{"DialAgent", testDialAgent},
		{"CloseAndAttach", testCloseAndAttach},
		{"DaemonDies", testDaemonDies},
		{"AttachToTheDead", testAttachToTheDead},
		{"Find", testFind},
		{"HiddenSockets", testHiddenSockets},
		{"CleanupByHandle", testCleanupByHandle},
		{"CleanupBySocket", testCleanupBySocket},
		{"CleanupOfNothing", testCleanupOfNothing},
		{"StaleSockets", testStaleSockets},
		{"StartTwice", testStartTwice},
		{"StartFails", testStartFails},
		{"StartCancelled", testStartCancelled},
		{"Restart", testRestart},
		{"TwoMachines", testTwoMachines},
		{"DeepDirectory", testDeepDirectory},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, h) })
	}
}

// world is one VM directory and what must be true of it at the end of a test.
type world struct {
	t    *testing.T
	h    Harness
	dir  string
	spec hypervisor.Spec
}

func newWorld(t *testing.T, h Harness, sub ...string) *world {
	t.Helper()
	dir := filepath.Join(append([]string{t.TempDir()}, sub...)...)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, h: h, dir: dir, spec: h.Spec(t, dir)}
	// Whatever a test leaves is a failure of the driver or of the test; it is ended
	// either way, by pid.
	t.Cleanup(func() {
		for _, pid := range processesIn(dir) {
			if t.Failed() {
				t.Logf("ending process %d, left in %s", pid, dir)
			} else {
				t.Errorf("process %d is left in %s", pid, dir)
			}
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	})
	return w
}

func (w *world) ctx() context.Context {
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	w.t.Cleanup(cancel)
	return ctx
}

// start starts the machine and has it cleaned up.
func (w *world) start(d hypervisor.Driver) hypervisor.Machine {
	w.t.Helper()
	m, err := d.Start(w.ctx(), w.spec)
	if err != nil {
		w.t.Fatalf("start: %v (hint: %s)", err, errdefs.HintOf(err))
	}
	w.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := d.Cleanup(ctx, w.dir, m.Handle()); err != nil {
			w.t.Errorf("cleanup: %v", err)
		}
		if err := m.Close(); err != nil {
			w.t.Errorf("close: %v", err)
		}
		w.noSockets()
	})
	if w.h.Booted != nil {
		w.h.Booted(w.t, w.dir)
	}
	return m
}

func (w *world) attach(d hypervisor.Driver, handle hypervisor.Handle) hypervisor.Machine {
	w.t.Helper()
	m, err := d.Attach(w.ctx(), w.spec, handle)
	if err != nil {
		w.t.Fatalf("attach: %v", err)
	}
	w.t.Cleanup(func() { _ = m.Close() })
	return m
}

func (w *world) kill(m hypervisor.Machine) {
	w.t.Helper()
	if err := m.Kill(w.ctx()); err != nil {
		w.t.Fatalf("kill: %v", err)
	}
	w.ended(m)
}

// ended waits for the end of m and checks that nothing of it is left.
func (w *world) ended(m hypervisor.Machine) hypervisor.Exit {
	w.t.Helper()
	select {
	case <-m.Done():
	case <-w.ctx().Done():
		w.t.Fatal("the machine does not end")
	}
	w.gone(m.Handle())
	return m.Exit()
}

func (w *world) alive(m hypervisor.Machine) {
	w.t.Helper()
	select {
	case <-m.Done():
		w.t.Fatalf("the machine has ended: %+v", m.Exit())
	default:
	}
	if st, err := sysexec.StartTime(m.Handle().PID); err != nil || st != m.Handle().StartTime {
		w.t.Fatalf("the process is gone: start time %d, %v; want %d", st, err, m.Handle().StartTime)
	}
}

func (w *world) gone(h hypervisor.Handle) {
	w.t.Helper()
	if st, err := sysexec.StartTime(h.PID); err == nil && st == h.StartTime {
		w.t.Errorf("process %d runs on", h.PID)
	}
}

func (w *world) noProcess() {
	w.t.Helper()
	if pids := processesIn(w.dir); len(pids) > 0 {
		w.t.Errorf("processes %v are left", pids)
	}
}

// noSockets checks that the driver left none of its sockets.
func (w *world) noSockets() {
	w.t.Helper()
	for _, name := range w.h.sockets() {
		if _, err := os.Lstat(filepath.Join(w.dir, name)); !errors.Is(err, os.ErrNotExist) {
			w.t.Errorf("%s is left (%v)", name, err)
		}
	}
}

// processesIn lists the live processes whose working directory is dir or one below
// it: every VMM runs in its VM's directory.
func processesIn(dir string) (pids []int) {
	type inode struct{ dev, ino uint64 }
	identify := func(path string) (inode, bool) {
		var st unix.Stat_t
		err := unix.Stat(path, &st)
		return inode{st.Dev, st.Ino}, err == nil
	}
	// By identity: what the kernel calls the directory of a process in a jail is its
	// name in there.
	dirs := map[inode]bool{}
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			if id, ok := identify(path); ok {
				dirs[id] = true
			}
		}
		return nil
	})
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		if id, ok := identify("/proc/" + e.Name() + "/cwd"); ok && dirs[id] {
			if _, err := sysexec.StartTime(pid); err == nil { // not a zombie
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// say writes to the guest channel. A driver may hold back what is written until
// there is an agent, which the suite's guest does not have.
func say(c net.Conn, text string) error {
	if err := c.SetWriteDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
		return err
	}
	if _, err := c.Write([]byte(text)); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return nil
}

// wantClass fails unless err has the class.
func wantClass(t *testing.T, err error, want errdefs.Class) {
	t.Helper()
	if err == nil || errdefs.ClassOf(err) != want {
		t.Fatalf("got %v (class %s), want class %s", err, errdefs.ClassOf(err), want)
	}
}

func longName() string { return strings.Repeat("a-long-name-", 15) }
