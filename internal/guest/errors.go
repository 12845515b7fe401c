package guest

import (
	"context"
	"errors"
	"strings"
	"unicode"

	"banger/internal/errdefs"
)

// Bounds of the text that is taken from a guest, in bytes.
const (
	maxMessage = 4 << 10
	maxName    = 256
)

// ErrorControl turns an error into the control frame that ends a stream with it.
func ErrorControl(err error) Control {
	return Control{
		Type:    ControlError,
		Class:   string(errdefs.ClassOf(err)),
		Message: cut(err.Error(), maxMessage),
		Hint:    cut(errdefs.HintOf(err), maxMessage),
	}
}

// Err is the reverse of ErrorControl. The guest is not trusted: an unknown class
// becomes internal, and text is bounded and loses its control characters, which
// could otherwise rewrite the user's terminal.
func (c Control) Err() error {
	class := errdefs.Class(c.Class)
	switch class {
	case errdefs.ClassInternal, errdefs.ClassInvalidArgument, errdefs.ClassNotFound,
		errdefs.ClassAlreadyExists, errdefs.ClassFailedPrecondition, errdefs.ClassBusy,
		errdefs.ClassUnavailable, errdefs.ClassExhausted, errdefs.ClassPermission,
		errdefs.ClassCanceled, errdefs.ClassTimeout, errdefs.ClassUnsupported:
	default:
		class = errdefs.ClassInternal
	}
	msg := cleanText(c.Message, maxMessage)
	if msg == "" {
		msg = "the guest reported an error without a message"
	}
	return &errdefs.Error{Class: class, Msg: msg, Hint: cleanText(c.Hint, maxMessage)}
}

// cleanText bounds s and replaces what is not printable.
func cleanText(s string, limit int) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' {
			return ' '
		}
		if !unicode.IsPrint(r) {
			return '\uFFFD'
		}
		return r
	}, strings.TrimSpace(cut(s, limit)))
}

func cut(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	return s[:limit-3] + "..."
}

// lost is the error for a stream that ended before its last frame.
func lost(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return errdefs.Wrap(context.Cause(ctx), "talk to the VM")
	}
	var classified *errdefs.Error
	if errors.As(err, &classified) {
		return err
	}
	e := errdefs.Unavailable("the connection to the VM was lost")
	if err != nil && !isEnd(err) {
		e = errdefs.Unavailable("the connection to the VM was lost: %w", err)
	}
	return e.WithHint("the VM or the daemon stopped; see `banger ps` and `banger logs`")
}
