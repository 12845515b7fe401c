package hostnet

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/daemon/firewalld"
	"banger/internal/daemon/sysbus/bustest"
	"banger/internal/doctor"
	"banger/internal/sysexec"
)

// runFirewalld runs the real one on a bus, in our namespace, as it comes: what is of no
// zone is refused. It is there when this returns.
func runFirewalld(t *testing.T, bus string) *firewalld.Manager {
	t.Helper()
	path, err := sysexec.Look("firewalld")
	if err != nil {
		t.Skip("no firewalld here (package firewalld)")
	}
	dir := t.TempDir()
	for _, name := range []string{"zones", "services", "icmptypes", "ipsets", "policies", "helpers"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(path, "--nofork", "--nopid", "--system-config", dir)
	cmd.Env = append(os.Environ(), "DBUS_SYSTEM_BUS_ADDRESS=unix:path="+bus)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(unix.SIGTERM) // it removes its rules
		<-ended
	})
	m, tick := firewalld.New(bus), time.NewTicker(50*time.Millisecond)
	defer tick.Stop()
	for {
		if there, _, err := m.Running(t.Context(), DefaultBridge); there && err == nil {
			return m
		}
		select {
		case <-tick.C:
		case <-ended:
			t.Skip("firewalld does not run here")
		case <-time.After(time.Minute):
			t.Fatal("firewalld does not answer")
		}
	}
}

// firewalld refuses what comes from a device of no zone; it is asked, and told again
// after it has forgotten.
func TestBesideFirewalld(t *testing.T) {
	w := newWorld(t)
	m := runFirewalld(t, bustest.New(t))
	w.serve(w.uplink, 80)
	w.serve(here{}, 53)
	b := w.boot(VM{ID: "b"}) // by a service that asks nobody
	b.cannotReach("the world", at(far4, 80))
	b.cannotReach("the name server", at(b.Gateways[0], 53))
	w.waiting.Wait()

	w.deps.Firewalld = m
	w.restart(b.vm)
	a := w.boot(VM{ID: "a"})
	check := func() {
		t.Helper()
		a.reaches("the world", at(far4, 80))
		a.reaches("the world by IPv6", at(far6, 80))
		a.reaches("the name server", at(a.Gateways[0], 53))
		a.cannotReach("the host's address outside", at(hostUp4, 53))
		a.cannotReach("a stranger", at(b.ip4(), 22))
		w.waiting.Wait()
	}
	check()
	for _, r := range doctor.Run(t.Context(), w.s.Checks()) {
		if r.Status != doctor.StatusPass {
			t.Errorf("doctor: %+v", r)
		}
	}
	w.must(m.Leave(t.Context(), DefaultBridge))
	a.cannotReach("the world when firewalld has forgotten", at(far4, 80))
	w.waiting.Wait()
	w.attach(VM{ID: "c"}) // a tap less: the filler looks
	w.s.batch()
	w.s.pause()
	check()
	for _, g := range []*guest{a, b} {
		g.Close()
	}
	for _, id := range []string{"a", "b", "c"} {
		w.must(w.s.Release(t.Context(), id))
	}
	w.must(w.s.Uninstall(t.Context()))
	if _, zone, err := m.Running(t.Context(), DefaultBridge); zone != "" || err != nil {
		t.Errorf("firewalld has the bridge in zone %q, %v", zone, err)
	}
}
