package qemuproc

import (
	"context"
	"encoding/json"
	"log/slog"

	"banger/internal/daemon/qemuproc/qmp"
	"banger/internal/hypervisor/vmproc"
	"banger/internal/logkey"
)

// heard is what one QEMU has told of itself, over whichever connection.
type heard struct {
	log   *slog.Logger
	stall vmproc.Stall
	moved chan struct{} // holds a token when the guest was stopped or resumed
}

func (d *Driver) newHeard(vm string) *heard {
	return &heard{log: d.log.With(logkey.VM, vm), moved: make(chan struct{}, 1)}
}

// event takes what QEMU says unasked. The end of the process is noticed by its
// pidfd, so nothing depends on an event that may be lost with the process. Why the
// guest was stopped is asked for, not read off events: that of a failed write may
// come late, when the guest runs again, because QEMU limits how often it is sent.
func (e *heard) event(ev qmp.Event) {
	switch ev.Name {
	case "RTC_CHANGE", "NETDEV_STREAM_CONNECTED", "NETDEV_STREAM_DISCONNECTED", "VSERPORT_CHANGE":
		return // follow from what we or the guest do all the time
	case "STOP", "RESUME":
		e.poke()
	}
	e.log.Debug("qemu event", logkey.Event, ev.Name, logkey.Data, json.RawMessage(ev.Data))
}

func (e *heard) poke() {
	select {
	case e.moved <- struct{}{}:
	default: // somebody is going to ask anyway
	}
}

// runState is QEMU's answer to query-status.
type runState struct{ Status string }

// stalled: with werror=enospc and rerror=report, lack of space is the one error
// that stops a guest.
func (s runState) stalled() bool { return s.Status == "io-error" }

// followStall keeps what Stalled says true.
func (m *machine) followStall() {
	for {
		select {
		case <-m.Life().Done():
			return
		case <-m.heard.moved:
		}
		ctx, cancel := context.WithTimeout(m.Life(), vmproc.AnswerTime)
		err := m.askStalled(ctx)
		cancel()
		if err != nil && m.Life().Err() == nil {
			m.heard.log.Warn("ask whether the guest stands still", logkey.Err, err)
		}
	}
}

func (m *machine) askStalled(ctx context.Context) error {
	select {
	case <-m.turn:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { m.turn <- struct{}{} }()
	var s runState
	if err := m.execute(ctx, "ask for the state", "query-status", nil, &s); err != nil {
		return err
	}
	m.heard.stall.Set(s.stalled())
	return nil
}

// Continue implements hypervisor.Machine.
func (m *machine) Continue(ctx context.Context) error {
	if since, _ := m.Stalled(); since.IsZero() {
		return nil
	}
	if err := m.execute(ctx, "continue", "cont", nil, nil); err != nil {
		return err
	}
	return m.askStalled(ctx)
}
