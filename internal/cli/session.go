package cli

import (
	"context"
	"errors"
	"os"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"banger/internal/api"
	"banger/internal/client"
	"banger/internal/errdefs"
	"banger/internal/guest"
)

// sessionFlags say how a command in a VM is connected to us.
type sessionFlags struct {
	tty, interactive bool
	timeout          time.Duration
}

func (f *sessionFlags) register(c *cobra.Command) {
	c.Flags().BoolVarP(&f.tty, "tty", "t", false, "give the command a terminal")
	c.Flags().BoolVarP(&f.interactive, "interactive", "i", false, "pass stdin on even when it is a terminal")
	c.Flags().DurationVar(&f.timeout, "timeout", 0, "end the command with SIGTERM after this `duration`, with SIGKILL 5s later")
}

// check refuses what cannot work. shell says that no command was given: then a
// terminal is taken when we have one.
func (f *sessionFlags) check(cmd *cobra.Command, a *app, shell bool) error {
	if f.timeout < 0 {
		return usageErr(cmd, "--timeout %s is negative", f.timeout)
	}
	if shell && a.inTTY && a.outTTY {
		f.tty = true
	}
	if f.tty && (!a.inTTY || !a.outTTY) {
		return usageTry("the same without --tty", "--tty needs stdin and stdout to be terminals")
	}
	return nil
}

// wantStdin reports whether the command gets our stdin: always when asked to,
// never a terminal's that it was not asked for, and not an empty one.
func (f *sessionFlags) wantStdin(a *app) bool {
	if f.tty || f.interactive {
		return true
	}
	var st unix.Stat_t
	if a.inTTY || unix.Fstat(int(a.in.Fd()), &st) != nil {
		return false
	}
	devNull := st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == unix.Mkdev(1, 3)
	return !devNull
}

// Signals that are passed on to the command.
var forwarded = []os.Signal{
	syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2,
}

// How long a command may take to end on SIGTERM, then on SIGKILL.
const timeoutGrace = 5 * time.Second

// Three interrupts in this time give up on the command.
const impatience = 2 * time.Second

// session runs one command in a VM.
type session struct {
	app      *app
	client   *client.Client
	ref      string
	request  guest.Request
	flags    sessionFlags
	deadline time.Time // zero: none
	signals  *signals  // caught already; nil: catch them here
	// before is asked, once signals reach the command, whether to run it at all;
	// nil: yes.
	before func() error
}

// run runs the command and returns its exit code. Errors say that there is none.
func (s *session) run(ctx context.Context) (int, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	toCommand := make(chan int, 16)
	handler := s.forwarder(toCommand, cancel)
	if s.signals == nil {
		s.signals = catch(handler, forwarded...)
		defer s.signals.release()
	} else {
		s.signals.to(handler)
	}
	if s.before != nil {
		if err := s.before(); err != nil {
			return 0, ownFailure(interrupted(err))
		}
	}
	conn, err := s.client.OpenStream(ctx, api.StreamPath(s.ref))
	if err != nil {
		return 0, ownFailure(interrupted(err))
	}
	exec := s.request.Exec
	exec.TTY, exec.Stdin = s.flags.tty, s.flags.wantStdin(s.app)
	io := guest.ExecIO{Stdout: s.app.out, Stderr: s.app.err, Signals: toCommand}
	if exec.Stdin {
		io.Stdin = s.app.in
	}
	if exec.TTY {
		restore, resize, err := s.app.rawTerminal(exec)
		if err != nil {
			_ = conn.Close()
			return 0, ownFailure(err)
		}
		defer restore()
		io.Resize = resize
		tty := &impatient{in: io.Stdin, out: s.app.out, giveUp: func() { cancel(errGaveUp) }}
		io.Stdin, io.Stdout = tty, tty
	}
	timedOut := s.watchDeadline(ctx, toCommand, cancel)
	status, err := guest.RunExec(ctx, conn, s.request, io)
	if timedOut() {
		return 0, elapsed(s.flags.timeout)
	}
	if errors.Is(err, errGaveUp) {
		return 0, gaveUp(s.ref, s.request.Ephemeral)
	}
	if err != nil {
		return 0, commandError(err)
	}
	return status.Code, nil
}

// forwarder passes signals on, and gives up when somebody is impatient.
func (s *session) forwarder(to chan<- int, giveUp context.CancelCauseFunc) func(syscall.Signal) {
	var recent []time.Time
	return func(sig syscall.Signal) {
		deliver(to, sig)
		if sig != syscall.SIGINT {
			return
		}
		now := time.Now()
		recent = append(recent, now)
		if n := len(recent); n >= 3 && now.Sub(recent[n-3]) <= impatience {
			giveUp(errInterrupted)
		}
	}
}

// deliver hands a signal to the stream, unless nobody takes them any more.
func deliver(to chan<- int, sig syscall.Signal) {
	select {
	case to <- int(sig):
	default:
	}
}

// watchDeadline ends the command when its time is over. The function it returns
// ends the watch and reports whether the time was over.
func (s *session) watchDeadline(ctx context.Context, to chan<- int, giveUp context.CancelCauseFunc) func() bool {
	if s.deadline.IsZero() {
		return func() bool { return false }
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	over := false
	go func() {
		defer close(stopped)
		timer := time.NewTimer(time.Until(s.deadline))
		defer timer.Stop()
		for _, act := range []func(){
			func() { over = true; deliver(to, syscall.SIGTERM) },
			func() { deliver(to, syscall.SIGKILL) },
			func() { giveUp(errElapsed) },
		} {
			select {
			case <-timer.C:
				act()
				timer.Reset(timeoutGrace)
			case <-stop:
				return
			case <-ctx.Done():
				return
			}
		}
	}()
	return func() bool {
		close(stop)
		<-stopped
		return over
	}
}

// commandError gives an error of a command's start the exit code a shell has for it.
func commandError(err error) error {
	if e := interrupted(err); e != err {
		return e
	}
	switch errdefs.ClassOf(err) {
	case errdefs.ClassNotFound:
		return &exitError{guest.ExitNotFound, err}
	case errdefs.ClassPermission:
		return &exitError{guest.ExitNotExecutable, err}
	}
	return &exitError{guest.ExitBanger, err}
}

// codeError turns a command's exit code into ours.
func codeError(code int) error {
	if code == 0 {
		return nil
	}
	return &exitError{code, nil}
}

// rawTerminal hands the terminal to the command: raw mode, size now and at every
// change. restore gives it back.
func (a *app) rawTerminal(exec *guest.Exec) (restore func(), resize <-chan [2]uint16, err error) {
	old, err := term.MakeRaw(int(a.in.Fd()))
	if err != nil {
		return nil, nil, errdefs.Wrap(err, "set the terminal to raw mode")
	}
	size := func() (s [2]uint16) {
		if cols, rows, err := term.GetSize(int(a.out.Fd())); err == nil {
			s = [2]uint16{uint16(rows), uint16(cols)}
		}
		return s
	}
	now := size()
	exec.Rows, exec.Cols = now[0], now[1]
	if t := os.Getenv("TERM"); t != "" {
		exec.Env = append([]string{"TERM=" + t}, exec.Env...)
	}
	sizes := make(chan [2]uint16, 1)
	winch := catch(func(syscall.Signal) {
		select { // only the newest size matters
		case <-sizes:
		default:
		}
		sizes <- size()
	}, syscall.SIGWINCH)
	return func() {
		winch.release()
		_ = term.Restore(int(a.in.Fd()), old)
	}, sizes, nil
}
