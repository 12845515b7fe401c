//go:build e2e

package e2e_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// suite is what all tests share.
type suite struct {
	bin     string   // directory of the programs
	cache   string   // lives on between runs
	scratch string   // removed at the start and the end of a run
	lock    *os.File // keeps another run out as long as this one lives
	main    *world   // the daemon that most tests use

	fetch    sync.Once // image and kernel
	small    sync.Once // the image of small
	sharedMu sync.Mutex
	shared   vm // the VM of tests that only run commands; zero until it is needed
}

var s suite

// config keeps VMs small. The disk is as large as the image becomes.
const config = `vm:
  cpus: 1
  memory: 512M
  disk: 8G
`

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == walkArg {
		if err := walkRoot(os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	bin, cache := os.Getenv("BANGER_E2E_BIN"), os.Getenv("BANGER_TEST_CACHE")
	if bin == "" || cache == "" {
		fmt.Println("skipped: end-to-end tests need BANGER_E2E_BIN and BANGER_TEST_CACHE; see scripts/e2e")
		if os.Getenv("CI") != "" {
			return 1
		}
		return 0
	}
	if err := s.open(bin, cache); err != nil {
		fmt.Println("set up:", err)
		return 1
	}
	code := m.Run()
	if err := s.close(); err != nil {
		fmt.Println("FAIL: left behind at the end:", err)
		return 1
	}
	return code
}

func (s *suite) open(bin, cache string) error {
	var err error
	if s.bin, err = filepath.Abs(bin); err != nil {
		return err
	}
	if s.cache, err = filepath.Abs(cache); err != nil {
		return err
	}
	for _, program := range []string{"banger", "bangerd", "banger-agent"} {
		if _, err := exec.LookPath(filepath.Join(s.bin, program)); err != nil {
			return fmt.Errorf("%w (run make build)", err)
		}
	}
	if err := os.MkdirAll(s.cache, 0o755); err != nil {
		return err
	}
	if s.lock, err = os.OpenFile(filepath.Join(s.cache, "lock"), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return err
	}
	if err := unix.Flock(int(s.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("another run of these tests uses %s: %w", s.cache, err)
	}
	s.scratch = filepath.Join(s.cache, "scratch")
	if err := s.sweep(); err != nil {
		return fmt.Errorf("sweep what an earlier run left: %w", err)
	}
	// VMMs of a daemon that is root run as other users and pass through.
	if err := os.Mkdir(s.scratch, 0o755); err != nil {
		return err
	}
	if s.main, err = newWorld(filepath.Join(s.cache, "state"), config); err != nil {
		return err
	}
	return s.main.removeArtifacts()
}

// close ends everything and reports what is left.
func (s *suite) close() error {
	if err := s.main.deleteAll(); err != nil {
		return err
	}
	if err := s.main.removeArtifacts(); err != nil {
		return err
	}
	if err := s.main.stopDaemon(); err != nil {
		return err
	}
	if left := s.left(); len(left) > 0 {
		return fmt.Errorf("\n  %s", strings.Join(left, "\n  "))
	}
	return os.RemoveAll(s.scratch)
}

// sweep removes what a crashed run left: processes, mounts, VMs, scratch files.
func (s *suite) sweep() error {
	// Daemons first, then helpers and VMMs: nothing is found again or started anew.
	for _, p := range ours(s.cache) {
		fmt.Printf("sweep: ending %s\n", p)
		if err := p.end(); err != nil {
			return err
		}
	}
	for _, dir := range mountsUnder(s.cache) {
		fmt.Printf("sweep: unmounting %s\n", dir)
		if err := unmount(dir); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(s.scratch); err != nil {
		return err
	}
	state := filepath.Join(s.cache, "state")
	old, err := os.ReadDir(filepath.Join(state, "vms"))
	if err != nil || len(old) == 0 {
		return nil
	}
	w, err := newWorld(state, config)
	if err != nil {
		return err
	}
	fmt.Printf("sweep: deleting %d VMs\n", len(old))
	err = w.deleteAll()
	if err == nil && len(w.vmDirs()) == 0 {
		return w.stopDaemon()
	}
	// Better a slow run than none: the image is made again.
	fmt.Printf("sweep: removing the state directory, it cannot be cleaned: %v %v\n", err, w.vmDirs())
	if err := w.stopDaemon(); err != nil {
		return err
	}
	return os.RemoveAll(state)
}

// left lists what should be gone at the end.
func (s *suite) left() []string {
	var left []string
	for _, p := range ours(s.cache) {
		if p.lingers() {
			left = append(left, "process "+p.String())
		}
	}
	for _, dir := range mountsUnder(s.cache) {
		left = append(left, "mount "+dir)
	}
	for _, loop := range loopsUnder(s.cache) {
		left = append(left, "loop device "+loop)
	}
	for _, pattern := range []string{"vms/*", "*/.staging-*", ".staging-*", "*.sock", "*.corrupt-*"} {
		found, _ := filepath.Glob(filepath.Join(s.main.state, pattern))
		left = append(left, found...)
	}
	return left
}

// tool finds a program of the host, also where an ordinary user's PATH does not look.
func tool(t *testing.T, name string) string {
	t.Helper()
	for _, candidate := range []string{name, "/usr/sbin/" + name, "/sbin/" + name} {
		if path, err := exec.LookPath(candidate); err == nil {
			return path
		}
	}
	t.Fatalf("%s is not installed (scripts/bootstrap test installs it)", name)
	return ""
}
