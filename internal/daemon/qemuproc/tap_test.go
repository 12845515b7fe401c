package qemuproc_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"banger/internal/daemon/qemuproc"
	"banger/internal/paths"
)

// newTap makes a tap in a network namespace that ends with it.
func newTap(t *testing.T) *os.File {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes a tap")
	}
	fd, err := -1, error(nil)
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err = unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return
		}
		if fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
			return
		}
		var req *unix.Ifreq
		if req, err = unix.NewIfreq("t0"); err == nil {
			req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
		}
	}()
	<-done
	if err != nil {
		t.Skipf("cannot make a tap here: %v", err)
	}
	tap := os.NewFile(uintptr(fd), "t0")
	t.Cleanup(func() { _ = tap.Close() })
	return tap
}

// A machine with a tap has the same card, and no socket for it.
func TestTap(t *testing.T) {
	dir := t.TempDir()
	spec := testSpec(t, dir)
	spec.Tap = newTap(t)
	m := startMachine(t, spec)
	booted(t, dir)
	var network string
	if err := qemuproc.MonitorOf(m).Execute(t.Context(), "human-monitor-command", map[string]string{"command-line": "info network"}, &network); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(network, "nic0: index=0,type=nic,model=virtio-net-pci,macaddr="+spec.MAC) || !strings.Contains(network, "net0: index=0,type=tap,fd=") {
		t.Errorf("the network is\n%s", network)
	}
	if _, err := os.Stat(filepath.Join(dir, paths.NetSocket)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s: %v", paths.NetSocket, err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, paths.VMMLog)); err != nil || len(b) > 0 {
		t.Errorf("QEMU complains: %s %v", b, err)
	}
}
