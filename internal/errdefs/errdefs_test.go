package errdefs_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"testing"

	"banger/internal/errdefs"
)

func TestClassAndHintSurviveWrapping(t *testing.T) {
	base := errdefs.NotFound("no image %q", "x").WithHint("pull it")
	err := errdefs.Wrap(fmt.Errorf("plan: %w", base), "create vm %q", "v")
	if !errors.Is(err, errdefs.ErrNotFound) || errors.Is(err, errdefs.ErrBusy) {
		t.Errorf("class of %v", err)
	}
	if errdefs.HintOf(err) != "pull it" || err.Error() != `create vm "v": plan: no image "x"` {
		t.Errorf("%v, hint %q", err, errdefs.HintOf(err))
	}
	if errdefs.Wrap(nil, "x") != nil {
		t.Error("wrapping nothing made an error")
	}
}

func TestCauseIsUnwrapped(t *testing.T) {
	err := errdefs.Unavailable("dial: %w", syscall.ECONNREFUSED)
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Error("the cause is lost")
	}
}

func TestClassOfForeignErrors(t *testing.T) {
	for _, c := range []struct {
		err  error
		want errdefs.Class
	}{
		{context.Canceled, errdefs.ClassCanceled},
		{fmt.Errorf("x: %w", context.DeadlineExceeded), errdefs.ClassTimeout},
		{&os.PathError{Op: "write", Path: "f", Err: syscall.ENOSPC}, errdefs.ClassExhausted},
		{&os.PathError{Op: "open", Path: "f", Err: fs.ErrPermission}, errdefs.ClassPermission},
		{errors.New("x"), errdefs.ClassInternal},
		{errdefs.Invalid("y: %w", context.Canceled), errdefs.ClassInvalidArgument},
	} {
		if got := errdefs.ClassOf(c.err); got != c.want {
			t.Errorf("class of %v: %s, want %s", c.err, got, c.want)
		}
	}
	full := errdefs.Wrap(&os.PathError{Op: "write", Path: "f", Err: syscall.ENOSPC}, "make disk")
	if errdefs.HintOf(full) == "" {
		t.Error("a full disk has no hint")
	}
}

func TestHintOfAnOuterErrorWins(t *testing.T) {
	inner := errdefs.Invalid("x").WithHint("inner")
	outer := errdefs.Invalid("y: %w", inner)
	if errdefs.HintOf(outer) != "inner" {
		t.Error("an inner hint is lost")
	}
	if errdefs.HintOf(outer.WithHint("outer")) != "outer" {
		t.Error("the outer hint does not win")
	}
}
