package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"banger/internal/errdefs"
	"banger/internal/guest"
)

// Exit codes that are banger's own; those of commands are in package guest.
const (
	exitFailure   = 1
	exitUsage     = 2
	exitTimeout   = 124
	exitInterrupt = 130
)

// exitError ends banger with a code. Err may be nil: nothing is printed then.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// manyErrors are the failures of a command that acts on several things; each is
// printed on its own.
type manyErrors []error

func (m manyErrors) Error() string { return errors.Join(m...).Error() }

func (m manyErrors) Unwrap() []error { return m }

// usageErr is a command line that makes no sense; err's hint, or the command's
// help, is what to try.
func usageErr(cmd *cobra.Command, format string, args ...any) error {
	return usageTry(cmd.CommandPath()+" --help", format, args...)
}

func usageTry(try, format string, args ...any) error {
	err := errdefs.Invalid(format, args...)
	if hint := errdefs.HintOf(err); hint != "" {
		try = hint
	}
	return &exitError{exitUsage, err.WithHint("%s", try)}
}

// ownFailure gives what banger itself failed at, around a command in a VM, the
// exit code that no command has.
func ownFailure(err error) error {
	var e *exitError
	if err == nil || errors.As(err, &e) {
		return err
	}
	return &exitError{guest.ExitBanger, err}
}

// report prints err, the one place where errors become words, and returns the
// exit code.
func (a *app) report(err error) int {
	if err == nil {
		return 0
	}
	var many manyErrors
	if errors.As(err, &many) {
		for _, e := range many {
			a.printError(e)
		}
		return exitFailure
	}
	var e *exitError
	if errors.As(err, &e) {
		if e.err != nil {
			a.printError(e.err)
		}
		return e.code
	}
	a.printError(err)
	return exitFailure
}

// printError says what failed, what to try, and which operation to look for in
// the daemon's log.
func (a *app) printError(err error) {
	// Whatever stage line was being drawn gives way.
	a.status.clear()
	msg := err.Error()
	if errors.Is(err, context.Canceled) && errdefs.ClassOf(err) == errdefs.ClassCanceled && msg == context.Canceled.Error() {
		msg = "interrupted"
	}
	line := a.paint(red, "error:") + " " + oneLine(msg)
	if op := errdefs.OpOf(err); op != "" {
		line += a.paint(dim, " ("+op+")")
	}
	fmt.Fprintln(a.err, line)
	a.try(errdefs.HintOf(err))
}

// try prints a hint, if there is one.
func (a *app) try(hint string) {
	if hint != "" {
		fmt.Fprintln(a.err, a.paint(bold, "try:")+" "+indented(hint, 5))
	}
}

// indented keeps the lines of a hint apart, those behind the first under it.
func indented(text string, columns int) string {
	var lines []string
	for line := range strings.Lines(strings.TrimSpace(text)) {
		lines = append(lines, oneLine(line))
	}
	return strings.Join(lines, "\n"+strings.Repeat(" ", columns))
}

// oneLine keeps an error on one line and control characters off the terminal.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\r' || r == '\t':
			return ' '
		case r < 0x20 || r >= 0x7f && r < 0xa0:
			return -1
		}
		return r
	}, strings.TrimSpace(s))
}
