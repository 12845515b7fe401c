// Package doctor runs checks of the host and says what to do about those that do
// not pass. It knows nothing of the daemon: whoever calls Run chooses the checks,
// and none of them needs a running daemon or an open database.
package doctor

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"banger/internal/errdefs"
)

// Status is the verdict of a check.
type Status string

// The verdicts. Only StatusFail means that banger cannot work.
const (
	StatusPass Status = "pass"
	StatusWarn Status = "warn" // works, but slower, smaller or not for long
	StatusFail Status = "fail"
)

// Result is what a check found.
type Result struct {
	Name   string `json:"name"` // filled in by Run
	Status Status `json:"status"`
	Detail string `json:"detail"`        // what was found
	Fix    string `json:"fix,omitempty"` // what to do, never empty but for a pass; a command line where there is one
}

// Check is one question about the host.
type Check struct {
	Name    string
	Timeout time.Duration // zero: DefaultTimeout
	Run     func(ctx context.Context) Result
}

// DefaultTimeout bounds a check that sets none of its own.
const DefaultTimeout = 10 * time.Second

// Pass, Warn and Fail build results.
func Pass(format string, args ...any) Result {
	return Result{Status: StatusPass, Detail: fmt.Sprintf(format, args...)}
}

// Warn reports something that works badly, and how to mend it.
func Warn(fix, format string, args ...any) Result {
	return Result{Status: StatusWarn, Detail: fmt.Sprintf(format, args...), Fix: fix}
}

// Fail reports something that does not work, and how to mend it.
func Fail(fix, format string, args ...any) Result {
	return Result{Status: StatusFail, Detail: fmt.Sprintf(format, args...), Fix: fix}
}

// FailErr reports err, with the hint that it carries, or else with fix.
func FailErr(fix string, err error) Result {
	return Fail(cmp.Or(errdefs.HintOf(err), fix), "%v", err)
}

// Run runs all checks at the same time and returns their results in the order of
// checks. A check that does not end within its timeout fails, and Run does not
// wait for it any longer: a read from a dead network mount cannot be interrupted.
func Run(ctx context.Context, checks []Check) []Result {
	results := make([]Result, len(checks))
	pending := make([]<-chan Result, len(checks))
	for i, c := range checks {
		pending[i] = start(ctx, c)
	}
	for i := range pending {
		results[i] = <-pending[i]
		results[i].Name = checks[i].Name
	}
	return results
}

// start runs one check and delivers exactly one result.
func start(ctx context.Context, c Check) <-chan Result {
	timeout := c.Timeout
	if timeout == 0 {
		timeout = DefaultTimeout
	}
	out := make(chan Result, 1)
	found := make(chan Result, 1)
	ctx, cancel := context.WithTimeout(ctx, timeout)
	go func() { found <- c.Run(ctx) }()
	go func() {
		defer cancel()
		select {
		case r := <-found:
			out <- r
		case <-ctx.Done():
			select {
			case r := <-found: // it noticed the deadline itself and may say more
				out <- r
			default:
				out <- Fail("look for a network mount that hangs, or a host with too much to do, and try again", "gave no answer within %v", timeout)
			}
		}
	}()
	return out
}

// Worst returns the worst verdict of results; StatusPass for none.
func Worst(results []Result) Status {
	worst := StatusPass
	for _, r := range results {
		switch {
		case r.Status == StatusFail:
			return StatusFail
		case r.Status == StatusWarn:
			worst = StatusWarn
		}
	}
	return worst
}
