// Package errdefs defines banger's error classes, the hint that goes with an
// error, and the process exit code each class maps to.
//
// Every error that reaches a user says three things: what failed (the message),
// why (the wrapped cause) and what to try (the hint). Code that knows the remedy
// attaches the hint; the CLI prints it in one place. Classes survive the wire
// (package api maps them to Connect codes and back), so errors.Is works the same
// in the daemon and in the CLI.
package errdefs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"
)

// Class is the kind of failure, independent of the message.
type Class string

// The classes. Keep the table in package api and docs in step when adding one.
const (
	ClassInternal           Class = "internal"            // a bug, or an unclassified cause
	ClassInvalidArgument    Class = "invalid_argument"    // the request can never work as written
	ClassNotFound           Class = "not_found"           // the named thing does not exist
	ClassAlreadyExists      Class = "already_exists"      // the name is taken
	ClassFailedPrecondition Class = "failed_precondition" // wrong state now (not running, in use, …)
	ClassBusy               Class = "busy"                // another operation holds the claim
	ClassUnavailable        Class = "unavailable"         // a part we depend on is not there now
	ClassExhausted          Class = "exhausted"           // no space, no memory, over a limit
	ClassPermission         Class = "permission"          // the OS or the daemon refused
	ClassCanceled           Class = "canceled"            // somebody cancelled it
	ClassTimeout            Class = "timeout"             // a deadline passed
	ClassUnsupported        Class = "unsupported"         // this host or driver cannot do that
)

// Sentinels for errors.Is.
var (
	ErrInternal           = &Error{Class: ClassInternal}
	ErrInvalidArgument    = &Error{Class: ClassInvalidArgument}
	ErrNotFound           = &Error{Class: ClassNotFound}
	ErrAlreadyExists      = &Error{Class: ClassAlreadyExists}
	ErrFailedPrecondition = &Error{Class: ClassFailedPrecondition}
	ErrBusy               = &Error{Class: ClassBusy}
	ErrUnavailable        = &Error{Class: ClassUnavailable}
	ErrExhausted          = &Error{Class: ClassExhausted}
	ErrPermission         = &Error{Class: ClassPermission}
	ErrCanceled           = &Error{Class: ClassCanceled}
	ErrTimeout            = &Error{Class: ClassTimeout}
	ErrUnsupported        = &Error{Class: ClassUnsupported}
)

// Error is a classified error with an optional hint and cause.
type Error struct {
	Class Class
	Msg   string // what failed; lower case, a verb phrase, names its subject
	Hint  string // what to try; a sentence or a command line; may be empty
	Op    string // operation id, when the failure belongs to one
	Err   error  // the cause; may be nil
}

// New makes a classified error. A %w verb in format keeps the cause unwrappable.
func New(class Class, format string, args ...any) *Error {
	wrapped := fmt.Errorf(format, args...)
	return &Error{Class: class, Msg: wrapped.Error(), Err: errors.Unwrap(wrapped)}
}

// Error returns the message; the hint is printed separately, once, by the CLI.
func (e *Error) Error() string {
	if e.Msg == "" {
		return string(e.Class)
	}
	return e.Msg
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Is reports whether target is the sentinel of the same class.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Msg == "" && t.Class == e.Class
}

// WithHint returns a copy of e that carries the hint.
func (e *Error) WithHint(format string, args ...any) *Error {
	c := *e
	c.Hint = fmt.Sprintf(format, args...)
	return &c
}

// NotFound and the functions below build an error of one class.
func NotFound(format string, args ...any) *Error { return New(ClassNotFound, format, args...) }

// AlreadyExists reports a taken name.
func AlreadyExists(format string, args ...any) *Error {
	return New(ClassAlreadyExists, format, args...)
}

// Invalid reports a request that can never work as written.
func Invalid(format string, args ...any) *Error { return New(ClassInvalidArgument, format, args...) }

// Precondition reports a state that does not allow the request now.
func Precondition(format string, args ...any) *Error {
	return New(ClassFailedPrecondition, format, args...)
}

// Unavailable reports a part that is not there now.
func Unavailable(format string, args ...any) *Error { return New(ClassUnavailable, format, args...) }

// Exhausted reports a lack of space, memory or another bounded thing.
func Exhausted(format string, args ...any) *Error { return New(ClassExhausted, format, args...) }

// Permission reports a refusal by the operating system or the daemon.
func Permission(format string, args ...any) *Error { return New(ClassPermission, format, args...) }

// Unsupported reports something this host or driver cannot do.
func Unsupported(format string, args ...any) *Error { return New(ClassUnsupported, format, args...) }

// Internal reports a bug or an unclassified cause.
func Internal(format string, args ...any) *Error { return New(ClassInternal, format, args...) }

// ClassOf returns the class of the outermost classified error in err's chain.
// Context errors count as canceled and timeout; anything else is internal.
func ClassOf(err error) Class {
	var e *Error
	switch {
	case errors.As(err, &e):
		return e.Class
	case errors.Is(err, context.Canceled):
		return ClassCanceled
	case errors.Is(err, context.DeadlineExceeded):
		return ClassTimeout
	case noSpace(err):
		return ClassExhausted
	case errors.Is(err, fs.ErrPermission):
		return ClassPermission
	}
	return ClassInternal
}

func noSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// HintOf returns the first hint in err's chain, or "". A full disk has one of its
// own, wherever it was met.
func HintOf(err error) string {
	full := noSpace(err)
	for err != nil {
		var e *Error
		if !errors.As(err, &e) {
			if full {
				return "free some space, e.g. delete VMs: banger vm list --all; banger vm delete NAME"
			}
			return ""
		}
		if e.Hint != "" {
			return e.Hint
		}
		err = e.Err
	}
	return ""
}

// OpOf returns the first operation id in err's chain, or "".
func OpOf(err error) string {
	for err != nil {
		var e *Error
		if !errors.As(err, &e) {
			return ""
		}
		if e.Op != "" {
			return e.Op
		}
		err = e.Err
	}
	return ""
}

// Wrap prefixes err with context and keeps its class, hint and operation, so a
// caller can say what it was doing without hiding what went wrong below.
func Wrap(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return &Error{
		Class: ClassOf(err),
		Msg:   fmt.Sprintf(format, args...) + ": " + err.Error(),
		Hint:  HintOf(err),
		Op:    OpOf(err),
		Err:   err,
	}
}
