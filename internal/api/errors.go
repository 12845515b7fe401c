package api

import (
	"errors"

	"connectrpc.com/connect"

	"banger/internal/api/bangerv1"
	"banger/internal/errdefs"
)

// codes is the one table between error classes and Connect codes.
var codes = map[errdefs.Class]connect.Code{
	errdefs.ClassInternal:           connect.CodeInternal,
	errdefs.ClassInvalidArgument:    connect.CodeInvalidArgument,
	errdefs.ClassNotFound:           connect.CodeNotFound,
	errdefs.ClassAlreadyExists:      connect.CodeAlreadyExists,
	errdefs.ClassFailedPrecondition: connect.CodeFailedPrecondition,
	errdefs.ClassBusy:               connect.CodeAborted,
	errdefs.ClassUnavailable:        connect.CodeUnavailable,
	errdefs.ClassExhausted:          connect.CodeResourceExhausted,
	errdefs.ClassPermission:         connect.CodePermissionDenied,
	errdefs.ClassCanceled:           connect.CodeCanceled,
	errdefs.ClassTimeout:            connect.CodeDeadlineExceeded,
	errdefs.ClassUnsupported:        connect.CodeUnimplemented,
}

// Detail turns an error into its wire form; nil for nil.
func Detail(err error) *bangerv1.ErrorDetail {
	if err == nil {
		return nil
	}
	return &bangerv1.ErrorDetail{
		Class:       string(errdefs.ClassOf(err)),
		Message:     err.Error(),
		Hint:        errdefs.HintOf(err),
		OperationId: errdefs.OpOf(err),
	}
}

// FromDetail is the reverse of Detail; nil for nil.
func FromDetail(d *bangerv1.ErrorDetail) error {
	if d == nil {
		return nil
	}
	class := errdefs.Class(d.Class)
	if _, ok := codes[class]; !ok {
		class = errdefs.ClassInternal
	}
	return &errdefs.Error{Class: class, Msg: d.Message, Hint: d.Hint, Op: d.OperationId}
}

// ToConnect turns an error into a Connect error that carries its Detail.
func ToConnect(err error) error {
	if err == nil {
		return nil
	}
	ce := connect.NewError(codes[errdefs.ClassOf(err)], errors.New(err.Error()))
	if d, derr := connect.NewErrorDetail(Detail(err)); derr == nil {
		ce.AddDetail(d)
	}
	return ce
}

// FromConnect is the reverse of ToConnect. Errors that carry no Detail (from the
// transport, say) get the class of their Connect code.
func FromConnect(err error) error {
	var ce *connect.Error
	if !errors.As(err, &ce) {
		return err
	}
	for _, d := range ce.Details() {
		if v, derr := d.Value(); derr == nil {
			if ed, ok := v.(*bangerv1.ErrorDetail); ok {
				return FromDetail(ed)
			}
		}
	}
	for class, code := range codes {
		if code == ce.Code() {
			return &errdefs.Error{Class: class, Msg: ce.Message(), Err: err}
		}
	}
	return &errdefs.Error{Class: errdefs.ClassInternal, Msg: ce.Message(), Err: err}
}
