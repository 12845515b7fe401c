package qemuproc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"banger/internal/daemon/qemuproc/qmp"
	"banger/internal/errdefs"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/dirsock"
	"banger/internal/paths"
	"banger/internal/sysexec"
)

// greetTime bounds how long a live QEMU may take to greet. Its main loop answers
// at once unless the process is stopped or the host is drowning.
const greetTime = 10 * time.Second

// Attach implements hypervisor.Driver.
func (d *Driver) Attach(ctx context.Context, spec hypervisor.Spec, h hypervisor.Handle) (hypervisor.Machine, error) {
	proc, err := sysexec.Find(h.PID, h.StartTime)
	if errors.Is(err, sysexec.ErrGone) {
		return nil, errdefs.NotFound("find QEMU (pid %d): %w", h.PID, err)
	}
	if err != nil {
		return nil, errdefs.Unavailable("find QEMU (pid %d): %w", h.PID, err)
	}
	m, err := d.attach(ctx, spec, proc, h)
	if err != nil {
		_ = proc.Release()
		return nil, err
	}
	return m, nil
}

func (d *Driver) attach(ctx context.Context, spec hypervisor.Spec, proc *sysexec.Proc, h hypervisor.Handle) (*machine, error) {
	greet, cancel := context.WithTimeout(ctx, greetTime)
	defer cancel()
	heard := d.newHeard(spec.VMID)
	client, err := d.connect(greet, spec.Dir, h.PID, heard)
	if err == nil {
		err = heard.started(greet, client)
		if err == nil && h.Version == "" {
			err = describe(greet, client, &h)
		}
		if err != nil {
			_ = client.Close()
		}
	}
	if err != nil {
		select {
		case <-proc.Done():
			return nil, errdefs.NotFound("attach to QEMU (pid %d): it has just ended", h.PID)
		default:
		}
		if errors.Is(err, errdefs.ErrNotFound) {
			return nil, err
		}
		return nil, errdefs.Unavailable("attach to QEMU (pid %d): %w", h.PID, err).
			WithHint("the process runs but does not answer; end the VM: banger vm kill VM")
	}
	log, err := openLog(spec.Dir)
	if err != nil {
		_ = client.Close()
		return nil, errdefs.Wrap(err, "open the VMM's log")
	}
	return d.newMachine(spec.Dir, proc, h, client, log, heard), nil
}

// started refuses a QEMU whose launch was cut off before its CPUs ran.
func (e *heard) started(ctx context.Context, c *qmp.Client) error {
	var s runState
	if err := c.Execute(ctx, "query-status", nil, &s); err != nil {
		return err
	}
	if s.Status == "prelaunch" {
		return errdefs.NotFound("attach to QEMU: its launch never finished")
	}
	e.stall.Set(s.stalled())
	return nil
}

// connect opens the monitor of dir and makes sure that process pid answers there.
func (d *Driver) connect(ctx context.Context, dir string, pid int, heard *heard) (*qmp.Client, error) {
	conn, err := dirsock.Dial(ctx, dir, paths.QMPSocket)
	if err != nil {
		return nil, err
	}
	peer, err := dirsock.PeerPID(conn)
	if err == nil && peer != pid {
		err = fmt.Errorf("process %d answers on %s, not %d", peer, paths.QMPSocket, pid)
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return qmp.New(ctx, conn, heard.event)
}

// Find implements hypervisor.Driver.
func (d *Driver) Find(ctx context.Context, dir string) (hypervisor.Handle, error) {
	greet, cancel := context.WithTimeout(ctx, greetTime)
	defer cancel()
	pid, start, err := dirsock.Find(greet, dir, paths.QMPSocket, func(ctx context.Context, conn *net.UnixConn) error {
		client, err := qmp.New(ctx, conn, nil)
		if err == nil {
			_ = client.Close()
		}
		return err
	})
	if err != nil {
		return hypervisor.Handle{}, errdefs.Wrap(err, "find QEMU by its socket")
	}
	return hypervisor.Handle{Driver: Name, PID: pid, StartTime: start}, nil
}

// describe adds to the handle of a QEMU that was found what only itself can tell.
func describe(ctx context.Context, c *qmp.Client, h *hypervisor.Handle) error {
	var kvm struct{ Enabled bool }
	if err := c.Execute(ctx, "query-kvm", nil, &kvm); err != nil {
		return err
	}
	h.Version, h.Accel = c.Version().String(), hypervisor.AccelTCG
	if kvm.Enabled {
		h.Accel = hypervisor.AccelKVM
	}
	return nil
}

// Cleanup implements hypervisor.Driver.
func (d *Driver) Cleanup(ctx context.Context, dir string, h hypervisor.Handle) error {
	if h.PID > 0 {
		if err := killFound(ctx, h.PID, h.StartTime); err != nil {
			return errdefs.Wrap(err, "clean up after QEMU")
		}
	}
	switch found, err := d.Find(ctx, dir); {
	case err == nil:
		if err := killFound(ctx, found.PID, found.StartTime); err != nil {
			return errdefs.Wrap(err, "clean up after QEMU")
		}
	case !errors.Is(err, errdefs.ErrNotFound):
		return errdefs.Wrap(err, "clean up after QEMU")
	}
	if err := removeSockets(dir); err != nil {
		return errdefs.Wrap(err, "clean up after QEMU")
	}
	return nil
}

func killFound(ctx context.Context, pid int, start uint64) error {
	proc, err := sysexec.Find(pid, start)
	if errors.Is(err, sysexec.ErrGone) {
		return nil
	}
	if err != nil {
		return err
	}
	defer proc.Release()
	return proc.Kill(ctx)
}
