//go:build e2e

package e2e_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"banger/internal/daemon/qemuproc"
	"banger/internal/daemon/rootdisk"
	"banger/internal/guest"
	"banger/internal/hypervisor"
	"banger/internal/paths"
)

// TestDriver boots a guest with the driver alone and takes it through a daemon that
// goes and comes: it dies with the channel open.
func TestDriver(t *testing.T) {
	files, image := bootFiles(t), defaultRootfs(t)
	d := qemuproc.New(qemuproc.Deps{})
	info, err := d.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp(s.scratch, "driver-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	st, err := os.Stat(image)
	if err != nil {
		t.Fatal(err)
	}
	disk, err := rootdisk.Create(t.Context(), rootdisk.Request{
		ImagePath: image, Dest: filepath.Join(dir, paths.RootDiskFile), SizeBytes: st.Size(), Format: hypervisor.FormatQcow2,
	})
	if err != nil {
		t.Fatal(err)
	}
	spec := hypervisor.Spec{
		VMID: "0123456789ab", Dir: dir, CPUs: 2, MemoryMiB: 1024, Machine: info.Machine, CPUModel: info.CPUModel,
		Vmlinux: files.vmlinux, Initramfs: files.initramfs,
		LinkUp: true, MAC: "52:54:00:12:34:56", Disks: []hypervisor.Disk{disk},
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	begin := time.Now()
	m, err := d.Start(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := errors.Join(d.Cleanup(ctx, dir, m.Handle()), m.Close()); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			b, _ := os.ReadFile(filepath.Join(dir, paths.ConsoleLog))
			t.Logf("console:\n%s", b)
		}
	})
	cpus := time.Since(begin)
	s := session(ctx, t, m)
	t.Logf("CPUs run after %s, agent ready after %s (guest: %d ms since its kernel began)", cpus, time.Since(begin), s.Ready().UptimeMillis)
	if r := s.Ready(); !r.RootReady || r.Error != "" {
		t.Fatalf("ready %+v", r)
	}
	// A daemon dies with the channel open, the next one takes over.
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	_ = s.Close()
	if m, err = d.Attach(ctx, spec, m.Handle()); err != nil {
		t.Fatal(err)
	}
	s = session(ctx, t, m)
	conn, err := s.Open(ctx)
	if err != nil {
		t.Fatal(err)
	}
	st2, err := guest.RunExec(ctx, conn, guest.Request{Kind: guest.KindExec, Exec: &guest.Exec{Args: []string{"sh", "-c", "exit 7"}}}, guest.ExecIO{})
	if err != nil || st2.Code != 7 {
		t.Fatalf("exec: %+v, %v", st2, err)
	}
	if conn, err = s.Open(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := guest.Call(ctx, conn, guest.Request{Kind: guest.KindShutdown}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-m.Done():
	case <-ctx.Done():
		t.Fatal("the guest does not end")
	}
	_ = s.Close()
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
