package fcproc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"banger/internal/daemon/fcproc/fcapi"
	"banger/internal/errdefs"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/accel"
	"banger/internal/hypervisor/dirsock"
	"banger/internal/hypervisor/fence"
	"banger/internal/hypervisor/vmmlog"
	"banger/internal/hypervisor/vmproc"
	"banger/internal/logkey"
	"banger/internal/paths"
	"banger/internal/sysexec"
)

// guestCID is the guest's address on its vsock; each Firecracker has a vsock of its own.
const guestCID = 3

// statsSeconds is how often a guest tells what its memory is used for. It is woken
// for that, so not often.
const statsSeconds = 60

// Start implements hypervisor.Driver.
func (d *Driver) Start(ctx context.Context, spec hypervisor.Spec) (hypervisor.Machine, error) {
	if err := checkSpec(spec); err != nil {
		return nil, err
	}
	ctx, cancelLaunch := context.WithTimeout(ctx, vmproc.LaunchTime)
	defer cancelLaunch()
	f, err := d.look(ctx)
	if err != nil {
		return nil, err
	}
	pid, _, err := d.running(ctx, spec.Dir)
	if err != nil {
		return nil, errdefs.Wrap(err, "look for a VMM that runs already")
	}
	if pid != 0 {
		return nil, errdefs.Precondition("a VMM (pid %d) runs in %s already", pid, spec.Dir)
	}
	m, err := d.start(ctx, spec, f)
	if err != nil {
		return nil, err
	}
	return m, nil
}

func (d *Driver) start(ctx context.Context, spec hypervisor.Spec, f facts) (m *machine, err error) {
	l := &launch{d: d, spec: spec, facts: f}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.undo(ctx))
		}
		l.close()
	}()
	if l.place, err = prepare(spec, f); err != nil {
		return nil, err
	}
	conf, err := configuration(spec, l.place)
	if err != nil {
		return nil, err
	}
	if err := l.openFiles(ctx); err != nil {
		return nil, errdefs.Wrap(err, "prepare the VM directory")
	}
	socket, err := watchSocket(l.place.dir)
	if err != nil {
		return nil, launchError(fmt.Errorf("watch for the VMM's socket: %w", err))
	}
	defer socket.close()
	if err := l.run(); err != nil {
		return nil, launchError(err)
	}
	h := hypervisor.Handle{
		Driver: Name, PID: l.proc.PID, StartTime: l.proc.StartTime,
		Accel: hypervisor.AccelKVM, Version: f.version.text,
	}
	if err := l.bringUp(ctx, socket, conf); err != nil {
		return nil, err
	}
	log, err := openLog(spec.Dir)
	if err != nil {
		return nil, errdefs.Wrap(err, "open the VMM's log")
	}
	m = d.newMachine(spec, l.place.dir, l.proc, h, log, l.bell)
	l.bell = nil
	return m, nil
}

// launch is what one start has made so far.
type launch struct {
	d      *Driver
	spec   hypervisor.Spec
	facts  facts
	place  *place
	cgroup *os.File
	// append only
	console, log *os.File
	bell         *net.UnixListener
	proc         *sysexec.Proc
}

// close closes what the VMM has inherited.
func (l *launch) close() {
	if l.place != nil {
		l.place.close()
	}
	for _, f := range []*os.File{l.console, l.log, l.cgroup} {
		if f != nil {
			_ = f.Close()
		}
	}
	if l.bell != nil {
		_ = l.bell.Close()
	}
}

// undo removes all that a failed start has made.
func (l *launch) undo(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), vmproc.UndoTime)
	defer cancel()
	var h hypervisor.Handle
	if l.proc != nil {
		h.PID, h.StartTime = l.proc.PID, l.proc.StartTime
	}
	return l.d.cleanup(ctx, l.spec.Dir, h) // what we started may have started another
}

// openFiles makes the logs and the bell.
func (l *launch) openFiles(ctx context.Context) (err error) {
	dir := l.spec.Dir
	if l.console, err = vmmlog.Create(dir, paths.ConsoleLog, os.O_RDWR); err != nil {
		return err
	}
	if l.log, err = vmmlog.Create(dir, paths.VMMLog, os.O_RDWR); err != nil {
		return err
	}
	// Firecracker opens these by name, in its own directory, and before 1.14 does not
	// make them.
	metrics, err := vmmlog.Create(l.place.dir, paths.MetricsFile, os.O_WRONLY)
	if err != nil {
		return err
	}
	defer metrics.Close()
	if os.Geteuid() == 0 {
		if err := errors.Join(l.log.Chown(l.spec.UID, l.spec.GID), metrics.Chown(l.spec.UID, l.spec.GID)); err != nil {
			return err
		}
	}
	if err := os.Link(filepath.Join(dir, paths.VMMLog), filepath.Join(l.place.dir, paths.VMMLog)); err != nil {
		return err
	}
	if l.bell, err = listenBell(l.spec, l.place.dir); err != nil {
		return err
	}
	if l.cgroup, err = openCgroup(dir); err != nil {
		l.d.log.DebugContext(ctx, "the VMM gets no control group of its own", logkey.Dir, dir, logkey.Err, err)
	}
	return nil
}

// run starts the process with the least it needs.
func (l *launch) run() error {
	program, args := l.place.arguments(l.spec, l.facts)
	d := sysexec.Detached{
		Path: program, Args: args, Dir: l.place.dir, Env: []string{marker(l.spec.Dir)},
		Stdout: l.console, Stderr: l.log, ExtraFiles: l.place.files, Cgroup: l.cgroup,
	}
	if os.Geteuid() == 0 && !l.place.jailed && (l.spec.UID != 0 || l.spec.GID != 0) {
		d.Credential = &syscall.Credential{Uid: uint32(l.spec.UID), Gid: uint32(l.spec.GID), Groups: accel.Groups()}
	}
	proc, err := fence.Start(d, l.spec.LinkUp)
	if err != nil && d.Cgroup != nil {
		// Root of a container may be unable to; the rest still holds.
		d.Cgroup = nil
		proc, err = fence.Start(d, l.spec.LinkUp)
	}
	if err != nil {
		return err
	}
	l.proc = proc
	// A container's root may not.
	_ = unix.Prlimit(proc.PID, unix.RLIMIT_CORE, &unix.Rlimit{}, nil)
	return nil
}

// call is one call of the API.
type call struct {
	path string
	body any
}

// configuration lists the calls that make the machine. Devices get their places in
// the order of the calls: a snapshot restores only into the same, so the order is
// never to change for a machine type once VMs of it exist.
func configuration(s hypervisor.Spec, p *place) ([]call, error) {
	kernel, err := p.name(s.Vmlinux, true)
	if err != nil {
		return nil, err
	}
	boot := fcapi.Boot{Kernel: kernel, Args: Cmdline(s.Disks, s.Cmdline)}
	if s.Initramfs != "" {
		if boot.Initrd, err = p.name(s.Initramfs, true); err != nil {
			return nil, err
		}
	}
	calls := []call{
		{fcapi.PathMetrics, fcapi.Metrics{Path: paths.MetricsFile}},
		{fcapi.PathMachine, fcapi.Machine{CPUs: s.CPUs, MemoryMiB: s.MemoryMiB}},
		{fcapi.PathBoot, boot},
	}
	for i, disk := range s.Disks {
		path, err := p.name(disk.Path, disk.ReadOnly)
		if err != nil {
			return nil, err
		}
		id := fmt.Sprintf("disk%d", i)
		calls = append(calls, call{fcapi.PathDrives + id, fcapi.Drive{
			ID: id, Path: path, ReadOnly: disk.ReadOnly, Cache: fcapi.Writeback, Limiter: limiter(disk.Limit),
		}})
	}
	if s.LinkUp {
		calls = append(calls, call{fcapi.PathNets + "eth0", fcapi.Net{ID: "eth0", Tap: s.Tap, MAC: s.MAC}})
	}
	return append(calls,
		call{fcapi.PathBalloon, fcapi.Balloon{DeflateOnOOM: true, StatsSeconds: statsSeconds}},
		call{fcapi.PathVsock, fcapi.Vsock{CID: guestCID, Path: paths.AgentSocket}},
		call{fcapi.PathEntropy, struct{}{}},
	), nil
}

func limiter(l hypervisor.DiskLimit) *fcapi.RateLimiter {
	bucket := func(perSecond int64) *fcapi.TokenBucket {
		if perSecond == 0 {
			return nil
		}
		return &fcapi.TokenBucket{Size: perSecond, RefillMillis: 1000}
	}
	if l == (hypervisor.DiskLimit{}) {
		return nil
	}
	return &fcapi.RateLimiter{Bandwidth: bucket(l.BytesPerSecond), Ops: bucket(l.OpsPerSecond)}
}

// bringUp makes the machine and lets its CPUs run.
func (l *launch) bringUp(ctx context.Context, socket *socketWatch, calls []call) error {
	up, cancel := vmproc.While(ctx, l.proc)
	defer cancel()
	err := socket.wait(up)
	if err == nil {
		err = l.configure(up, calls)
	}
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return errdefs.Wrap(context.Cause(ctx), "start Firecracker")
	}
	var fault *fcapi.Fault
	switch {
	case errors.As(err, &fault):
		return explain(fault.Message, l.facts)
	case !hungUp(err):
		return launchError(err)
	}
	// It is about to end; what it says comes before that.
	select {
	case <-l.proc.Done():
		return l.endedEarly()
	case <-ctx.Done():
		return errdefs.Wrap(context.Cause(ctx), "start Firecracker")
	}
}

func (l *launch) configure(ctx context.Context, calls []call) error {
	api := fcapi.New(dialer(l.place.dir, l.proc.PID))
	defer api.Close()
	for _, c := range append(calls, call{fcapi.PathActions, fcapi.Action{Type: fcapi.ActionStart}}) {
		if err := api.Put(ctx, c.path, c.body); err != nil {
			return err
		}
	}
	return nil
}

// dialer connects to the API socket in a place, of process pid and of no other: the VMM's
// user owns the place.
func dialer(place string, pid int) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		return dirsock.DialPID(ctx, place, paths.APISocket, pid)
	}
}

// endedEarly explains a Firecracker, or a jailer, that ended before its CPUs ran.
func (l *launch) endedEarly() error {
	text := vmmlog.Last(l.log, 4, strip)
	if text == "" {
		text = vmmlog.Last(l.console, 4, strip)
	}
	if text == "" {
		text = l.proc.Exit().String()
	}
	return explain(text, l.facts)
}

func openLog(dir string) (*os.File, error) {
	return vmmlog.Log{Dir: dir, Name: paths.VMMLog, Links: 2}.Open()
}

// strip removes "2026-01-02T03:04:05.678901234 [vm:main] " from a line of the log.
func strip(line string) string {
	if len(line) > 20 && line[10] == 'T' {
		if _, text, ok := strings.Cut(line, "] "); ok {
			return text
		}
	}
	return line
}
