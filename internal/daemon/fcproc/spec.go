package fcproc

import (
	"regexp"
	"strings"

	"banger/internal/errdefs"
	"banger/internal/guest"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/vmproc"
)

// maxCPUs is how many a Firecracker VM has at most.
const maxCPUs = 32

// bootArgs are the kernel parameters every machine of ours needs: the serial
// console and its only port, a panic that ends the VM, at once, by a reset through
// the keyboard controller (the one way a guest ends Firecracker), no search for a
// mouse there, the entropy the processor gives, and no self-tests of ciphers.
const bootArgs = "console=ttyS0 quiet loglevel=3 panic=-1 reboot=k 8250.nr_uarts=1 " +
	"i8042.noaux i8042.nomux i8042.dumbkbd no_timer_check random.trust_cpu=on cryptomgr.notests"

// Cmdline returns the kernel command line for a machine of this driver: what the
// devices need, then extra. Firecracker gives disks no serials, so it names them.
func Cmdline(disks []hypervisor.Disk, extra string) string {
	serials := make([]string, len(disks))
	for i, d := range disks {
		serials[i] = d.Serial
	}
	line := bootArgs + " " + guest.ParamMachine + "=" + guest.MachineMMIO
	if len(serials) > 0 {
		line += " " + guest.ParamDisks + "=" + strings.Join(serials, ",")
	}
	if extra != "" {
		line += " " + extra
	}
	return line
}

var tapPattern = regexp.MustCompile(`^[A-Za-z0-9._-]{1,15}$`)

// checkSpec refuses what Firecracker would refuse late, or take for something else.
func checkSpec(s hypervisor.Spec) error {
	if err := vmproc.CheckSpec(s); err != nil {
		return err
	}
	switch {
	case s.CPUs < 1 || s.CPUs > maxCPUs:
		return errdefs.Invalid("%d CPUs: a Firecracker VM has 1 to %d", s.CPUs, maxCPUs).
			WithHint("choose --cpus in that range, or --driver qemu")
	case s.Machine != machineType || s.CPUModel != cpuModel:
		return errdefs.Unsupported("this Firecracker driver cannot be a %s with CPU %s", s.Machine, s.CPUModel).
			WithHint("make the VM anew")
	case s.Vmlinux == "":
		return errdefs.Precondition("Firecracker boots an uncompressed kernel, and there is none").
			WithHint("pull or import the kernel again")
	case s.Tap != "" && !tapPattern.MatchString(s.Tap):
		return errdefs.Invalid("network interface %q is not one", s.Tap)
	case s.LinkUp && s.Tap == "":
		return errdefs.Unsupported("Firecracker's network card needs a tap, and there is none").
			WithHint("do without a network (--net none), or choose --driver qemu")
	}
	for _, d := range s.Disks {
		if d.Format != hypervisor.FormatRaw {
			return errdefs.Unsupported("disk %s has format %q: Firecracker takes raw disks only", d.Serial, d.Format).
				WithHint("make the VM anew, or choose --driver qemu")
		}
	}
	return nil
}
