package usernet

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// maxProcs bounds the threads and the workers each stack starts; what a
	// helper moves is bounded by the copies in the kernel well before that.
	maxProcs = 4
	// memoryTarget makes the collector work harder beyond it, in bytes. It is no
	// limit: the limits of the VMs are.
	memoryTarget = 64 << 20
	gcPercent    = 50
)

// settle makes this process small and harmless: it trades a little processor
// time for memory, and gives up for good every privilege it has no use for.
func settle() error {
	if runtime.GOMAXPROCS(0) > maxProcs {
		runtime.GOMAXPROCS(maxProcs)
	}
	debug.SetGCPercent(gcPercent)
	debug.SetMemoryLimit(memoryTarget)
	if err := allThreads(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0); err != nil {
		return fmt.Errorf("give up gaining privileges: %w", err)
	}
	if os.Geteuid() != 0 {
		return nil
	}
	// Root keeps only the right to pass by file modes: the VMs' sockets may
	// belong to other users.
	keep := uint32(1 << unix.CAP_DAC_OVERRIDE)
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var have, want [2]unix.CapUserData
	if err := unix.Capget(&hdr, &have[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	want[0].Permitted = have[0].Permitted & keep
	want[0].Effective = want[0].Permitted
	err := allThreads(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&hdr)), uintptr(unsafe.Pointer(&want[0])), 0)
	runtime.KeepAlive(&hdr)
	runtime.KeepAlive(&want)
	if err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	return nil
}

// allThreads makes a system call whose effect is per thread on all of them.
func allThreads(trap, a1, a2, a3 uintptr) error {
	if _, _, errno := syscall.AllThreadsSyscall6(trap, a1, a2, a3, 0, 0, 0); errno != 0 {
		return errno
	}
	return nil
}
