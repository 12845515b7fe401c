// Package logkey names the keys of log lines, so that one thing has one name in all
// of them, and carries the id of an operation to the lines that its work logs.
package logkey

import (
	"context"
	"log/slog"
)

// The keys.
const (
	Op         = "op" // id of the operation; added by Handler
	Err        = "err"
	VM         = "vm"   // id of a VM
	Verb       = "verb" // what is done to a VM
	Step       = "step" // of a verb
	Ms         = "ms"   // how long something took
	Kind       = "kind"
	Subject    = "subject" // what an operation is about, as people know it
	State      = "state"
	PID        = "pid"
	UID        = "uid"
	Code       = "code"   // exit status
	Signal     = "signal" // that ended a process
	Known      = "known"  // whether code and signal are
	Event      = "event"  // of QEMU
	Data       = "data"   // that came with an event
	VMs        = "vms"    // how many
	Image      = "image"
	Kernel     = "kernel"
	Dir        = "dir"
	File       = "file"
	Log        = "log" // name of a log file
	Kept       = "kept"
	Socket     = "socket"
	Proto      = "proto"
	Src        = "src"
	Dst        = "dst"
	Why        = "why"
	After      = "after" // how long something ran
	Pause      = "pause" // before the next attempt
	Version    = "version"
	Binary     = "binary"
	Package    = "package" // version of the distributor's package
	Machine    = "machine"
	CPU        = "cpu"
	Accel      = "accel"
	Reason     = "reason"
	Guest      = "guest" // ns of the probe's loop in a guest
	Host       = "host"  // and on the host
	Conclusive = "conclusive"
	DNS        = "dns"  // address of a name server of ours
	Addr       = "addr" // that is listened on
	Tap        = "tap"
	Missing    = "missing"    // how many of something could not be made
	Made       = "made"       // and how many could
	Now        = "now"        // what is in force
	Configured = "configured" // and what was asked for
)

type opKey struct{}

// WithOp returns a context for the work of operation id.
func WithOp(ctx context.Context, id string) context.Context {
	return context.WithValue(ctx, opKey{}, id)
}

// Handler adds to the lines that are logged with a context (InfoContext and its
// like) the operation they belong to.
func Handler(h slog.Handler) slog.Handler { return handler{h} }

type handler struct{ slog.Handler }

func (h handler) Handle(ctx context.Context, r slog.Record) error {
	if id, ok := ctx.Value(opKey{}).(string); ok {
		r.AddAttrs(slog.String(Op, id))
	}
	return h.Handler.Handle(ctx, r)
}

func (h handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return handler{h.Handler.WithAttrs(attrs)}
}

func (h handler) WithGroup(name string) slog.Handler { return handler{h.Handler.WithGroup(name)} }
