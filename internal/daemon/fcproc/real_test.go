package fcproc_test

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"banger/internal/errdefs"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/hypervisortest"
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
		spec := guestSpec(t, t.TempDir())
		d := newDriver()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		boot := func() *hypervisortest.Guest { return hypervisortest.BootGuest(ctx, t, d, spec) }
		g := boot()
		g.Run(7, "test -d /lib/modules/$(uname -r)/kernel && echo hello > /kept && exit 7")
		g.NextDaemon()
		g.Run(3, "grep -q hello /kept && exit 3")
		g.Shutdown()
		// What was written is there at the next start, whose end is the power button.
		g = boot()
		g.Run(3, "grep -q hello /kept && exit 3")
		// The button is a key, and the keyboard may be younger than the agent.
		g.Run(0, "until grep -q kbd /proc/bus/input/devices; do sleep 0.1; done")
		g.PowerButton()
		// And one that is powered off from inside.
		if e := boot().PowerOff("poweroff -f"); !e.Known || e.Code != 0 || e.Signal != 0 {
			t.Errorf("exit %+v", e)
		}
	})
}

// What is no kernel is refused in words, by Firecracker, and leaves nothing.
func TestKernelThatIsNone(t *testing.T) {
	eachWay(t, func(t *testing.T) {
		if os.Getenv(fakeEnv) != "" {
			t.Skip("the stand-in boots anything")
		}
		for name, kernel := range map[string][]byte{
			"empty": nil, "text": []byte("#!/bin/sh\necho hello\n"), "cut off": hypervisortest.Kernel(hypervisortest.Keyboard)[:100],
		} {
			t.Run(name, func(t *testing.T) {
				dir := t.TempDir()
				spec := testSpec(t, dir)
				if err := os.WriteFile(spec.Vmlinux, kernel, 0o644); err != nil {
					t.Fatal(err)
				}
				before, err := os.ReadDir(dir)
				if err != nil {
					t.Fatal(err)
				}
				d := newDriver()
				m, err := d.Start(t.Context(), spec)
				if err == nil {
					t.Error("it started", d.Cleanup(t.Context(), dir, m.Handle()), m.Close())
				}
				if errdefs.ClassOf(err) != errdefs.ClassFailedPrecondition || !strings.Contains(errdefs.HintOf(err), "kernel") && !strings.Contains(errdefs.HintOf(err), "vmlinux") {
					t.Errorf("got %v (%s)", err, errdefs.HintOf(err))
				}
				after, err := os.ReadDir(dir)
				if err != nil {
					t.Fatal(err)
				}
				for _, e := range after {
					if e.Name() != paths.ConsoleLog && e.Name() != paths.VMMLog && !slices.ContainsFunc(before, func(b os.DirEntry) bool { return b.Name() == e.Name() }) {
						t.Errorf("%s is left", e.Name())
					}
				}
			})
		}
	})
}
