//go:build e2e

package e2e_test

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestDaemonDiesDuringCreate: nobody was told that the VM exists, so it does not,
// and its name is free.
func TestDaemonDiesDuringCreate(t *testing.T) {
	w := s.main
	w.fetch(t)
	for _, stage := range []string{"e2e-crash: 1 cpu", "boot"} {
		r := startTTY(t, w.command(append([]string{"vm", "create", "--name", "e2e-crash"}, small(t, w)...)...), 24, 100)
		r.out.expect(t, stage)
		w.killDaemon(t)
		if code := r.wait(t); code != 1 || !strings.Contains(r.out.String(), "error: ") {
			t.Errorf("create whose daemon died: code %d:\n%s", code, r.out)
		}
		w.cleanup(t, "e2e-crash")
		w.legal(t) // starts the daemon again
		w.noVM(t, "e2e-crash")
	}
	v := w.create(t, "e2e-crash", small(t, w)...)
	if got := w.exec(t, v, "hostname"); got != v.Name {
		t.Errorf("hostname printed %q", got)
	}
}

// TestDaemonDiesDuringExec: the client says so, the command gets SIGHUP, and the
// VM, its VMM and the network helper live on and are found again.
func TestDaemonDiesDuringExec(t *testing.T) {
	w := s.main
	v := w.create(t, "e2e-exec")
	before, ok := w.helper()
	if !ok {
		t.Fatal("no network helper runs")
	}
	r := start(t, w.command("exec", v.Name, "--", "sh", "-c",
		`exec 9>/home/dev/lock; flock 9; trap '' PIPE; trap 'echo hup > /home/dev/hup; exit' HUP; echo ready; sleep 1000 9>&- & wait`))
	r.out.expect(t, "ready\n")
	gone := start(t, w.command("vm", "wait", v.Name))
	rm := start(t, w.command(append(append([]string{"vm", "run", "--rm", "--name", "e2e-exec-rm"}, small(t, w)...), "--",
		"sh", "-c", "echo ready; exec sleep 1000")...))
	rm.out.expect(t, "ready\n")
	w.cleanup(t, "e2e-exec-rm")

	w.killDaemon(t)
	if code := r.wait(t); code != 125 || !strings.Contains(r.err.String(), "error: the connection to the VM was lost\ntry: ") {
		t.Errorf("exec whose daemon died: code %d, stderr %q", code, r.err)
	}
	if code := gone.wait(t); code != 1 {
		t.Errorf("wait whose daemon died: code %d, stderr %q", code, gone.err)
	}
	if code := rm.wait(t); code != 125 {
		t.Errorf("run whose daemon died: code %d, stderr %q", code, rm.err)
	}
	now := w.show(t, v.ID)
	if now.State != "running" || now.PID != v.PID || now.BootID != v.BootID || now.LastError != "" {
		t.Errorf("found again: %+v, before %+v", now, v)
	}
	if got := w.exec(t, v, "flock", "--timeout", "30", "/home/dev/lock", "cat", "/home/dev/hup"); got != "hup" {
		t.Errorf("the command noted %q", got)
	}
	// The client of the run with --rm is gone, and so is its VM.
	w.noVM(t, "e2e-exec-rm")
	if after, ok := w.helper(); !ok || after.pid != before.pid {
		t.Errorf("the network helper was %s, is %s", before, after)
	}

	// In order, the daemon goes and comes without anybody in a VM noticing.
	w.ok(t, "daemon", "stop")
	if _, ok := find(v.PID); !ok {
		t.Error("the VMM ended with the daemon")
	}
	w.ok(t, "daemon", "start")
	if now := w.show(t, v.ID); now.State != "running" || now.PID != v.PID {
		t.Errorf("found again: %+v", now)
	}
	if got := w.exec(t, v, "hostname"); got != v.Name {
		t.Errorf("hostname printed %q", got)
	}
	w.ok(t, "vm", "stop", v.ID)
	w.legal(t)
}

// TestDaemonDiesDuringStop: whether or not the guest had been told by then, the VM
// is in a state to go on from, and loses nothing.
func TestDaemonDiesDuringStop(t *testing.T) {
	w := s.main
	v := w.create(t, "e2e-down")
	w.exec(t, v, "sh", "-c", "echo precious > /home/dev/file") // not synced
	r := startTTY(t, w.command("vm", "stop", v.Name), 24, 100)
	r.out.expect(t, "  shut down")
	w.killDaemon(t)
	if code := r.wait(t); code != 1 {
		t.Errorf("stop whose daemon died: code %d:\n%s", code, r.out)
	}
	w.ok(t, "vm", "stop", v.ID)
	if now := w.show(t, v.ID); now.State != "stopped" || now.LastError != "" {
		t.Errorf("stopped by the next daemon: %+v", now)
	}
	w.legal(t)
	w.ok(t, "vm", "start", v.ID)
	if got := w.exec(t, v, "cat", "/home/dev/file"); got != "precious" {
		t.Errorf("the file holds %q", got)
	}
}

// TestVMMDies: the VM is stopped, says why, and starts again.
func TestVMMDies(t *testing.T) {
	w := s.main
	v := w.create(t, "e2e-vmm", small(t, w)...)
	vmm, ok := find(v.PID)
	if !ok {
		t.Fatalf("no VMM: %+v", v)
	}
	waiting := start(t, w.command("vm", "wait", v.Name))
	command := start(t, w.command("exec", v.Name, "--", "sh", "-c", "echo ready; exec sleep 1000"))
	command.out.expect(t, "ready\n")
	if err := vmm.kill(); err != nil {
		t.Fatal(err)
	}
	if code := waiting.wait(t); code != 0 || waiting.out.String() != "e2e-vmm stopped\n" {
		t.Errorf("wait: code %d, %q %q", code, waiting.out, waiting.err)
	}
	if code := command.wait(t); code != 125 {
		t.Errorf("exec: code %d, stderr %q", code, command.err)
	}
	if now := w.show(t, v.ID); now.State != "stopped" || !strings.Contains(now.LastError, "signal 9") || now.PID != 0 {
		t.Errorf("after the end of the VMM: %+v", now)
	}
	w.legal(t)
	w.ok(t, "vm", "start", v.ID)
	if now := w.show(t, v.ID); now.State != "running" || now.LastError != "" {
		t.Errorf("started again: %+v", now)
	}

	// It dies while there is no daemon to see it.
	w.killDaemon(t)
	again, ok := find(w.pidOnDisk(t, v))
	if !ok {
		t.Fatal("no VMM")
	}
	if err := again.kill(); err != nil {
		t.Fatal(err)
	}
	if now := w.show(t, v.ID); now.State != "stopped" || now.LastError == "" {
		t.Errorf("after the VMM ended unseen: %+v", now)
	}

	// A guest that powers off by itself is no failure.
	w.ok(t, "vm", "start", v.ID)
	off := start(t, w.command("exec", v.ID, "--", "poweroff", "-f"))
	if got := w.ok(t, "vm", "wait", v.ID); got != "e2e-vmm stopped" {
		t.Errorf("wait printed %q", got)
	}
	off.wait(t) // whatever its code: the guest went away under it
	if now := w.show(t, v.ID); now.LastError != "" {
		t.Errorf("a guest that powered off: %q", now.LastError)
	}
	w.legal(t)
}

// pidOnDisk finds the VMM of a VM without the daemon.
func (w *world) pidOnDisk(t *testing.T, v vm) int {
	t.Helper()
	for _, p := range ours(v.Dir) {
		if p.cwd == v.Dir {
			return p.pid
		}
	}
	t.Fatalf("no process works in %s", v.Dir)
	return 0
}

// TestHungGuest freezes a VMM: stop ends it firmly when its time is over, kill at
// once, and neither waits for the other.
func TestHungGuest(t *testing.T) {
	w := s.main
	v := w.create(t, "e2e-hung", small(t, w)...)
	vmm, ok := find(v.PID)
	if !ok {
		t.Fatalf("no VMM: %+v", v)
	}
	if err := vmm.signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = vmm.signal(unix.SIGCONT) })
	stop := startTTY(t, w.command("vm", "stop", "--timeout", "10m", v.Name), 24, 100)
	stop.out.expect(t, "  shut down")
	w.ok(t, "vm", "kill", v.Name)
	if err := vmm.awaitEnd(patience); err != nil {
		t.Error(err)
	}
	stop.wait(t) // it was overtaken
	if now := w.show(t, v.ID); now.State != "stopped" {
		t.Errorf("killed: %+v", now)
	}
	w.legal(t)
}

// TestDeleteDuringCreate: delete --force cancels what holds the VM.
func TestDeleteDuringCreate(t *testing.T) {
	w := s.main
	w.fetch(t)
	r := startTTY(t, w.command("vm", "create", "--name", "e2e-gone"), 24, 100)
	r.out.expect(t, "  boot")
	w.ok(t, "vm", "delete", "--force", "e2e-gone")
	if code := r.wait(t); code == 0 {
		t.Errorf("create of a VM that was deleted meanwhile succeeded:\n%s", r.out)
	}
	w.noVM(t, "e2e-gone")
}

// TestHandlesLost: without handles.json a VMM is found by its socket, and runs on.
func TestHandlesLost(t *testing.T) {
	w := s.main
	v := w.create(t, "e2e-lost", small(t, w)...)
	w.killDaemon(t)
	for _, text := range []string{"", "{nonsense"} {
		path := v.Dir + "/handles.json"
		if text == "" {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		} else if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		w.legal(t)
		now := w.show(t, v.ID)
		if now.State != "running" || now.PID != v.PID || now.BootID != v.BootID || now.LastError != "" {
			t.Fatalf("with handles.json %q: %+v, was %+v", text, now, v)
		}
		if got := w.exec(t, v, "hostname"); got != v.Name {
			t.Errorf("hostname printed %q", got)
		}
		w.killDaemon(t)
	}
	w.legal(t)
}
