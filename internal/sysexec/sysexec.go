// Package sysexec is the only place on the host side that starts processes. It
// takes argument vectors, never shell strings, bounds what it keeps of a
// program's output, and turns failures into errors that say what the program
// said.
package sysexec

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"banger/internal/errdefs"
)

// Cmd is a program to run to its end.
type Cmd struct {
	Path   string   // name looked up in PATH, or a path
	Args   []string // without the program name
	Dir    string
	Env    []string  // nil: the environment of this process
	Stdin  io.Reader // nil: /dev/null
	Stdout io.Writer // nil: kept (bounded) and returned by Output, else discarded
	Stderr io.Writer // gets a copy of stderr as it comes; may be nil
	Attr   *syscall.SysProcAttr
}

// keep is how much of a program's stderr goes into an error, in bytes.
const keep = 4 << 10

// outputLimit is how much Output returns at most, in bytes.
const outputLimit = 64 << 20

// Error is a program that could not be started or ended badly.
type Error struct {
	Program string
	Code    int    // exit status; -1 when a signal ended it or it did not start
	Stderr  string // its last words
	Err     error
}

func (e *Error) Error() string {
	if s := strings.TrimSpace(e.Stderr); s != "" {
		return fmt.Sprintf("%s: %v: %s", e.Program, e.Err, s)
	}
	return fmt.Sprintf("%s: %v", e.Program, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

// Look finds a program in PATH, and in the system directories an ordinary user's
// PATH leaves out.
func Look(name string) (string, error) {
	if p, err := exec.LookPath(name); err == nil {
		return p, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/local/sbin"} {
		if p, err := exec.LookPath(dir + "/" + name); err == nil {
			return p, nil
		}
	}
	return "", errdefs.Unsupported("program %q is not installed", name)
}

// Run runs c to its end. Cancelling ctx sends SIGTERM to its process group, then
// SIGKILL after five seconds.
func Run(ctx context.Context, c Cmd) error {
	_, err := run(ctx, c, nil)
	return err
}

// Replace runs a program in the place of this one, with this one's streams, environment and
// pid. It returns only when the program cannot be started.
func Replace(name string, args []string) error {
	path, err := Look(name)
	if err != nil {
		return err
	}
	err = syscall.Exec(path, append([]string{name}, args...), os.Environ())
	return &Error{Program: name, Code: -1, Err: err}
}

// Output runs c and returns its stdout, at most 64 MiB of it.
func Output(ctx context.Context, c Cmd) ([]byte, error) {
	out := &limited{max: outputLimit}
	_, err := run(ctx, c, out)
	if err == nil && out.over {
		err = errdefs.Exhausted("%s printed more than %d bytes", c.Path, outputLimit)
	}
	return out.buf.Bytes(), err
}

func run(ctx context.Context, c Cmd, out io.Writer) (*os.ProcessState, error) {
	path, err := Look(c.Path)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, path, c.Args...)
	cmd.Dir, cmd.Env, cmd.Stdin = c.Dir, c.Env, c.Stdin
	cmd.Stdout = c.Stdout
	if out != nil {
		cmd.Stdout = out
	}
	last := &tail{max: keep}
	cmd.Stderr = last
	if c.Stderr != nil {
		cmd.Stderr = io.MultiWriter(last, c.Stderr)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if c.Attr != nil {
		attr := *c.Attr
		cmd.SysProcAttr = &attr
	}
	if !cmd.SysProcAttr.Setsid {
		cmd.SysProcAttr.Setpgid = true
	}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	err = cmd.Run()
	if err == nil {
		return cmd.ProcessState, nil
	}
	if cmd.Process != nil && ctx.Err() != nil {
		// WaitDelay killed the leader; its children may be left in the group.
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		err = context.Cause(ctx)
	}
	code := -1
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	}
	return cmd.ProcessState, &Error{Program: c.Path, Code: code, Stderr: last.String(), Err: err}
}

// limited keeps up to max bytes and drops the rest, so a program never blocks.
type limited struct {
	buf  bytes.Buffer
	max  int
	over bool
}

func (l *limited) Write(p []byte) (int, error) {
	if room := l.max - l.buf.Len(); len(p) > room {
		l.over = true
		l.buf.Write(p[:room])
		return len(p), nil
	}
	return l.buf.Write(p)
}

// tail keeps the last max bytes.
type tail struct {
	buf []byte
	max int
}

func (t *tail) Write(p []byte) (int, error) {
	t.buf = append(t.buf, p...)
	if over := len(t.buf) - t.max; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	return len(p), nil
}

func (t *tail) String() string { return string(t.buf) }
