package qemuproc

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"banger/internal/daemon/qemuproc/qmp"
	"banger/internal/daemon/tapdev"
	"banger/internal/errdefs"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/accel"
	"banger/internal/hypervisor/dirsock"
	"banger/internal/hypervisor/fence"
	"banger/internal/hypervisor/vmmlog"
	"banger/internal/hypervisor/vmproc"
	"banger/internal/paths"
	"banger/internal/sysexec"
)

// Start implements hypervisor.Driver.
func (d *Driver) Start(ctx context.Context, spec hypervisor.Spec) (hypervisor.Machine, error) {
	if err := checkSpec(spec); err != nil {
		return nil, err
	}
	ctx, cancelLaunch := context.WithTimeout(ctx, vmproc.LaunchTime)
	defer cancelLaunch()
	binary, accel, facts, err := d.look(ctx)
	if err != nil {
		return nil, err
	}
	if !facts.machines[spec.Machine] {
		return nil, errdefs.Unsupported("QEMU %s cannot be a %s any more (or not yet)", facts.version, spec.Machine).
			WithHint("make the VM anew, or install the QEMU it was made with")
	}
	out := &outside{dir: spec.Dir}
	defer out.close()
	args, err := arguments(spec, accel, out)
	if err != nil {
		return nil, err
	}
	if err := served.NotRunning(ctx, spec.Dir); err != nil {
		return nil, err
	}
	files, err := openFiles(spec)
	if err != nil {
		_ = served.RemoveSockets(spec.Dir)
		return nil, errdefs.Wrap(err, "prepare the VM directory")
	}
	defer files.close()
	proc, err := launch(binary, args, spec, accel, files, out)
	if err != nil {
		_ = served.RemoveSockets(spec.Dir)
		return nil, d.launchError(err, spec)
	}
	m, err := d.bringUp(ctx, spec, proc, hypervisor.Handle{
		Driver: Name, PID: proc.PID, StartTime: proc.StartTime, Accel: accel, Version: facts.version.String(),
	}, files)
	if err == nil {
		return m, nil
	}
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), vmproc.UndoTime)
	defer cancel()
	if kerr := proc.Kill(undo); kerr != nil {
		err = errors.Join(err, kerr) // the sockets stay: Cleanup finds it by them
		return nil, err
	}
	_ = served.RemoveSockets(spec.Dir)
	return nil, err
}

// files are what a VMM inherits.
type files struct {
	qmp, agent   *os.File // listening
	net          *os.File // listening, or the tap
	console, log *os.File // append only
}

func openFiles(spec hypervisor.Spec) (f *files, err error) {
	f = new(files)
	dir := spec.Dir
	defer func() {
		if err != nil {
			f.close()
		}
	}()
	if f.qmp, err = dirsock.Listen(dir, paths.QMPSocket); err != nil {
		return f, err
	}
	if f.agent, err = dirsock.Listen(dir, paths.AgentSocket); err != nil {
		return f, err
	}
	if spec.Tap == "" {
		f.net, err = dirsock.Listen(dir, paths.NetSocket)
	} else if f.net, err = tapdev.OpenTap(spec.Tap, true); err != nil {
		err = errdefs.Precondition("connect the network card: %w", err).
			WithHint("the VM's network interface is missing, or in use by another VMM; stop and start the VM")
	}
	if err != nil {
		return f, err
	}
	if f.console, err = vmmlog.Create(dir, paths.ConsoleLog, os.O_WRONLY); err != nil {
		return f, err
	}
	f.log, err = vmmlog.Create(dir, paths.VMMLog, os.O_RDWR)
	return f, err
}

func (f *files) close() {
	for _, file := range []*os.File{f.qmp, f.agent, f.net, f.console, f.log} {
		if file != nil {
			_ = file.Close()
		}
	}
}

// launch starts the process with the least it needs: no environment, no core
// dumps, its own network and IPC namespaces where we may make them, and the VM's
// own user when we are root.
func launch(binary string, args []string, spec hypervisor.Spec, acc hypervisor.Accel, f *files, out *outside) (*sysexec.Proc, error) {
	d := sysexec.Detached{
		Path: binary, Args: args, Dir: spec.Dir, Env: []string{}, Stdout: f.log, Stderr: f.log,
		ExtraFiles: []*os.File{fdQMP - 3: f.qmp, fdAgent - 3: f.agent, fdNet - 3: f.net, fdConsole - 3: f.console},
	}
	d.ExtraFiles = append(d.ExtraFiles, out.files...)
	if os.Geteuid() == 0 && (spec.UID != 0 || spec.GID != 0) {
		d.Credential = &syscall.Credential{Uid: uint32(spec.UID), Gid: uint32(spec.GID)}
		if acc == hypervisor.AccelKVM {
			d.Credential.Groups = accel.Groups()
		}
	}
	proc, err := fence.Start(d, false)
	if err != nil {
		return nil, err
	}
	// A container's root may not; guest memory is left out of core dumps either way.
	_ = unix.Prlimit(proc.PID, unix.RLIMIT_CORE, &unix.Rlimit{}, nil)
	return proc, nil
}

// bringUp waits for QEMU's greeting, which comes when all devices are there, sets
// the link and lets the CPUs run.
func (d *Driver) bringUp(ctx context.Context, spec hypervisor.Spec, proc *sysexec.Proc, h hypervisor.Handle, f *files) (*machine, error) {
	up, cancel := vmproc.While(ctx, proc)
	defer cancel()
	heard := d.newHeard(spec.VMID)
	client, err := d.bringUpQMP(up, spec, heard)
	if err == nil {
		log, lerr := openLog(spec.Dir)
		if lerr != nil {
			_ = client.Close()
			return nil, errdefs.Wrap(lerr, "open the VMM's log")
		}
		return d.newMachine(spec, proc, h, client, log, heard), nil
	}
	if ctx.Err() != nil {
		return nil, errdefs.Wrap(context.Cause(ctx), "start QEMU")
	}
	if errors.Is(err, qmp.ErrClosed) || errors.Is(err, vmproc.ErrEnded) {
		// QEMU hung up, so it is about to end; what it says comes before that.
		select {
		case <-proc.Done():
		case <-ctx.Done():
			return nil, errdefs.Wrap(context.Cause(ctx), "start QEMU")
		}
		return nil, d.endedEarly(proc, f.log)
	}
	return nil, errdefs.Unavailable("start QEMU: %w", err)
}

func (d *Driver) bringUpQMP(ctx context.Context, spec hypervisor.Spec, heard *heard) (*qmp.Client, error) {
	conn, err := dirsock.Dial(ctx, spec.Dir, paths.QMPSocket)
	if err != nil {
		return nil, err
	}
	client, err := qmp.New(ctx, conn, heard.event)
	if err != nil {
		return nil, err
	}
	if !spec.LinkUp {
		err = setLink(ctx, client, false)
	}
	if err == nil {
		err = limitDisks(ctx, client, spec.Disks)
	}
	if err == nil {
		err = client.Execute(ctx, "cont", nil, nil)
	}
	if err != nil {
		_ = client.Close()
		return nil, err
	}
	return client, nil
}

// launchError explains a process that could not be started at all.
func (d *Driver) launchError(err error, spec hypervisor.Spec) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return errdefs.Permission("start QEMU: %w", err).
			WithHint("uid %d must be able to run QEMU and to enter %s and all directories above it", spec.UID, spec.Dir)
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOMEM):
		return errdefs.Exhausted("start QEMU: %w", err).WithHint("the host is out of processes or memory; stop a VM")
	}
	return errdefs.Unavailable("start QEMU: %w", err)
}

// complaints maps what QEMU says when it cannot start to what that means. The
// texts have been the same since 7.2; an unknown one is passed on without a class.
var complaints = []struct {
	text  string
	class errdefs.Class
	hint  string
}{
	{"Cannot allocate memory", errdefs.ClassExhausted, "give the VM less memory, or stop another one"},
	{"cannot set up guest memory", errdefs.ClassExhausted, "give the VM less memory, or stop another one"},
	{"No space left on device", errdefs.ClassExhausted, "free some disk space"},
	{`Failed to get "write" lock`, errdefs.ClassFailedPrecondition, "another VMM uses this disk; end it first"},
	{`Failed to get shared "write" lock`, errdefs.ClassFailedPrecondition, "something has this disk open for writing; end it first"},
	{"Could not access KVM kernel module", errdefs.ClassUnavailable, "banger doctor says what is wrong with KVM"},
	{"unable to find CPU model", errdefs.ClassUnsupported, "make the VM anew, or install the QEMU it was made with"},
	{"unsupported machine type", errdefs.ClassUnsupported, "make the VM anew, or install the QEMU it was made with"},
	{"invalid option", errdefs.ClassUnsupported, "use a QEMU with seccomp support, such as the distribution's"},
	{"There is no option group 'sandbox'", errdefs.ClassUnsupported, "use a QEMU with seccomp support, such as the distribution's"},
	{"No such file or directory", errdefs.ClassFailedPrecondition, "a file of the VM is missing; pull its image and kernel again"},
	{"could not load kernel", errdefs.ClassFailedPrecondition, "the kernel file is missing or damaged; pull it again"},
	{"could not read kernel", errdefs.ClassFailedPrecondition, "the kernel file is missing or damaged; pull it again"},
	{"Error while loading elf kernel", errdefs.ClassFailedPrecondition, "the kernel file is damaged; pull it again"},
	{"Image is not in qcow2 format", errdefs.ClassFailedPrecondition, "the VM's disk is damaged; make the VM anew"},
	{"Error loading uncompressed kernel without PVH", errdefs.ClassUnsupported, "the kernel needs CONFIG_PVH, or a bzImage beside it"},
	{"could not load initrd", errdefs.ClassFailedPrecondition, "the initramfs is missing or damaged; pull the kernel again"},
	{"Permission denied", errdefs.ClassPermission, "the user the VMM runs as must be able to read the kernel and the image"},
}

// endedEarly explains a QEMU that ended before its CPUs ran.
func (d *Driver) endedEarly(proc *sysexec.Proc, log *os.File) error {
	text := vmmlog.Last(log, 4, strip)
	exit := proc.Exit()
	if text == "" {
		text = exit.String()
	}
	for _, c := range complaints {
		if strings.Contains(text, c.text) {
			return errdefs.New(c.class, "start QEMU: %s", text).WithHint("%s", c.hint)
		}
	}
	return errdefs.Internal("start QEMU: %s", text)
}
