package qemuproc_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/daemon/qemuproc"
	"banger/internal/errdefs"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/fence"
	"banger/internal/hypervisor/vmmlog"
	"banger/internal/paths"
)

// startMachine runs a machine for the length of a test.
func startMachine(t *testing.T, spec hypervisor.Spec) hypervisor.Machine {
	t.Helper()
	d := newDriver()
	m, err := d.Start(t.Context(), spec)
	if err != nil {
		t.Fatalf("%v (%s)", err, errdefs.HintOf(err))
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := errors.Join(d.Cleanup(ctx, spec.Dir, m.Handle()), m.Close()); err != nil {
			t.Error(err)
		}
	})
	return m
}

// status returns the fields of /proc/<pid>/status.
func status(t *testing.T, pid int) map[string]string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := map[string]string{}
	for line := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(line, ":")
		fields[name] = strings.TrimSpace(value)
	}
	return fields
}

func TestLeastPrivilege(t *testing.T) {
	dir := t.TempDir()
	spec := testSpec(t, dir)
	const other = 65534
	if os.Geteuid() == 0 {
		// Neither the state directory nor what lies in it is open to that user: it
		// may pass through its own directory, and owns its disk alone.
		spec.UID, spec.GID = other, other
		err := errors.Join(os.Chown(dir, 0, other), os.Chmod(dir, 0o710), os.Chown(spec.Disks[0].Path, other, other))
		if err != nil {
			t.Fatal(err)
		}
	}
	m := startMachine(t, spec)
	booted(t, dir)
	pid := m.Handle().PID
	st := status(t, pid)
	if st["NoNewPrivs"] != "1" || st["Seccomp"] != "2" {
		t.Errorf("no_new_privs %q, seccomp %q", st["NoNewPrivs"], st["Seccomp"])
	}
	proc := fmt.Sprintf("/proc/%d/", pid)
	if b, err := os.ReadFile(proc + "environ"); err != nil || len(b) > 0 {
		t.Errorf("environment %q, %v", b, err)
	}
	if b, _ := os.ReadFile(proc + "limits"); !strings.Contains(strings.Join(strings.Fields(string(b)), " "), "Max core file size 0 ") {
		t.Errorf("core dumps are not off:\n%s", b)
	}
	for _, ns := range []string{"net", "ipc"} {
		ours, _ := os.Readlink("/proc/self/ns/" + ns)
		theirs, err := os.Readlink(proc + "ns/" + ns)
		// As an ordinary user the host may not allow it, and then it goes without.
		if fenced := fence.Try(t.Context()) == nil; err != nil || fenced == (ours == theirs) {
			t.Errorf("the %s namespace is %q, ours is %q, %v; the host allows its own: %v", ns, theirs, ours, err, fenced)
		}
	}
	if os.Geteuid() != 0 {
		return
	}
	want := fmt.Sprintf("%d\t%d\t%d\t%d", other, other, other, other)
	if st["Uid"] != want || st["Gid"] != want || st["Groups"] != "" || strings.Trim(st["CapEff"]+st["CapPrm"]+st["CapAmb"], "0") != "" {
		t.Errorf("identity %q %q groups %q capabilities %q", st["Uid"], st["Gid"], st["Groups"], st["CapEff"])
	}
	// Nobody but the daemon connects to the machine.
	for _, name := range []string{paths.QMPSocket, paths.AgentSocket, paths.NetSocket, paths.ConsoleLog, paths.VMMLog} {
		var fi unix.Stat_t
		if err := unix.Stat(filepath.Join(dir, name), &fi); err != nil || fi.Uid != 0 || fi.Mode&0o777 != 0o600 {
			t.Errorf("%s: uid %d mode %o, %v", name, fi.Uid, fi.Mode, err)
		}
	}
}

// What the machine is made of, as QEMU itself sees it.
func TestDevices(t *testing.T) {
	dir := t.TempDir()
	spec := testSpec(t, dir)
	m := startMachine(t, spec)
	var pci []struct {
		Devices []struct {
			Slot     int
			Function int
			ID       struct{ Vendor, Device int }
			QdevID   string `json:"qdev_id"`
		}
	}
	if err := qemuproc.MonitorOf(m).Execute(t.Context(), "query-pci", nil, &pci); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, dev := range pci[0].Devices {
		got[fmt.Sprintf("%02x.%d", dev.Slot, dev.Function)] = fmt.Sprintf("%04x:%04x %s", dev.ID.Vendor, dev.ID.Device, dev.QdevID)
	}
	// Changing a line here breaks the snapshots of every VM there is.
	for slot, want := range map[string]string{
		"00.0": "8086:29c0 ",       // the chipset
		"02.0": "1af4:1041 nic0",   // network
		"03.0": "1af4:1044 ",       // entropy
		"04.0": "1af4:1043 ports",  // the guest channel
		"08.0": "1af4:1042 blk0",   // the first disk
		"10.0": "1b36:000c spare0", // for what is added later
		"10.1": "1b36:000c spare1",
		"1f.0": "8086:2918 ", // the chipset
		"1f.3": "8086:2930 ",
	} {
		if got[slot] != want {
			t.Errorf("slot %s holds %q, want %q", slot, got[slot], want)
		}
		delete(got, slot)
	}
	if len(got) > 0 {
		t.Errorf("also there: %v", got)
	}
	var memory []struct {
		ID   string
		Size int64
	}
	if err := qemuproc.MonitorOf(m).Execute(t.Context(), "query-memdev", nil, &memory); err != nil {
		t.Fatal(err)
	}
	if len(memory) != 1 || memory[0].ID != "mem" || memory[0].Size != spec.MemoryMiB<<20 {
		t.Errorf("memory %+v", memory)
	}
	if b, err := os.ReadFile(filepath.Join(dir, paths.VMMLog)); err != nil || len(b) > 0 {
		t.Errorf("QEMU complains: %s %v", b, err)
	}
}

// Every way to fail that QEMU reports by itself gets a class, a hint, and QEMU's
// own words.
func TestLaunchErrors(t *testing.T) {
	for _, c := range []struct {
		name  string
		bend  func(*testing.T, *hypervisor.Spec)
		class errdefs.Class
		text  string
	}{
		{"damaged kernel", func(t *testing.T, s *hypervisor.Spec) {
			if err := os.WriteFile(s.Vmlinux, []byte("\x7fELF, not"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, errdefs.ClassFailedPrecondition, "kernel"},
		{"damaged disk", func(_ *testing.T, s *hypervisor.Spec) { s.Disks[0].Format = hypervisor.FormatQcow2 },
			errdefs.ClassFailedPrecondition, "qcow2"},
		{"no disk", func(_ *testing.T, s *hypervisor.Spec) { s.Disks[0].Path += "-gone" },
			errdefs.ClassFailedPrecondition, "gone"},
		{"too much memory", func(_ *testing.T, s *hypervisor.Spec) { s.MemoryMiB = 1 << 26 },
			errdefs.ClassExhausted, "memory"},
		{"machine of the future", func(_ *testing.T, s *hypervisor.Spec) { s.Machine = "pc-q35-99.0" },
			errdefs.ClassUnsupported, "pc-q35-99.0"},
		{"unknown processor", func(_ *testing.T, s *hypervisor.Spec) { s.CPUModel = "Z80-v1" },
			errdefs.ClassUnsupported, "Z80-v1"},
		{"one file as two disks", func(_ *testing.T, s *hypervisor.Spec) {
			again := s.Disks[0]
			again.Serial = "again"
			s.Disks = append(s.Disks, again)
		}, errdefs.ClassFailedPrecondition, "lock"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			spec := testSpec(t, dir)
			c.bend(t, &spec)
			d := newDriver()
			m, err := d.Start(t.Context(), spec)
			if err == nil {
				_ = m.Kill(t.Context())
				_ = m.Close()
				t.Fatal("it started")
			}
			if errdefs.ClassOf(err) != c.class || errdefs.HintOf(err) == "" || !strings.Contains(err.Error(), c.text) {
				t.Errorf("got %v (class %s, hint %q), want class %s and %q", err, errdefs.ClassOf(err), errdefs.HintOf(err), c.class, c.text)
			}
		})
	}
}

// A disk that another VMM writes to is refused, not shared.
func TestDiskInUse(t *testing.T) {
	first := testSpec(t, t.TempDir())
	startMachine(t, first)
	second := testSpec(t, t.TempDir())
	second.Disks = first.Disks
	_, err := newDriver().Start(t.Context(), second)
	if errdefs.ClassOf(err) != errdefs.ClassFailedPrecondition || !strings.Contains(err.Error(), "lock") {
		t.Errorf("got %v", err)
	}
}

// A VMM that is stopped, and so answers nothing, does not hold anyone for ever.
func TestStoppedVMM(t *testing.T) {
	dir := t.TempDir()
	spec := testSpec(t, dir)
	m := startMachine(t, spec)
	if err := unix.Kill(m.Handle().PID, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := m.PowerButton(ctx); errdefs.ClassOf(err) != errdefs.ClassTimeout {
		t.Errorf("power button: %v", err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := newDriver().Attach(ctx, spec, m.Handle()); err == nil {
		t.Error("attached to a stopped VMM")
	}
	if err := newDriver().Cleanup(t.Context(), dir, hypervisor.Handle{}); err != nil {
		t.Errorf("clean up: %v", err)
	}
	if err := unix.Kill(m.Handle().PID, 0); err == nil {
		if st := status(t, m.Handle().PID); !strings.HasPrefix(st["State"], "Z") {
			t.Errorf("the VMM is still there: %s", st["State"])
		}
	}
}

// A guest that floods its console fills no disk.
func TestFloodedConsole(t *testing.T) {
	dir := t.TempDir()
	spec := testSpec(t, dir)
	m := startMachine(t, spec)
	booted(t, dir)
	flood := func() {
		console := filepath.Join(dir, paths.ConsoleLog)
		f, err := os.OpenFile(console, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.Write(make([]byte, 2*vmmlog.Limit)); err != nil {
			t.Fatal(err)
		}
		onChange(t, dir, func() bool {
			st, err := os.Stat(console)
			return err == nil && st.Size() <= vmmlog.Limit
		})
	}
	flood()
	flood() // the watch goes on
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	found, err := newDriver().Attach(t.Context(), spec, m.Handle())
	if err != nil {
		t.Fatal(err)
	}
	defer found.Close()
	flood() // and the next daemon takes it up
}
