package fcproc

import (
	"errors"
	"io"
	"io/fs"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
	"banger/internal/hypervisor/dirsock"
	"banger/internal/hypervisor/vmproc"
)

// launchError explains a process that could not be started, or not be spoken to.
func launchError(err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return errdefs.Permission("start Firecracker: %w", err).
			WithHint("the VM's user must be able to run Firecracker and to enter the VM directory and all above it")
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOMEM):
		return errdefs.Exhausted("start Firecracker: %w", err).WithHint("the host is out of processes or memory; stop a VM")
	case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOSPC):
		return errdefs.Exhausted("start Firecracker: %w", err).
			WithHint("the host is out of open files, inotify watches or disk space; raise its limits, or stop a VM")
	case errors.Is(err, dirsock.ErrStranger):
		return errdefs.Unavailable("start Firecracker: %w", err).
			WithHint("firecracker.binary must name Firecracker itself, or a program that becomes it (exec), not one that starts it")
	}
	return errdefs.Unavailable("start Firecracker: %w", err).
		WithHint("try again; if it stays so, install another release of Firecracker, or choose --driver qemu")
}

// hungUp reports whether err is of a connection, or of an attempt to make one, that shows
// that the process at the other end has let go of its socket.
func hungUp(err error) bool {
	for _, is := range []error{io.EOF, io.ErrUnexpectedEOF, unix.ECONNRESET, unix.EPIPE, unix.ECONNREFUSED, vmproc.ErrEnded} {
		if errors.Is(err, is) {
			return true
		}
	}
	return false
}

// complaints maps what Firecracker and its jailer say to what it means. The first
// that fits counts; an unknown text is passed on without a class.
var complaints = []struct {
	text  string
	class errdefs.Class
	hint  string
}{
	// Jailer.
	{"Failed to exec into Firecracker: No such file", errdefs.ClassUnsupported,
		"inside the jail there are no libraries: use a statically linked Firecracker, as its releases are, or firecracker.jail: false in the config"},
	{"Failed to create /dev/", errdefs.ClassUnsupported,
		"the state directory must be on a file system that allows device nodes, or set firecracker.jail: false in the config"},
	{"inside the jail", errdefs.ClassUnavailable, "root of a container may be unable to make a jail: firecracker.jail: false in the config"},
	{"Failed to unshare", errdefs.ClassUnavailable, "root of a container may be unable to make a jail: firecracker.jail: false in the config"},
	// What the host lacks.
	{"/dev/kvm", errdefs.ClassUnavailable, "banger doctor says what is wrong with KVM"},
	{"access KVM", errdefs.ClassUnavailable, "banger doctor says what is wrong with KVM"},
	{"KVM object", errdefs.ClassUnavailable, "banger doctor says what is wrong with KVM"},
	{"KVM capabilities", errdefs.ClassUnsupported, "the host's kernel is too old for this Firecracker; choose --driver qemu"},
	{"Cannot allocate memory", errdefs.ClassExhausted, "give the VM less memory, or stop another one"},
	{"No space left on device", errdefs.ClassExhausted, "free some disk space"},
	{"Too many open files", errdefs.ClassExhausted, "raise the limit of open files of the daemon"},
	// What the VM is made of.
	{"memory size (MiB) is invalid", errdefs.ClassInvalidArgument, "choose another --memory"},
	{"guest memory", errdefs.ClassExhausted, "give the VM less memory, or stop another one"},
	{"vCPU number is invalid", errdefs.ClassInvalidArgument, "choose another --cpus"},
	{"vcpu number is invalid", errdefs.ClassInvalidArgument, "choose another --cpus"},
	{"tap device", errdefs.ClassFailedPrecondition, "the VM's network interface is missing, or in use by another VMM; stop and start the VM"},
	{"Permission denied", errdefs.ClassPermission, "the user the VMM runs as must be able to read the kernel and the image"},
	{"No such file or directory", errdefs.ClassFailedPrecondition, "a file of the VM is missing; pull its image and kernel again"},
	{"kernel image", errdefs.ClassFailedPrecondition, "Firecracker boots an uncompressed x86-64 kernel in ELF format (vmlinux) only; pull or import another one"},
	{"kernel", errdefs.ClassFailedPrecondition, "the kernel file is damaged, or is none that Firecracker boots; pull or import it again"},
	{"Elf", errdefs.ClassFailedPrecondition, "the kernel file is damaged, or is none that Firecracker boots; pull or import it again"},
	{"nitrd", errdefs.ClassFailedPrecondition, "the initramfs is missing or damaged, or does not fit in the VM's memory; pull the kernel again, or give more --memory"},
	{"block device", errdefs.ClassFailedPrecondition, "the VM's disk is damaged; make the VM anew"},
	{"BlockDevice", errdefs.ClassFailedPrecondition, "the VM's disk is damaged; make the VM anew"},
	{"command line", errdefs.ClassInvalidArgument, "shorten the kernel command line"},
	{"CPUID", errdefs.ClassUnsupported, "Firecracker does not know this processor; install a newer one, or choose --driver qemu"},
	// A program or a release that is not what we speak to.
	{"unknown field", errdefs.ClassUnsupported, "this release of Firecracker is not known to banger; install the newest of both"},
	{"Arguments parsing error", errdefs.ClassUnsupported, "this release of Firecracker is not known to banger; install the newest of both"},
}

// explain makes an error of what Firecracker said.
func explain(text string, f facts) error {
	for _, c := range complaints {
		if strings.Contains(text, c.text) {
			return errdefs.New(c.class, "start Firecracker: %s", text).WithHint("%s", c.hint)
		}
	}
	return errdefs.Internal("start Firecracker %s: %s", f.version.text, text)
}
