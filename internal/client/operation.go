package client

import (
	"context"

	"connectrpc.com/connect"

	"banger/internal/api"
	"banger/internal/api/bangerv1"
	"banger/internal/errdefs"
)

// Operation states as they travel.
const (
	opSucceeded = "succeeded"
	opCanceled  = "canceled"
	opRunning   = "running"
)

// WaitOperation follows op to its end and returns how it ended: the operation
// itself, and an error unless it succeeded. onUpdate, which may be nil, is called
// with every change, the last one included. When ctx ends the wait ends, and the
// operation goes on.
func (c *Client) WaitOperation(ctx context.Context, op *bangerv1.Operation, onUpdate func(*bangerv1.Operation)) (*bangerv1.Operation, error) {
	if op.GetState() != opRunning {
		if onUpdate != nil {
			onUpdate(op)
		}
		return op, opError(op)
	}
	stream, err := c.operations.Watch(ctx, connect.NewRequest(&bangerv1.OperationRef{Id: op.GetId()}))
	if err != nil {
		return op, withOp(mapErr(ctx, err), op)
	}
	defer func() { _ = stream.Close() }()
	for stream.Receive() {
		op = stream.Msg()
		if onUpdate != nil {
			onUpdate(op)
		}
		if op.GetState() != opRunning {
			return op, opError(op)
		}
	}
	if err := mapErr(ctx, stream.Err()); err != nil {
		return op, withOp(err, op)
	}
	return op, withOp(errdefs.Unavailable("lost the connection to the daemon during %s: %w", op.GetKind(), errWatchEnded).
		WithHint("banger daemon logs says why"), op)
}

// opError is the error an ended operation stands for.
func opError(op *bangerv1.Operation) error {
	switch op.GetState() {
	case opSucceeded:
		return nil
	case opCanceled:
		if op.GetError() == nil {
			return withOp(errdefs.New(errdefs.ClassCanceled, "%s of %s was canceled", op.GetKind(), op.GetSubject()), op)
		}
	}
	if err := api.FromDetail(op.GetError()); err != nil {
		return withOp(err, op)
	}
	return withOp(errdefs.Internal("%s of %s ended as %q and said nothing", op.GetKind(), op.GetSubject(), op.GetState()), op)
}

// withOp notes which operation an error belongs to.
func withOp(err error, op *bangerv1.Operation) error {
	if err == nil || errdefs.OpOf(err) != "" {
		return err
	}
	return &errdefs.Error{
		Class: errdefs.ClassOf(err), Msg: err.Error(), Hint: errdefs.HintOf(err), Op: op.GetId(), Err: err,
	}
}
