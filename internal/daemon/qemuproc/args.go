package qemuproc

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"banger/internal/errdefs"
	"banger/internal/guest"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/tsc"
	"banger/internal/hypervisor/vmproc"
)

// Where the devices are. A memory snapshot restores only into the same places, so
// none of this may change for a machine type once VMs of it exist. Slot 0x1f and
// below it belong to the chipset.
const (
	slotNet    = 0x02
	slotRNG    = 0x03
	slotSerial = 0x04
	slotDisk0  = 0x08 // to 0x0f: one per disk
	slotPorts  = 0x10 // spare root ports, one function each, for what is added later

	sparePorts = 2
)

// Descriptors QEMU finds open.
const (
	fdQMP = 3 + iota
	fdAgent
	fdNet
	fdConsole
)

// machineOptions switch off what no guest of ours uses and each boot pays for:
// probing, interrupts, or translation of code. Memory is left out of core dumps
// and is not merged with that of other VMs, which would tell them apart by time.
const machineOptions = ",memory-backend=mem,hpet=off,smm=off,vmport=off,sata=off,i8042=off,dump-guest-core=off,mem-merge=off"

// sandbox is the seccomp policy. It also sets no_new_privs.
const sandbox = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

// bootArgs are the kernel parameters every machine of ours needs: the serial
// console and its only port, a panic that ends the VM (QEMU runs with -no-reboot)
// by triple fault, the entropy the processor gives, and no self-tests of ciphers.
const bootArgs = "console=ttyS0 quiet loglevel=3 panic=-1 reboot=t 8250.nr_uarts=1 no_timer_check random.trust_cpu=on cryptomgr.notests"

// bootArgsTCG is what emulated processors need besides. The mitigations of a real
// processor's flaws protect nothing there, but page table isolation alone would
// flush the emulated TLB at every system call. And the kernel must not distrust
// the time stamp counter, which follows the host's clock, because a busy host
// delayed its timer: the clock it would take instead costs an exit per reading. For
// the same reason it is told how fast that counter counts (tscArg).
const bootArgsTCG = " mitigations=off tsc=reliable"

// tscArg spares the kernel its first, rough measurement of the time stamp counter,
// which it takes against a timer that comes late on a busy host. The finer one it
// makes later counts only within a hundredth of the first.
func tscArg() string {
	mhz := tsc.MHz()
	if mhz == 0 {
		return ""
	}
	return fmt.Sprintf(" tsc_early_khz=%d", mhz*1000)
}

// Cmdline returns the kernel command line for a machine of this driver: what the
// devices need, then extra.
func Cmdline(accel hypervisor.Accel, extra string) string {
	line := bootArgs
	if accel == hypervisor.AccelTCG {
		line += bootArgsTCG + tscArg()
	}
	if extra != "" {
		line += " " + extra
	}
	return line
}

// translationMiB is the size of TCG's translation buffer. It is memory of each
// QEMU, touched as it fills; a full one is emptied and begun anew.
func translationMiB(memoryMiB int64) int64 { return min(128, max(32, memoryMiB/8)) }

var (
	wordPattern = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)
	// A model, and features it is to be without or to have besides.
	modelPattern = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}(,[-+][a-z0-9._-]{1,24}){0,24}$`)
)

// checkSpec refuses what would turn into other options than meant.
func checkSpec(s hypervisor.Spec) error {
	if err := vmproc.CheckSpec(s); err != nil {
		return err
	}
	switch {
	case s.CPUs < 1 || s.CPUs > 255:
		return errdefs.Invalid("%d CPUs: a VM has 1 to 255", s.CPUs)
	case !wordPattern.MatchString(s.VMID):
		return errdefs.Invalid("VM id %q is not one", s.VMID)
	case !wordPattern.MatchString(s.Machine):
		return errdefs.Invalid("machine type %q is not one", s.Machine)
	case !modelPattern.MatchString(s.CPUModel):
		return errdefs.Invalid("CPU model %q is not one", s.CPUModel)
	case s.Vmlinux == "" && s.BzImage == "":
		return errdefs.Invalid("no kernel to boot")
	}
	for _, d := range s.Disks {
		if d.Format != hypervisor.FormatRaw && d.Format != hypervisor.FormatQcow2 {
			return errdefs.Invalid("disk %s has unknown format %q", d.Serial, d.Format)
		}
	}
	return nil
}

// arguments is the command line of QEMU for s. Files that do not lie in the VM
// directory are opened by way of out.
func arguments(s hypervisor.Spec, accel hypervisor.Accel, out *outside) ([]string, error) {
	mib := strconv.FormatInt(s.MemoryMiB, 10)
	accelOpt := "kvm"
	if accel == hypervisor.AccelTCG {
		accelOpt = fmt.Sprintf("tcg,thread=multi,tb-size=%d", translationMiB(s.MemoryMiB))
	}
	// The ELF image is entered directly; a bzImage first unpacks itself, which
	// costs a third of a second where code is translated.
	kernel := s.Vmlinux
	if kernel == "" {
		kernel = s.BzImage
	}
	kernel, err := out.file(kernel)
	if err != nil {
		return nil, err
	}
	args := []string{
		"-name", "banger-" + s.VMID, // for ps; guests do not see it
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-msg", "timestamp=on", "-sandbox", sandbox,
		"-S", // CPUs start when the link is set
		"-machine", s.Machine + machineOptions,
		"-accel", accelOpt,
		"-cpu", s.CPUModel,
		"-smp", fmt.Sprintf("cpus=%d,sockets=1,cores=%d,threads=1", s.CPUs, s.CPUs),
		"-object", "memory-backend-ram,id=mem,size=" + mib + "M",
		"-m", mib,
		"-rtc", "base=utc",
		"-kernel", kernel,
		"-append", Cmdline(accel, s.Cmdline),

		"-chardev", listener("qmp", fdQMP), "-mon", "chardev=qmp,mode=control",
		"-add-fd", fmt.Sprintf("fd=%d,set=1", fdConsole),
		"-chardev", "file,id=console,path=/dev/fdset/1,append=on",
		"-device", "isa-serial,id=serial0,chardev=console",

		"-netdev", netdev(s),
		"-device", device("virtio-net-pci", slotNet) + ",id=nic0,netdev=net0,romfile=,mac=" + s.MAC,
		"-object", "rng-builtin,id=rng0",
		"-device", device("virtio-rng-pci", slotRNG) + ",rng=rng0",
		"-chardev", listener("agent", fdAgent),
		"-device", device("virtio-serial-pci", slotSerial) + ",id=ports,max_ports=8",
		"-device", "virtserialport,bus=ports.0,nr=1,chardev=agent,name=" + guest.PortName,
	}
	if s.Initramfs != "" {
		initrd, err := out.file(s.Initramfs)
		if err != nil {
			return nil, err
		}
		args = append(args, "-initrd", initrd)
	}
	for i := range sparePorts {
		port := fmt.Sprintf("pcie-root-port,id=spare%d,bus=pcie.0,addr=0x%x.%d,chassis=%d,slot=%d", i, slotPorts, i, i+1, i+1)
		if i == 0 {
			port += ",multifunction=on"
		}
		args = append(args, "-device", port)
	}
	for i, d := range s.Disks {
		node, err := blockdev(i, d, out)
		if err != nil {
			return nil, err
		}
		// A full host disk stops the guest until there is space (see stall.go): reported as
		// an error it would cost the guest's file system what is not yet written. Other
		// errors are the guest's.
		args = append(args, "-blockdev", node,
			"-device", fmt.Sprintf("%s,id=%s,drive=disk%d,serial=%s,werror=enospc,rerror=report", device("virtio-blk-pci", slotDisk0+i), diskDevice(i), i, d.Serial))
	}
	return append(args, out.args...), nil
}

// netdev is the other end of the card's cable. The guest sees the same card at
// either. Packets of a tap go through QEMU: its user may not open vhost-net, and a
// guest that breaks out of a ring should find a process, not the kernel.
func netdev(s hypervisor.Spec) string {
	if s.Tap != "" {
		return fmt.Sprintf("tap,id=net0,fd=%d,vhost=off", fdNet)
	}
	return fmt.Sprintf("stream,id=net0,server=on,addr.type=fd,addr.str=%d", fdNet)
}

func listener(id string, fd int) string {
	return fmt.Sprintf("socket,id=%s,fd=%d,server=on,wait=off", id, fd)
}

func device(model string, slot int) string {
	return fmt.Sprintf("%s,bus=pcie.0,addr=0x%x,disable-legacy=on", model, slot)
}

// blockdev describes a disk as JSON, in which a path may hold anything. Writes go
// through the host's page cache and reach its disk when the guest flushes; blocks
// the guest discards, or fills with zeros, are given back.
func blockdev(i int, d hypervisor.Disk, out *outside) (string, error) {
	type node struct {
		Driver       string `json:"driver"`
		NodeName     string `json:"node-name,omitempty"`
		ReadOnly     bool   `json:"read-only,omitempty"`
		Discard      string `json:"discard,omitempty"`
		DetectZeroes string `json:"detect-zeroes,omitempty"`
		Filename     string `json:"filename,omitempty"`
		File         *node  `json:"file,omitempty"`
		Backing      *node  `json:"backing,omitempty"`
	}
	name, err := out.fdset(d.Path, d.ReadOnly)
	if err != nil {
		return "", err
	}
	n := node{
		Driver: string(d.Format), NodeName: nodeName(i), ReadOnly: d.ReadOnly,
		File: &node{Driver: protocol(d.Path), Filename: name, ReadOnly: d.ReadOnly},
	}
	if !d.ReadOnly {
		n.Discard, n.DetectZeroes, n.File.Discard = "unmap", "unmap", "unmap"
	}
	if d.Backing != "" {
		base, err := out.fdset(d.Backing, true)
		if err != nil {
			return "", err
		}
		n.Backing = &node{
			Driver: string(hypervisor.FormatRaw), ReadOnly: true,
			File: &node{Driver: "file", Filename: base, ReadOnly: true},
		}
	}
	b, err := json.Marshal(n)
	return string(b), err
}

// nodeName is what QEMU calls the disk with that number.
func nodeName(i int) string { return fmt.Sprintf("disk%d", i) }

// protocol is QEMU's driver for what a path names. One that is not there fails when it
// is opened.
func protocol(path string) string {
	if st, err := os.Stat(path); err == nil && st.Mode()&os.ModeDevice != 0 {
		return "host_device"
	}
	return "file"
}

// relative shortens what lies in dir, QEMU's working directory.
func relative(dir, path string) string {
	if rel, err := filepath.Rel(dir, path); err == nil && rel != ".." && !strings.HasPrefix(rel, "../") {
		return rel
	}
	return path
}
