//go:build e2e

package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestLifecycle takes one VM through every verb.
func TestLifecycle(t *testing.T) {
	w := s.main
	v := w.create(t, "e2e-life", "--env", "COLOUR=blue", "--user", "root", "--workdir", "/srv", "--memory", "640M")
	if v.State != "running" || v.MemoryMiB != 640 || v.User != "root" || v.BootID == "" {
		t.Fatalf("created %+v", v)
	}
	if got := w.exec(t, v, "sh", "-c", "id -un; pwd; echo $COLOUR; hostname"); got != "root\n/srv\nblue\ne2e-life" {
		t.Errorf("user, directory, environment, host name: %q", got)
	}

	// The console, as it goes on.
	logs := start(t, w.command("logs", "-f", v.Name))
	w.exec(t, v, "sh", "-c", "echo hello from inside > /dev/console")
	logs.out.expect(t, "hello from inside")
	if text := w.ok(t, "vm", "logs", v.Name); !strings.Contains(text, "hello from inside") {
		t.Errorf("logs lack what the console said:\n%s", text)
	}
	w.ok(t, "logs", "--vmm", v.Name)

	// Another name, inside too; the old one is free.
	w.fails(t, 1, []string{"Bad_Name"}, "vm", "rename", v.Name, "Bad_Name")
	if got := w.ok(t, "vm", "rename", "e2e-life", "e2e-renamed"); got != "e2e-renamed" {
		t.Errorf("rename printed %q", got)
	}
	w.cleanup(t, "e2e-renamed")
	w.fails(t, 1, []string{`no VM named "e2e-life"`}, "vm", "show", "e2e-life")
	if got := w.exec(t, v, "hostname"); got != "e2e-renamed" {
		t.Errorf("the guest calls itself %q", got)
	}

	// A file that was written but not synced survives a stop; who waits is told.
	wait := start(t, w.command("vm", "wait", "e2e-renamed"))
	w.exec(t, v, "sh", "-c", "head -c 20000000 /dev/urandom > /srv/file; sha256sum < /srv/file > /srv/sum")
	want := w.exec(t, v, "cat", "/srv/sum")
	if got := w.ok(t, "vm", "stop", "e2e-renamed"); got != "e2e-renamed" {
		t.Errorf("stop printed %q", got)
	}
	if code := wait.wait(t); code != 0 || wait.out.String() != "e2e-renamed stopped\n" {
		t.Errorf("wait: code %d, %q %q", code, wait.out, wait.err)
	}
	if code := logs.wait(t); code != 0 {
		t.Errorf("logs -f of a VM that stopped: code %d: %s", code, logs.err)
	}
	stopped := w.show(t, v.ID)
	if stopped.State != "stopped" || stopped.PID != 0 || stopped.LastError != "" {
		t.Errorf("after the stop: %+v", stopped)
	}
	w.legal(t)
	w.ok(t, "vm", "stop", v.ID) // nothing to do
	w.fails(t, 125, []string{"stopped", "vm start"}, "exec", v.ID, "--", "true")
	w.fails(t, 1, []string{"stopped"}, "cp", "/etc/hostname", v.ID+":/tmp")
	if text := w.ok(t, "ps", "-q"); strings.Contains(text, v.ID) {
		t.Error("ps lists a stopped VM")
	}
	w.ok(t, "logs", v.ID)
	if got := w.ok(t, "vm", "wait", v.ID); got != "e2e-renamed stopped" {
		t.Errorf("waiting for a stopped VM prints %q", got)
	}

	w.ok(t, "vm", "start", v.ID)
	w.ok(t, "vm", "start", v.ID) // nothing to do
	if got := w.exec(t, v, "sh", "-c", "sha256sum < /srv/file"); got != want {
		t.Errorf("the file changed over a stop: %s, want %s", got, want)
	}
	second := w.show(t, v.ID)
	guestBoot := w.exec(t, v, "cat", "/proc/sys/kernel/random/boot_id")
	w.ok(t, "vm", "restart", v.ID)
	third := w.show(t, v.ID)
	if third.State != "running" || third.BootID == second.BootID || third.PID == second.PID {
		t.Errorf("after a restart: %+v, before %+v", third, second)
	}
	if now := w.exec(t, v, "cat", "/proc/sys/kernel/random/boot_id"); now == guestBoot {
		t.Error("the guest did not boot anew")
	}

	w.ok(t, "vm", "kill", v.ID)
	if now := w.show(t, v.ID); now.State != "stopped" {
		t.Errorf("after a kill the VM is %s", now.State)
	}
	w.ok(t, "vm", "kill", v.ID) // nothing to do
	w.ok(t, "vm", "delete", v.ID)
	w.fails(t, 1, []string{v.ID}, "vm", "show", v.ID)
	w.noVM(t, "e2e-renamed")
}

// TestSeveralAtOnce gives verbs several VMs.
func TestSeveralAtOnce(t *testing.T) {
	w := s.main
	w.fetch(t)
	for _, name := range []string{"e2e-a", "e2e-b"} {
		w.cleanup(t, name)
		w.ok(t, append([]string{"vm", "create", "--no-start", "--name", name, "--net", "none"}, small(t, w)...)...)
		if v := w.show(t, name); v.State != "stopped" || v.StartedAt != nil {
			t.Errorf("not started: %+v", v)
		}
	}
	w.fails(t, 1, []string{"never started"}, "logs", "e2e-a")
	if got := w.ok(t, "vm", "start", "e2e-a", "e2e-b"); got != "e2e-a\ne2e-b" {
		t.Errorf("start printed %q", got)
	}
	// One that is wrong does not keep the others.
	r := w.run(t, "vm", "stop", "e2e-a", "nosuch", "e2e-b")
	if r.code != 1 || r.stdout != "e2e-a\ne2e-b\n" || !strings.Contains(r.stderr, `"nosuch"`) {
		t.Errorf("stop of two and one that is not there: %s", r)
	}
	if got := w.ok(t, "vm", "delete", "e2e-a", "e2e-b", "e2e-a"); got != "e2e-a\ne2e-b" {
		t.Errorf("delete printed %q", got)
	}
	w.noVM(t, "e2e-a")
	w.noVM(t, "e2e-b")
}

// TestInterruptedCreate presses Ctrl-C while the guest boots.
func TestInterruptedCreate(t *testing.T) {
	w := s.main
	w.fetch(t)
	for _, args := range [][]string{
		{"vm", "create", "--name", "e2e-cut"},
		{"vm", "run", "--name", "e2e-cut", "--", "true"},
	} {
		r := startTTY(t, w.command(args...), 24, 100)
		r.out.expect(t, "e2e-cut: 1 cpu, 512 MiB memory, 8 GiB disk, image debian")
		r.out.expect(t, "boot") // the stage it is in
		r.send(t, "\x03")
		if code := r.wait(t); code != 130 {
			t.Errorf("%v: code %d, want 130:\n%s", args, code, r.out)
		}
		w.noVM(t, "e2e-cut")
	}
}

// TestRunInterrupted presses Ctrl-C during the command: it goes to the command.
func TestRunInterrupted(t *testing.T) {
	w := s.main
	w.fetch(t)
	r := start(t, w.command(append(append([]string{"vm", "run", "--rm", "--name", "e2e-int"}, small(t, w)...), "--",
		"sh", "-c", "trap 'echo got INT; exit 42' INT; echo ready; while :; do sleep 0.1; done")...))
	r.out.expect(t, "ready\n")
	if v := w.show(t, "e2e-int"); !v.AutoRemove {
		t.Errorf("%+v is not to be removed", v)
	}
	r.signal(t, syscall.SIGINT)
	r.out.expect(t, "got INT\n")
	if code := r.wait(t); code != 42 {
		t.Errorf("code %d, want 42; stderr %q", code, r.err)
	}
	if got := r.err.String(); got != "" {
		t.Errorf("stderr has more than the command's own: %q", got)
	}
	w.noVM(t, "e2e-int")
}

// TestRunWhoseClientDies kills the client during the command: --rm holds.
func TestRunWhoseClientDies(t *testing.T) {
	w := s.main
	w.fetch(t)
	r := start(t, w.command(append(append([]string{"vm", "run", "--rm", "--name", "e2e-orphan"}, small(t, w)...), "--",
		"sh", "-c", "echo ready; exec sleep 1000")...))
	r.out.expect(t, "ready\n")
	v := w.show(t, "e2e-orphan")
	vmm, ok := find(v.PID)
	if !ok {
		t.Fatalf("no VMM: %+v", v)
	}
	r.signal(t, syscall.SIGKILL)
	r.wait(t)
	w.gone(t, v)
	if err := vmm.awaitEnd(patience); err != nil {
		t.Error(err)
	}
	w.noVM(t, "e2e-orphan")
}

// gone waits until a VM that is being deleted is gone.
func (w *world) gone(t *testing.T, v vm) {
	t.Helper()
	r := w.run(t, "vm", "wait", v.ID)
	if r.code == 0 && r.stdout != v.Name+" deleted\n" {
		t.Errorf("it was not deleted: %s", r)
	}
	if r.code != 0 {
		r.check(t, 1, v.ID) // gone before we asked
	}
}

// TestRunFlags gives a run everything at once, and an exit code of its own.
func TestRunFlags(t *testing.T) {
	w := s.main
	w.fetch(t)
	file := filepath.Join(t.TempDir(), "env")
	if err := os.WriteFile(file, []byte("FROM_FILE=yes\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := w.command("vm", "run", "--rm", "--name", "e2e-flags", "--cpus", "2", "--memory", "300", "--disk", "9G", "--net", "none",
		"--env", "A=1 2", "--env-file", file, "--user", "1000:1000", "--workdir", "/usr", "--timeout", "100s", "--",
		"sh", "-c", `nproc; id -u; pwd; echo "$A $FROM_FILE"; cat; echo problem >&2; exit 7`)
	cmd.Stdin = strings.NewReader("input\n")
	r := call(t, cmd)
	if r.code != 7 || r.stdout != "2\n1000\n/usr\n1 2 yes\ninput\n" || r.stderr != "problem\n" {
		t.Errorf("%s", r)
	}
	w.noVM(t, "e2e-flags")
}

// TestRunTimeout bounds a whole run.
func TestRunTimeout(t *testing.T) {
	w := s.main
	w.fetch(t)
	w.fails(t, 124, []string{"--timeout"}, "vm", "run", "--rm", "--name", "e2e-slow", "--timeout", "100ms", "--", "sleep", "1000")
	w.noVM(t, "e2e-slow")
}

// TestRunStays keeps the VM of a run without --rm, whatever the command's end.
func TestRunStays(t *testing.T) {
	w := s.main
	w.fetch(t)
	w.cleanup(t, "e2e-stays")
	r := w.run(t, "vm", "run", "--name", "e2e-stays", "--", "sh", "-c", "systemctl is-system-running 2>/dev/null; echo > ~/was-here; exit 3")
	// The command ran although systemd was not done, or had not even opened its bus.
	if state := strings.TrimSpace(r.stdout); r.code != 3 || r.stderr != "" || state == "running" || state == "degraded" {
		t.Errorf("a command while systemd starts: %s", r)
	}
	v := w.show(t, "e2e-stays")
	if v.State != "running" || v.AutoRemove {
		t.Errorf("after the run: %+v", v)
	}
	w.exec(t, v, "test", "-e", "/home/dev/was-here")
	// Files outside of the guest's page cache survive the plug being pulled.
	w.execRoot(t, v, "sh", "-c", "echo synced > /synced && sync")
	w.ok(t, "vm", "kill", v.ID)
	w.ok(t, "vm", "start", "--wait", "system", v.ID)
	if state := w.run(t, "exec", v.ID, "--", "systemctl", "is-system-running"); strings.TrimSpace(state.stdout) != "running" {
		failed := w.run(t, "exec", v.ID, "--", "systemctl", "--failed", "--no-legend", "--plain")
		t.Errorf("after --wait system: %s%s", state, failed)
	}
	if got := w.exec(t, v, "cat", "/synced"); got != "synced" {
		t.Errorf("the synced file holds %q", got)
	}
	w.execRoot(t, v, "modprobe", "fuse")
	// Detached.
	if got := w.ok(t, "vm", "delete", "-f", v.ID); got != v.ID {
		t.Errorf("delete printed %q", got)
	}
	w.noVM(t, "e2e-stays")
}

// TestRunOnTerminal shows sizes, stages and a shell; and the VM is kept.
func TestRunOnTerminal(t *testing.T) {
	w := s.main
	w.fetch(t)
	w.cleanup(t, "e2e-tty")
	r := startTTY(t, w.command("vm", "run", "--name", "e2e-tty", "--memory", "300"), 30, 90)
	r.out.expect(t, "e2e-tty: 1 cpu, 300 MiB memory, 8 GiB disk, image debian\r\n")
	for _, stage := range []string{"boot", "configure"} {
		r.out.expect(t, "  "+fmt.Sprintf("%-12s ", stage))
		r.out.expect(t, " s\r\n")
	}
	r.out.expect(t, "$")
	r.send(t, "stty size; exit 3\r")
	r.out.expect(t, "30 90")
	r.out.expect(t, "e2e-tty keeps running. banger shell e2e-tty opens a shell")
	if code := r.wait(t); code != 3 {
		t.Errorf("code %d, want 3:\n%s", code, r.out)
	}
	if v := w.show(t, "e2e-tty"); v.State != "running" {
		t.Errorf("after the shell: %+v", v)
	}
}

// TestTenAtOnce creates ten VMs at the same time, some without a name.
func TestTenAtOnce(t *testing.T) {
	w := s.main
	w.fetch(t)
	var calls []*running
	for i := range 10 {
		args := append([]string{"vm", "create", "--net", []string{"user", "none"}[i%2]}, small(t, w)...)
		if i < 5 {
			args = append(args, "--name", fmt.Sprintf("e2e-ten-%d", i))
		}
		calls = append(calls, start(t, w.command(args...)))
	}
	names := map[string]bool{}
	for i, c := range calls {
		<-c.done // ten boots take turns
		name := strings.TrimSpace(c.out.String())
		if c.code != 0 || name == "" || names[name] {
			t.Errorf("create %d: code %d, name %q, stderr: %s", i, c.code, name, c.err)
			continue
		}
		names[name] = true
		w.cleanup(t, name)
	}
	var all []string
	for name := range names {
		all = append(all, name)
		if v := w.show(t, name); v.State != "running" {
			t.Errorf("%s is %s", name, v.State)
		}
		if got := w.ok(t, "exec", name, "--", "hostname"); got != name {
			t.Errorf("%s calls itself %q", name, got)
		}
		// A guest that boots on a busy host must not take its clock's measure from that.
		began := time.Now()
		w.ok(t, "exec", name, "--", "sleep", "1")
		if took := time.Since(began); took < 950*time.Millisecond {
			t.Errorf("a second of %s is over after %s", name, took)
		}
	}
	w.legal(t)
	if len(all) > 0 {
		w.ok(t, append([]string{"vm", "delete", "--force"}, all...)...)
	}
	for _, name := range all {
		w.noVM(t, name)
	}
}

// TestDaemonHoldsNothing counts the daemon's descriptors around the life of VMs.
func TestDaemonHoldsNothing(t *testing.T) {
	w := s.main
	w.fetch(t)
	life := func() {
		w.ok(t, append(append([]string{"vm", "run", "--rm", "--name", "e2e-fds"}, small(t, w)...), "--", "true")...)
		w.noVM(t, "e2e-fds")
	}
	life() // whatever is opened once is open now
	p := w.mustDaemon(t)
	before := p.files()
	life()
	after := p.files()
	for _, f := range after {
		if strings.HasPrefix(f, filepath.Join(w.state, "vms")) && strings.Contains(f, "(deleted)") {
			t.Errorf("the daemon holds %s", f)
		}
	}
	// A client connection may be on its way out.
	if len(after) > len(before)+1 {
		t.Errorf("the daemon had %d descriptors, now %d:\n%s", len(before), len(after), strings.Join(after, "\n"))
	}
}
