package opstate

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"connectrpc.com/connect"

	"banger/internal/api"
	"banger/internal/api/bangerv1"
	"banger/internal/errdefs"
	"banger/internal/logkey"
	"banger/internal/model"
)

// work is the body of an operation; it returns the operation's result.
type work = func(ctx context.Context, p model.Progress) (string, error)

// Service runs operations and serves OperationService.
type Service struct {
	log    *slog.Logger
	ctx    context.Context // ends at Close
	cancel context.CancelCauseFunc
	ops    Registry[*Operation]

	mu     sync.Mutex // a leaf; guards closed against a Begin that races with Close
	closed bool
	wg     sync.WaitGroup
}

// New returns a service whose operations run until Close.
func New(log *slog.Logger) *Service {
	ctx, cancel := context.WithCancelCause(context.Background())
	return &Service{log: log, ctx: ctx, cancel: cancel}
}

// errClosing is why operations end when the daemon does.
var errClosing = errdefs.New(errdefs.ClassCanceled, "the daemon is stopping")

// Begin starts fn in the background and returns its record at once.
func (s *Service) Begin(kind, subject string, fn func(ctx context.Context, p model.Progress) (string, error)) *bangerv1.Operation {
	id := "op-" + model.NewID()
	ctx, cancel := context.WithCancelCause(logkey.WithOp(s.ctx, id))
	op := newOperation(id, kind, subject, cancel)
	s.ops.Insert(op)
	rec, _ := op.Snapshot()

	if !s.enter() {
		op.end("", errClosing)
		cancel(errClosing)
		rec, _ = op.Snapshot()
		return rec
	}
	go func() {
		defer s.wg.Done()
		defer cancel(nil)
		began := time.Now()
		result, err := s.guard(ctx, op, fn)
		if err != nil && ctx.Err() != nil && errdefs.ClassOf(err) != errdefs.ClassCanceled {
			// A cancelled step may report its cancellation in its own words.
			err = &errdefs.Error{Class: errdefs.ClassCanceled, Msg: err.Error(), Err: err}
		}
		op.end(result, err)
		s.log.InfoContext(ctx, "operation ended", logkey.Kind, kind, logkey.Subject, subject,
			logkey.Ms, time.Since(began).Milliseconds(), logkey.Err, err)
	}()
	return rec
}

// enter counts one more operation that runs, unless Close waits for them already.
func (s *Service) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.wg.Add(1)
	}
	return !s.closed
}

// guard turns a panic of one operation into its failure.
func (s *Service) guard(ctx context.Context, op *Operation, fn work) (result string, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = errdefs.Internal("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return fn(ctx, op)
}

// Close cancels what runs and waits for it to undo, until ctx ends.
func (s *Service) Close(ctx context.Context) error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel(errClosing)
	done := make(chan struct{})
	go func() { s.wg.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for operations: %w", context.Cause(ctx))
	}
}

func (s *Service) find(id string) (*Operation, error) {
	op, ok := s.ops.Get(id)
	if !ok {
		return nil, api.ToConnect(errdefs.NotFound("no operation %q", id).
			WithHint("operations are remembered while the daemon runs"))
	}
	return op, nil
}

// List implements OperationService.
func (s *Service) List(context.Context, *connect.Request[bangerv1.ListRequest]) (*connect.Response[bangerv1.OperationList], error) {
	out := &bangerv1.OperationList{}
	for _, op := range s.ops.List() {
		rec, _ := op.Snapshot()
		out.Operations = append(out.Operations, rec)
	}
	return connect.NewResponse(out), nil
}

// Busy says what runs, in words for people.
func (s *Service) Busy() []string {
	var words []string
	for _, op := range s.ops.List() {
		if !op.Ended() {
			rec, _ := op.Snapshot()
			words = append(words, rec.Kind+" of "+rec.Subject)
		}
	}
	return words
}

// Get implements OperationService.
func (s *Service) Get(_ context.Context, req *connect.Request[bangerv1.OperationRef]) (*connect.Response[bangerv1.Operation], error) {
	op, err := s.find(req.Msg.Id)
	if err != nil {
		return nil, err
	}
	rec, _ := op.Snapshot()
	return connect.NewResponse(rec), nil
}

// Await waits for the end of an operation and returns its last record.
func (s *Service) Await(ctx context.Context, id string) (*bangerv1.Operation, error) {
	op, err := s.find(id)
	if err != nil {
		return nil, err
	}
	for {
		rec, changed := op.Snapshot()
		if rec.State != Running {
			return rec, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// Watch implements OperationService. Changes that come faster than the client
// reads are merged into the next message.
func (s *Service) Watch(ctx context.Context, req *connect.Request[bangerv1.OperationRef], stream *connect.ServerStream[bangerv1.Operation]) error {
	op, err := s.find(req.Msg.Id)
	if err != nil {
		return err
	}
	for {
		rec, changed := op.Snapshot()
		if err := stream.Send(rec); err != nil {
			return err
		}
		if rec.State != Running {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Cancel implements OperationService.
func (s *Service) Cancel(_ context.Context, req *connect.Request[bangerv1.OperationRef]) (*connect.Response[bangerv1.Operation], error) {
	op, err := s.find(req.Msg.Id)
	if err != nil {
		return nil, err
	}
	op.cancel(errdefs.New(errdefs.ClassCanceled, "canceled by request"))
	rec, _ := op.Snapshot()
	return connect.NewResponse(rec), nil
}
