// Package steps runs a change of many parts as a list of named, reversible steps.
package steps

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"banger/internal/errdefs"
	"banger/internal/logkey"
)

// Step is one part of a change to M. Undo must be safe when Do failed half way;
// it is nil for steps that change nothing outside M.
type Step[M any] struct {
	Name string
	Do   func(ctx context.Context, m M) error
	Undo func(ctx context.Context, m M) error
	// Limit bounds how long Do may take; 0: nothing does but the change's context. What
	// one step takes longer costs no other its time.
	Limit time.Duration
}

// Limit returns steps that are bounded each.
func Limit[M any](list []Step[M], each time.Duration) []Step[M] {
	out := slices.Clone(list)
	for i := range out {
		out[i].Limit = each
	}
	return out
}

// On turns steps on N into steps on an M that has one.
func On[M, N any](list []Step[N], of func(M) N) []Step[M] {
	on := func(fn func(context.Context, N) error) func(context.Context, M) error {
		if fn == nil {
			return nil
		}
		return func(ctx context.Context, m M) error { return fn(ctx, of(m)) }
	}
	out := make([]Step[M], 0, len(list))
	for _, s := range list {
		out = append(out, Step[M]{Name: s.Name, Do: on(s.Do), Undo: on(s.Undo), Limit: s.Limit})
	}
	return out
}

// Observer hears of every step as it starts and ends.
type Observer interface {
	Stage(name string)
}

// Runner runs steps. Its zero value works.
type Runner struct {
	Log      *slog.Logger // nil: silent
	Observer Observer     // nil: nobody
	// Faults is a seam for fault tests: it is called before the named step and, with
	// done, when that has succeeded. An error fails the step, having done nothing or
	// all; ErrCrash, of a step too, stops at once, undoing nothing, as if the daemon
	// had died.
	Faults func(step string, done bool) error
}

// ErrCrash makes a Runner stop as a crash would.
var ErrCrash = errors.New("simulated crash")

// undoTimeout bounds one undo. It runs on a context of its own, because the
// change's context is usually the reason for undoing.
const undoTimeout = 30 * time.Second

// Run does the steps in order. When one fails, it and those before it are undone
// in reverse and the step's error is returned, joined with that of an undo that fails.
// That ends the undoing: what was done before stays, as the record of what is left.
func Run[M any](ctx context.Context, r Runner, m M, list []Step[M]) error {
	log := r.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	for i, s := range list {
		err := context.Cause(ctx)
		began := time.Now()
		if err == nil {
			if r.Observer != nil {
				r.Observer.Stage(s.Name)
			}
			err = do(ctx, r, m, s)
		}
		if err == nil {
			log.DebugContext(ctx, "step done", logkey.Step, s.Name, logkey.Ms, time.Since(began).Milliseconds())
			continue
		}
		if errors.Is(err, ErrCrash) {
			return err
		}
		if cause := context.Cause(ctx); cause != nil && errdefs.ClassOf(err) != errdefs.ClassOf(cause) {
			// A step that was cancelled may say so in the words of what it was doing.
			err = &errdefs.Error{Class: errdefs.ClassOf(cause), Msg: err.Error(), Hint: errdefs.HintOf(cause), Err: err}
		}
		log.DebugContext(ctx, "step failed, undoing", logkey.Step, s.Name, logkey.Err, err)
		return errors.Join(err, undo(ctx, log, m, list[:i+1]))
	}
	return nil
}

func do[M any](ctx context.Context, r Runner, m M, s Step[M]) error {
	if s.Limit != 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, s.Limit, errdefs.New(errdefs.ClassTimeout, "%s takes longer than %s", s.Name, s.Limit))
		defer cancel()
	}
	if r.Faults == nil {
		return s.Do(ctx, m)
	}
	if err := r.Faults(s.Name, false); err != nil {
		return err
	}
	if err := s.Do(ctx, m); err != nil {
		return err
	}
	return r.Faults(s.Name, true)
}

func undo[M any](ctx context.Context, log *slog.Logger, m M, list []Step[M]) error {
	for _, s := range slices.Backward(list) {
		if s.Undo == nil {
			continue
		}
		if err := undoOne(ctx, m, s); err != nil {
			log.ErrorContext(ctx, "undo", logkey.Step, s.Name, logkey.Err, err)
			return fmt.Errorf("undo %s: %w", s.Name, err)
		}
	}
	return nil
}

func undoOne[M any](ctx context.Context, m M, s Step[M]) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	return s.Undo(ctx, m)
}
