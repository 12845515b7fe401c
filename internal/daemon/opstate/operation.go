package opstate

import (
	"context"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"banger/internal/api"
	"banger/internal/api/bangerv1"
	"banger/internal/errdefs"
)

// The states of an operation.
const (
	Running   = "running"
	Succeeded = "succeeded"
	Failed    = "failed"
	Canceled  = "canceled"
)

// maxStages bounds what one operation remembers.
const maxStages = 64

// Operation is one long piece of work. Its record is the wire message itself.
type Operation struct {
	cancel context.CancelCauseFunc

	mu      sync.Mutex // a leaf; guards the fields below
	rec     *bangerv1.Operation
	changed chan struct{} // closed and replaced at every change
}

func newOperation(id, kind, subject string, cancel context.CancelCauseFunc) *Operation {
	return &Operation{
		cancel:  cancel,
		changed: make(chan struct{}),
		rec: &bangerv1.Operation{
			Id: id, Kind: kind, Subject: subject, State: Running, StartedAt: timestamppb.Now(),
		},
	}
}

// OpID is the operation's id.
func (o *Operation) OpID() string { return o.rec.Id }

// Ended reports whether the operation is over.
func (o *Operation) Ended() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.rec.State != Running
}

// Snapshot returns a copy of the record and a channel that closes at the next change.
func (o *Operation) Snapshot() (*bangerv1.Operation, <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return proto.CloneOf(o.rec), o.changed
}

func (o *Operation) update(fn func(rec *bangerv1.Operation)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	fn(o.rec)
	close(o.changed)
	o.changed = make(chan struct{})
}

// Stage begins a named stage and ends the one before.
func (o *Operation) Stage(name string) {
	o.update(func(rec *bangerv1.Operation) {
		now := timestamppb.Now()
		if n := len(rec.Stages); n > 0 && rec.Stages[n-1].EndedAt == nil {
			rec.Stages[n-1].EndedAt = now
		}
		if len(rec.Stages) < maxStages {
			rec.Stages = append(rec.Stages, &bangerv1.Stage{Name: name, StartedAt: now})
		}
	})
}

// Detail sets the newest line of progress of the current stage.
func (o *Operation) Detail(text string) {
	o.current(func(s *bangerv1.Stage) { s.Detail = text })
}

// Count sets how far the current stage is; total 0 means unknown.
func (o *Operation) Count(done, total int64, unit string) {
	o.current(func(s *bangerv1.Stage) { s.Done, s.Total, s.Unit = done, total, unit })
}

func (o *Operation) current(fn func(*bangerv1.Stage)) {
	o.update(func(rec *bangerv1.Operation) {
		if n := len(rec.Stages); n > 0 {
			fn(rec.Stages[n-1])
		}
	})
}

func (o *Operation) end(result string, err error) {
	o.update(func(rec *bangerv1.Operation) {
		now := timestamppb.New(time.Now())
		if n := len(rec.Stages); n > 0 && rec.Stages[n-1].EndedAt == nil {
			rec.Stages[n-1].EndedAt = now
		}
		rec.EndedAt = now
		switch {
		case err == nil:
			rec.State, rec.Result = Succeeded, result
			return
		case errdefs.ClassOf(err) == errdefs.ClassCanceled:
			rec.State = Canceled
		default:
			rec.State = Failed
		}
		rec.Error = api.Detail(err)
		rec.Error.OperationId = rec.Id
	})
}
