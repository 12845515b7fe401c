package qemuproc

import (
	"context"
	"errors"
	"net"

	"banger/internal/daemon/qemuproc/qmp"
	"banger/internal/errdefs"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/dirsock"
	"banger/internal/hypervisor/vmproc"
	"banger/internal/paths"
	"banger/internal/sysexec"
)

// served finds QEMUs: one greets who connects to its monitor.
var served = vmproc.Served{Driver: Name, Name: "QEMU", Greet: func(ctx context.Context, conn *net.UnixConn) error {
	client, err := qmp.New(ctx, conn, nil)
	if err == nil {
		_ = client.Close()
	}
	return err
}}

// Attach implements hypervisor.Driver.
func (d *Driver) Attach(ctx context.Context, spec hypervisor.Spec, h hypervisor.Handle) (hypervisor.Machine, error) {
	return vmproc.Attach("QEMU", h, func(proc *sysexec.Proc) (hypervisor.Machine, error) {
		return d.attach(ctx, spec, proc, h)
	})
}

func (d *Driver) attach(ctx context.Context, spec hypervisor.Spec, proc *sysexec.Proc, h hypervisor.Handle) (*machine, error) {
	greet, cancel := context.WithTimeout(ctx, vmproc.AnswerTime)
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
			WithHint(vmproc.StuckHint)
	}
	log, err := openLog(spec.Dir)
	if err != nil {
		_ = client.Close()
		return nil, errdefs.Wrap(err, "open the VMM's log")
	}
	return d.newMachine(spec, proc, h, client, log, heard), nil
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

// connect opens the monitor of dir, of process pid and of no other.
func (d *Driver) connect(ctx context.Context, dir string, pid int, heard *heard) (*qmp.Client, error) {
	conn, err := dirsock.DialPID(ctx, dir, paths.QMPSocket, pid)
	if err != nil {
		return nil, err
	}
	return qmp.New(ctx, conn, heard.event)
}

// Find implements hypervisor.Driver.
func (d *Driver) Find(ctx context.Context, dir string) (hypervisor.Handle, error) {
	return served.Find(ctx, dir)
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
	return served.Cleanup(ctx, dir, h)
}
