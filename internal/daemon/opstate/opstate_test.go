package opstate_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"banger/internal/api"
	"banger/internal/api/bangerv1"
	"banger/internal/api/bangerv1/bangerv1connect"
	"banger/internal/daemon/opstate"
	"banger/internal/errdefs"
	"banger/internal/logkey"
	"banger/internal/model"
)

func serve(t *testing.T) (*opstate.Service, bangerv1connect.OperationServiceClient) {
	t.Helper()
	s := opstate.New(slog.New(slog.DiscardHandler))
	_, handler := bangerv1connect.NewOperationServiceHandler(s)
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	t.Cleanup(func() { _ = s.Close(context.Background()) })
	return s, bangerv1connect.NewOperationServiceClient(server.Client(), server.URL)
}

// watch follows an operation to its end and returns its last record.
func watch(t *testing.T, c bangerv1connect.OperationServiceClient, id string) *bangerv1.Operation {
	t.Helper()
	stream, err := c.Watch(context.Background(), connect.NewRequest(&bangerv1.OperationRef{Id: id}))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stream.Close() }()
	var last *bangerv1.Operation
	for stream.Receive() {
		last = stream.Msg()
	}
	if err := stream.Err(); err != nil {
		t.Fatal(err)
	}
	return last
}

func TestSucceedsWithStages(t *testing.T) {
	s, c := serve(t)
	op := s.Begin("test", "x", func(_ context.Context, p model.Progress) (string, error) {
		p.Stage("one")
		p.Count(3, 7, "bytes")
		p.Stage("two")
		p.Detail("nearly")
		return "result", nil
	})
	end := watch(t, c, op.Id)
	if end.State != opstate.Succeeded || end.Result != "result" || end.EndedAt == nil {
		t.Errorf("ended as %v", end)
	}
	if len(end.Stages) != 2 || end.Stages[0].Done != 3 || end.Stages[1].Detail != "nearly" || end.Stages[1].EndedAt == nil {
		t.Errorf("stages %v", end.Stages)
	}
	if again := watch(t, c, op.Id); again.Result != "result" {
		t.Errorf("joined again: %v", again)
	}
}

// What is shown to a user leads to every line that the work logged.
func TestLogLinesCarryTheOperation(t *testing.T) {
	var out bytes.Buffer
	s := opstate.New(slog.New(logkey.Handler(slog.NewTextHandler(&out, nil))))
	op := s.Begin("test", "x", func(ctx context.Context, _ model.Progress) (string, error) {
		slog.New(logkey.Handler(slog.NewTextHandler(&out, nil))).InfoContext(ctx, "at work")
		return "", nil
	})
	if _, err := s.Await(context.Background(), op.Id); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(out.String(), "op="+op.Id); n != 2 || strings.Count(out.String(), "\n") != 2 {
		t.Errorf("%d lines name operation %s:\n%s", n, op.Id, out.String())
	}
}

func TestErrorsTravel(t *testing.T) {
	s, c := serve(t)
	op := s.Begin("test", "x", func(context.Context, model.Progress) (string, error) {
		return "", fmt.Errorf("outer: %w", errdefs.NotFound("no image").WithHint("pull it"))
	})
	end := watch(t, c, op.Id)
	err := api.FromDetail(end.Error)
	if end.State != opstate.Failed || !errors.Is(err, errdefs.ErrNotFound) || errdefs.HintOf(err) != "pull it" || errdefs.OpOf(err) != op.Id {
		t.Errorf("ended as %v", end)
	}
}

func TestCancelEndsTheWork(t *testing.T) {
	s, c := serve(t)
	op := s.Begin("test", "x", func(ctx context.Context, _ model.Progress) (string, error) {
		<-ctx.Done()
		return "", fmt.Errorf("interrupted: %w", context.Cause(ctx))
	})
	if _, err := c.Cancel(context.Background(), connect.NewRequest(&bangerv1.OperationRef{Id: op.Id})); err != nil {
		t.Fatal(err)
	}
	if end := watch(t, c, op.Id); end.State != opstate.Canceled {
		t.Errorf("ended as %v", end)
	}
}

func TestPanicIsAFailure(t *testing.T) {
	s, c := serve(t)
	op := s.Begin("test", "x", func(context.Context, model.Progress) (string, error) { panic("oops") })
	if end := watch(t, c, op.Id); end.State != opstate.Failed || !strings.Contains(end.Error.Message, "oops") {
		t.Errorf("ended as %v", end)
	}
}

func TestCloseCancelsAndWaits(t *testing.T) {
	s, _ := serve(t)
	undone := false
	s.Begin("test", "x", func(ctx context.Context, _ model.Progress) (string, error) {
		<-ctx.Done()
		undone = true
		return "", ctx.Err()
	})
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := s.Close(ctx); err != nil || !undone {
		t.Errorf("close: %v, undone %v", err, undone)
	}
	if op := s.Begin("test", "x", func(context.Context, model.Progress) (string, error) { return "", nil }); op.State != opstate.Canceled {
		t.Errorf("begin after close: %v", op)
	}
}

type op struct {
	id    string
	ended bool
}

func (o *op) OpID() string { return o.id }
func (o *op) Ended() bool  { return o.ended }

func TestRegistryForgetsEndedOnly(t *testing.T) {
	r := opstate.Registry[*op]{Keep: 2}
	for i := range 6 {
		r.Insert(&op{id: fmt.Sprint(i), ended: i != 0})
	}
	var ids []string
	for _, o := range r.List() {
		ids = append(ids, o.id)
	}
	if got := strings.Join(ids, ","); got != "0,4,5" {
		t.Errorf("kept %s", got)
	}
	if _, ok := r.Get("1"); ok {
		t.Error("a forgotten operation is found")
	}
}

// nosy is an operation that looks into its registry whenever it is asked something.
type nosy struct{ r *opstate.Registry[nosy] }

func (nosy) OpID() string { return "nosy" }

func (n nosy) Ended() bool {
	n.r.List()
	return true
}

// Operations have locks of their own: nothing is asked of them under the registry's.
func TestOperationsAreAskedUnlocked(t *testing.T) {
	r := &opstate.Registry[nosy]{}
	done := make(chan struct{})
	go func() { r.Insert(nosy{r}); close(done) }()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("the registry asks with its lock held")
	}
}
