package fcproc_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"banger/internal/errdefs"
	"banger/internal/guest"
	"banger/internal/hypervisor"
	"banger/internal/paths"
)

// guestSpec is a machine with a Linux guest and banger's agent. BANGER_TEST_GUEST
// names a directory with vmlinux, initramfs.cpio, rootfs.ext4 and modules.ext4.
func guestSpec(t *testing.T, dir string) hypervisor.Spec {
	t.Helper()
	from := os.Getenv("BANGER_TEST_GUEST")
	if from == "" {
		t.Skip("needs a guest: set BANGER_TEST_GUEST to a directory with vmlinux, initramfs.cpio, rootfs.ext4 and modules.ext4")
	}
	if os.Getenv(fakeEnv) != "" {
		t.Skip("the stand-in boots nothing")
	}
	spec := testSpec(t, dir)
	spec.MemoryMiB = 512 // and one CPU: two can spin for ever where KVM itself is emulated
	spec.Vmlinux, spec.Initramfs = filepath.Join(from, "vmlinux"), filepath.Join(from, "initramfs.cpio")
	image, err := os.Open(filepath.Join(from, "rootfs.ext4"))
	if err != nil {
		t.Fatal(err)
	}
	defer image.Close()
	disk, err := os.OpenFile(spec.Disks[0].Path, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	if _, err := io.Copy(disk, image); err != nil {
		t.Fatal(err)
	}
	spec.Disks[0].Limit = hypervisor.DiskLimit{}
	spec.Disks = append(spec.Disks, hypervisor.Disk{
		Serial: hypervisor.SerialModules, Path: filepath.Join(from, "modules.ext4"), Format: hypervisor.FormatRaw, ReadOnly: true,
	})
	return spec
}

// TestRealGuest boots a Linux guest with banger's agent, takes it through a daemon
// that goes and comes, and ends it as the daemon does.
func TestRealGuest(t *testing.T) {
	eachWay(t, func(t *testing.T) {
		dir := t.TempDir()
		spec := guestSpec(t, dir)
		d := newDriver()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		begin := time.Now()
		m, err := d.Start(ctx, spec)
		if err != nil {
			t.Fatalf("%v (%s)", err, errdefs.HintOf(err))
		}
		t.Cleanup(func() { cleanUp(t, d, dir, m) })
		cpus := time.Since(begin)
		s := session(ctx, t, m)
		t.Logf("CPUs run after %s, agent ready after %s (guest: %d ms since its kernel began)", cpus, time.Since(begin), s.Ready().UptimeMillis)
		if r := s.Ready(); !r.RootReady || r.Error != "" {
			t.Fatalf("ready %+v", r)
		}
		run(ctx, t, s, 7, "test -d /lib/modules/$(uname -r)/kernel && echo hello > /kept && exit 7")
		// A daemon dies with the channel open, the next one takes over.
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
		_ = s.Close()
		if m, err = d.Attach(ctx, spec, m.Handle()); err != nil {
			t.Fatal(err)
		}
		s = session(ctx, t, m)
		run(ctx, t, s, 3, "grep -q hello /kept && exit 3")
		conn, err := s.Open(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := guest.Call(ctx, conn, guest.Request{Kind: guest.KindShutdown}); err != nil {
			t.Fatal(err)
		}
		ended(ctx, t, m)
		_ = s.Close()
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		if err := d.Cleanup(ctx, dir, m.Handle()); err != nil {
			t.Error(err)
		}
		// What was written is there at the next start, whose end is the power button.
		if m, err = d.Start(ctx, spec); err != nil {
			t.Fatal(err)
		}
		s = session(ctx, t, m)
		run(ctx, t, s, 3, "grep -q hello /kept && exit 3")
		// The button is a key, and the keyboard may be younger than the agent.
		run(ctx, t, s, 0, "until grep -q kbd /proc/bus/input/devices; do sleep 0.1; done")
		if err := m.PowerButton(ctx); err != nil {
			t.Fatal(err)
		}
		ended(ctx, t, m)
		_ = s.Close()
		if err := errors.Join(m.Close(), d.Cleanup(ctx, dir, m.Handle())); err != nil {
			t.Error(err)
		}
		// And one that is powered off from inside.
		if m, err = d.Start(ctx, spec); err != nil {
			t.Fatal(err)
		}
		s = session(ctx, t, m)
		conn, err = s.Open(ctx)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			_, _ = guest.RunExec(ctx, conn, guest.Request{Kind: guest.KindExec, Exec: &guest.Exec{Args: []string{"sh", "-c", "poweroff -f"}}}, guest.ExecIO{})
		}()
		ended(ctx, t, m)
		if e := m.Exit(); !e.Known || e.Code != 0 || e.Signal != 0 {
			t.Errorf("exit %+v", e)
		}
		_ = s.Close()
	})
}

func cleanUp(t *testing.T, d hypervisor.Driver, dir string, m hypervisor.Machine) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := errors.Join(d.Cleanup(ctx, dir, m.Handle()), m.Close()); err != nil {
		t.Error(err)
	}
	if t.Failed() {
		for _, name := range []string{paths.ConsoleLog, paths.VMMLog} {
			b, _ := os.ReadFile(filepath.Join(dir, name))
			t.Logf("%s:\n%s", name, b)
		}
	}
}

func ended(ctx context.Context, t *testing.T, m hypervisor.Machine) {
	t.Helper()
	select {
	case <-m.Done():
	case <-ctx.Done():
		t.Fatal("the guest does not end")
	}
}

func run(ctx context.Context, t *testing.T, s *guest.Session, want int, script string) {
	t.Helper()
	conn, err := s.Open(ctx)
	if err != nil {
		t.Fatal(err)
	}
	st, err := guest.RunExec(ctx, conn, guest.Request{Kind: guest.KindExec, Exec: &guest.Exec{Args: []string{"sh", "-c", script}}}, guest.ExecIO{})
	if err != nil || st.Code != want {
		t.Fatalf("%s: %+v, %v", script, st, err)
	}
}

func session(ctx context.Context, t *testing.T, m hypervisor.Machine) *guest.Session {
	t.Helper()
	conn, err := m.DialAgent(ctx)
	if err != nil {
		t.Fatal(err)
	}
	s, err := guest.Connect(ctx, conn)
	if err != nil {
		t.Fatal(err)
	}
	return s
}
