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
	return vmproc.Attach("Firecracker", h, func(proc *sysexec.Proc) (hypervisor.Machine, error) {
		return d.attach(ctx, spec, proc, h)
	})
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
	pid, start, err := d.running(ctx, dir)
	if err == nil && pid == 0 {
		err = errdefs.NotFound("nobody works in %s", dir)
	}
	if err != nil {
		return hypervisor.Handle{}, errdefs.Wrap(err, "find Firecracker by its directory")
	}
	return hypervisor.Handle{Driver: Name, PID: pid, StartTime: start}, nil
}

// Cleanup implements hypervisor.Driver.
func (d *Driver) Cleanup(ctx context.Context, dir string, h hypervisor.Handle) error {
	return errdefs.Wrap(d.cleanup(ctx, dir, h), "clean up after Firecracker")
}

func (d *Driver) cleanup(ctx context.Context, dir string, h hypervisor.Handle) error {
	for pid, start := h.PID, h.StartTime; ; {
		err := vmproc.End(ctx, pid, start)
		if err == nil {
			pid, start, err = d.running(ctx, dir)
		}
		if err != nil {
			return err
		}
		if pid == 0 {
			break
		}
	}
	return errors.Join(remove(dir), dirsock.Remove(dir, bellMaking), removeCgroup(ctx, dir))
}

// running returns the process that works for the VM in dir, and when it started; zero
// when there is none. Who listens on the API socket and works for the VM is taken at
// once. Else all processes are looked at: one may not have come to make the socket, and
// the place is the VMM's, which may close or replace what is there and work on.
func (d *Driver) running(ctx context.Context, dir string) (pid int, start uint64, err error) {
	place := placeOf(dir)
	if place == "" {
		return 0, 0, nil
	}
	works := func(pid int) bool { return worksFor(pid, dir, place) }
	look, cancel := context.WithTimeout(ctx, vmproc.AnswerTime)
	defer cancel()
	conn, err := dirsock.Dial(look, place, paths.APISocket)
	if err == nil {
		defer conn.Close()
		if pid, err = dirsock.PeerPID(conn); err == nil {
			if start, ok := sysexec.Identify(pid, works); ok {
				return pid, start, nil
			}
		}
	}
	if ctx.Err() != nil {
		return 0, 0, context.Cause(ctx)
	}
	return sysexec.Search(works)
}

// marker is what the environment of a VMM says: whose it is.
func marker(dir string) string { return "BANGER_VMM=" + dir }

// worksFor reports whether process pid works for the VM in dir: it was started with that
// VM's marker, as a VMM or a jailer is, or works in the place. A VMM may overwrite its
// environment, but can neither leave a jail nor, for its system call filter, go elsewhere.
func worksFor(pid int, dir, place string) bool {
	proc := "/proc/" + strconv.Itoa(pid)
	if env, err := os.ReadFile(proc + "/environ"); err == nil && bytes.HasPrefix(env, []byte(marker(dir)+"\x00")) {
		return true
	}
	var root, want unix.Stat_t
	return sysexec.WorksIn(pid, place) || unix.Stat(proc+"/root", &root) == nil && unix.Stat(place, &want) == nil &&
		root.Dev == want.Dev && root.Ino == want.Ino
}
