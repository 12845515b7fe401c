// Package boot is what the agent does as the first process of a VM: mount the
// kernel's file systems, load the modules of the early boot, find and mount the
// root disk, and make it the root.
//
// # Initramfs
//
// /init is the agent. /modules holds uncompressed kernel modules; /modules/order
// names, one to a line, those that the root disk and the agent's port need, in
// load order; /modules/order-mmio are those for a machine without PCI (see
// guest.MachineMMIO), /modules/order-late those that may be loaded later. The directories
// /dev, /proc, /sys, /run and /newroot exist, and so does /dev/console.
//
// # Processes
//
// Process 1 never serves. It starts the agent proper as a child when the root is
// ready (or has failed), and then becomes the image's init, or stays and reaps
// orphans. So there is one way to wait for commands with and without an init.
package boot

import (
	"errors"
	"log/slog"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
	"banger/internal/guest"
	"banger/internal/hypervisor"
)

// State is what the first process tells the agent.
type State struct {
	Init    string `json:"init"`            // as in guest.Ready
	Program string `json:"program"`         // of the init; empty: none
	Release string `json:"release"`         // of the kernel
	MMIO    bool   `json:"mmio,omitempty"`  // the machine is a guest.MachineMMIO
	Error   string `json:"error,omitempty"` // why there is no root
}

// Paths of the initramfs.
const (
	newRoot    = "/newroot"
	modulesDir = "/modules"
)

// diskTimeout is how long the root disk may take to appear.
const diskTimeout = 30 * time.Second

// Prepare brings the VM from the kernel's start to a mounted root, which is then
// the root of this process. On failure the process is still in the initramfs,
// with the kernel's file systems mounted, and the state says why. The file is the
// directory of the modules that were not loaded yet; it may be nil.
func Prepare(log *slog.Logger) (State, *os.File) {
	state := State{Init: "none"}
	release, err := mountKernel()
	state.Release = release
	state.MMIO = cmdlineValue(guest.ParamMachine) == guest.MachineMMIO
	if err == nil {
		list := "order"
		if state.MMIO {
			list = "order-mmio"
		}
		err = loadModules(list)
	}
	late, _ := os.Open(modulesDir)
	if err == nil {
		state.Init, state.Program, err = enterRoot(log, release, state.MMIO)
	}
	if err != nil {
		state.Error = err.Error()
	}
	return state, late
}

// mountKernel mounts the kernel's own file systems and returns its release.
func mountKernel() (string, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return "", errdefs.Wrap(err, "read the kernel's release")
	}
	release := unix.ByteSliceToString(uts.Release[:])
	for _, m := range []struct {
		kind, dir string
		flags     uintptr
		data      string
	}{
		{"devtmpfs", "/dev", unix.MS_NOSUID, "mode=0755"},
		{"proc", "/proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"sysfs", "/sys", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"tmpfs", "/run", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755"},
	} {
		err := unix.Mount(m.kind, m.dir, m.kind, m.flags, m.data)
		if err != nil && err != unix.EBUSY { // the kernel may have mounted /dev itself
			return release, errdefs.Wrap(err, "mount %s", m.dir)
		}
	}
	return release, nil
}

// enterRoot mounts the root disk and switches to it. It returns the kind
// of init, and its program.
func enterRoot(log *slog.Logger, release string, mmio bool) (kind, program string, err error) {
	disk, err := waitDisk(hypervisor.SerialRoot, diskTimeout)
	if err != nil {
		return "none", "", err
	}
	if err := mountRoot(disk); err != nil {
		return "none", "", err
	}
	if err := grow(disk, newRoot); err != nil {
		log.Warn("the file system keeps its size", "err", err)
	}
	root, err := unix.Open(newRoot, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "none", "", errdefs.Wrap(err, "open the root")
	}
	defer unix.Close(root)
	if modules, ok := findDisk(hypervisor.SerialModules); ok {
		if err := mountModules(root, modules, release); err != nil {
			log.Warn("the kernel's modules are missing", "err", err)
		}
	}
	kind = "none"
	if cmdlineValue("banger.init") != "none" {
		kind, program = detectInit(root)
	}
	if err := switchRoot(root); err != nil {
		return "none", "", err
	}
	if err := mountRest(kind); err != nil {
		log.Warn("a file system is missing", "err", err)
	}
	if kind != "none" {
		if err := writeDropIns("/run", mmio); err != nil {
			log.Warn("the image may change the network or stay on after power-off", "err", err)
		}
		if err := errors.Join(keepTmp("/run", vendorTmpfiles, "/tmp"), cleanTmp("/")); err != nil {
			log.Warn("the image may remove what commands have in /tmp while it starts", "err", err)
		}
	}
	return kind, program, nil
}

// cmdlineValue returns the value of a kernel parameter key=value; the last counts.
func cmdlineValue(key string) string {
	b, _ := os.ReadFile("/proc/cmdline")
	return parameter(string(b), key)
}

func parameter(line, key string) string {
	value := ""
	for field := range strings.FieldsSeq(line) {
		if v, ok := strings.CutPrefix(field, key+"="); ok {
			value = v
		}
	}
	return value
}

// mkdirs makes directories that may exist already.
func mkdirs(paths ...string) error {
	var errs []error
	for _, p := range paths {
		errs = append(errs, os.MkdirAll(p, 0o755))
	}
	return errors.Join(errs...)
}
