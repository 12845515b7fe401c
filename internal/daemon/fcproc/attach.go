package fcproc

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"banger/internal/daemon/fcproc/fcapi"
	"banger/internal/errdefs"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/dirsock"
	"banger/internal/hypervisor/vmproc"
	"banger/internal/logkey"
	"banger/internal/paths"
	"banger/internal/sysexec"
)

// Attach implements hypervisor.Driver.
func (d *Driver) Attach(ctx context.Context, spec hypervisor.Spec, h hypervisor.Handle) (hypervisor.Machine, error) {
	proc, err := vmproc.Find("Firecracker", h)
	if err != nil {
		return nil, err
	}
	m, err := d.attach(ctx, spec, proc, h)
	if err != nil {
		_ = proc.Release()
		return nil, err
	}
	return m, nil
}

func (d *Driver) attach(ctx context.Context, spec hypervisor.Spec, proc *sysexec.Proc, h hypervisor.Handle) (*machine, error) {
	place := placeOf(spec.Dir)
	if place == "" {
		return nil, errdefs.Unavailable("attach to Firecracker (pid %d): it does not work in %s", h.PID, spec.Dir).
			WithHint(vmproc.StuckHint)
	}
	answer, cancel := context.WithTimeout(ctx, vmproc.AnswerTime)
	defer cancel()
	api := fcapi.New(dialer(place, h.PID))
	defer api.Close()
	var i fcapi.Instance
	if err := api.Get(answer, fcapi.PathInstance, &i); err != nil {
		select {
		case <-proc.Done():
			return nil, errdefs.NotFound("attach to Firecracker (pid %d): it has just ended", h.PID)
		default:
		}
		return nil, errdefs.Unavailable("attach to Firecracker (pid %d): %w", h.PID, err).
			WithHint(vmproc.StuckHint)
	}
	if i.State == fcapi.NotStarted {
		return nil, errdefs.NotFound("attach to Firecracker: its launch never finished")
	}
	if h.Version == "" {
		h.Version, h.Accel = i.Version, hypervisor.AccelKVM
	}
	log, err := openLog(spec.Dir)
	if err != nil {
		return nil, errdefs.Wrap(err, "open the VMM's log")
	}
	bell, err := listenBell(spec, place)
	if err != nil {
		d.log.WarnContext(ctx, "an agent that is not ready yet is tried now and then", logkey.Dir, spec.Dir, logkey.Err, err)
	}
	return d.newMachine(spec, place, proc, h, log, bell), nil
}

// Find implements hypervisor.Driver.
func (d *Driver) Find(ctx context.Context, dir string) (hypervisor.Handle, error) {
	pid, _, err := listener(ctx, dir, placeOf(dir))
	if err == nil && pid == 0 {
		err = errdefs.NotFound("nobody listens in %s", dir)
	}
	var start uint64
	if err == nil {
		if start, err = sysexec.StartTime(pid); err != nil {
			err = errdefs.NotFound("process %d has just ended", pid)
		}
	}
	if err != nil {
		return hypervisor.Handle{}, errdefs.Wrap(err, "find Firecracker by its socket")
	}
	return hypervisor.Handle{Driver: Name, PID: pid, StartTime: start}, nil
}

// Cleanup implements hypervisor.Driver.
func (d *Driver) Cleanup(ctx context.Context, dir string, h hypervisor.Handle) error {
	return errdefs.Wrap(d.cleanup(ctx, dir, h), "clean up after Firecracker")
}

func (d *Driver) cleanup(ctx context.Context, dir string, h hypervisor.Handle) error {
	if err := vmproc.End(ctx, h.PID, h.StartTime); err != nil {
		return err
	}
	for {
		pid, err := d.running(ctx, dir)
		if err != nil {
			return err
		}
		if pid == 0 {
			break
		}
		// A process of ours stays ours: its marks were made before it could do anything.
		start, err := sysexec.StartTime(pid)
		if err == nil {
			err = vmproc.End(ctx, pid, start)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, sysexec.ErrGone) {
			return err
		}
	}
	return errors.Join(remove(dir), dirsock.Remove(dir, bellMaking), removeCgroup(dir))
}

// running returns the process that works for the VM in dir; zero when there is none.
// The API socket tells, but for one that has not come to make it yet: that is looked
// for among all processes.
func (d *Driver) running(ctx context.Context, dir string) (int, error) {
	place := placeOf(dir)
	pid, sure, err := listener(ctx, dir, place)
	if sure || err != nil {
		return pid, err
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && worksFor(pid, dir, place) {
			return pid, nil
		}
	}
	return 0, nil
}

// listener returns the process that listens on the API socket in place and works for
// the VM in dir; zero when there is none. It is sure when no other can work there.
func listener(ctx context.Context, dir, place string) (pid int, sure bool, err error) {
	if place == "" {
		return 0, true, nil
	}
	look, cancel := context.WithTimeout(ctx, vmproc.AnswerTime)
	defer cancel()
	conn, err := dirsock.Dial(look, place, paths.APISocket)
	switch {
	case errors.Is(err, unix.ECONNREFUSED):
		return 0, true, nil // its maker has ended
	case ctx.Err() != nil:
		if conn != nil {
			_ = conn.Close()
		}
		return 0, false, context.Cause(ctx)
	case err != nil:
		return 0, false, nil
	}
	defer conn.Close()
	if pid, err = dirsock.PeerPID(conn); err == nil && worksFor(pid, dir, place) {
		return pid, true, nil
	}
	return 0, false, nil
}

// marker is what the environment of a VMM says: whose it is.
func marker(dir string) string { return "BANGER_VMM=" + dir }

// worksFor reports whether another process pid works for the VM in dir: it was
// started with that VM's marker, as a VMM or a jailer is, or its root is the jail.
func worksFor(pid int, dir, place string) bool {
	if pid <= 0 || pid == os.Getpid() {
		return false
	}
	proc := "/proc/" + strconv.Itoa(pid)
	if env, err := os.ReadFile(proc + "/environ"); err == nil && bytes.HasPrefix(env, []byte(marker(dir)+"\x00")) {
		return true
	}
	var root, want unix.Stat_t
	return unix.Stat(proc+"/root", &root) == nil && unix.Stat(place, &want) == nil &&
		root.Dev == want.Dev && root.Ino == want.Ino
}
