//go:build e2e

package e2e_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
)

// patience bounds every wait for something that is expected to happen. Emulated
// guests on a busy host are slow; what takes this long is not going to happen.
const patience = 120 * time.Second

// result is how a call ended.
type result struct {
	args           []string
	stdout, stderr string
	code           int
}

func (r result) String() string {
	return fmt.Sprintf("banger %s: code %d\nstdout: %s\nstderr: %s", strings.Join(r.args, " "), r.code, r.stdout, r.stderr)
}

// call runs cmd to its end; its streams are those that are set.
func call(t *testing.T, cmd *exec.Cmd) result {
	t.Helper()
	var out, err bytes.Buffer
	if cmd.Stdout == nil {
		cmd.Stdout = &out
	}
	if cmd.Stderr == nil {
		cmd.Stderr = &err
	}
	var runErr error
	if runErr = cmd.Start(); runErr == nil {
		limit := 2 * patience
		kill := time.AfterFunc(limit, func() {
			t.Logf("%v did not end within %s", cmd.Args, limit)
			_ = cmd.Process.Kill()
		})
		runErr = cmd.Wait()
		kill.Stop()
	}
	var exit *exec.ExitError
	if runErr != nil && !errors.As(runErr, &exit) {
		t.Fatalf("%v: %v", cmd, runErr)
	}
	return result{cmd.Args[1:], out.String(), err.String(), code(cmd.ProcessState)}
}

// code is an exit code, 128+n for signal n.
func code(state *os.ProcessState) int {
	if ws := state.Sys().(syscall.WaitStatus); ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return state.ExitCode()
}

// run calls banger without stdin.
func (w *world) run(t *testing.T, args ...string) result {
	t.Helper()
	return call(t, w.command(args...))
}

// ok calls banger, which must succeed, and returns its trimmed stdout.
func (w *world) ok(t *testing.T, args ...string) string {
	t.Helper()
	r := w.run(t, args...)
	if r.code != 0 {
		w.explain(t)
		t.Fatal(r)
	}
	return strings.TrimSpace(r.stdout)
}

// fails calls banger, which must end with a code and say something that contains
// every one of the texts.
func (w *world) fails(t *testing.T, want int, texts []string, args ...string) result {
	t.Helper()
	r := w.run(t, args...)
	r.check(t, want, texts...)
	return r
}

// check compares the code, and looks for texts in stderr.
func (r result) check(t *testing.T, want int, texts ...string) {
	t.Helper()
	if r.code != want {
		t.Errorf("want code %d: %s", want, r)
		return
	}
	for _, text := range texts {
		if !strings.Contains(r.stderr, text) {
			t.Errorf("stderr lacks %q: %s", text, r)
		}
	}
	if want != 0 && !strings.HasPrefix(r.stderr, "error: ") && len(texts) > 0 {
		t.Errorf("stderr does not begin with \"error: \": %s", r)
	}
}

// exec runs a command in a VM and returns its trimmed stdout; it must succeed.
func (w *world) exec(t *testing.T, v vm, args ...string) string {
	t.Helper()
	return w.ok(t, append([]string{"exec", v.ID, "--"}, args...)...)
}

// execRoot is exec as root.
func (w *world) execRoot(t *testing.T, v vm, args ...string) string {
	t.Helper()
	return w.ok(t, append([]string{"exec", "--user", "root", v.ID, "--"}, args...)...)
}

// output collects what a program prints, and lets others wait for parts of it.
type output struct {
	mu      sync.Mutex
	buf     []byte
	matched int           // up to here expectations have been met
	more    chan struct{} // closed and replaced when something was added
	ended   bool
}

func newOutput() *output { return &output{more: make(chan struct{})} }

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.buf = append(o.buf, p...)
	close(o.more)
	o.more = make(chan struct{})
	return len(p), nil
}

func (o *output) end() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ended = true
	close(o.more)
	o.more = make(chan struct{})
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return string(o.buf)
}

// expect waits until text was printed, after what was expected before.
func (o *output) expect(t *testing.T, text string) {
	t.Helper()
	if !o.await(t, text) {
		t.Fatalf("the program ended without printing %q; it printed:\n%s", text, o)
	}
}

// await is expect, but returns false when the program ended instead.
func (o *output) await(t *testing.T, text string) bool {
	t.Helper()
	limit := time.NewTimer(patience)
	defer limit.Stop()
	for {
		o.mu.Lock()
		at := bytes.Index(o.buf[o.matched:], []byte(text))
		if at >= 0 {
			o.matched += at + len(text)
			o.mu.Unlock()
			return true
		}
		more, ended, all := o.more, o.ended, string(o.buf)
		o.mu.Unlock()
		if ended {
			return false
		}
		select {
		case <-more:
		case <-limit.C:
			t.Fatalf("%q was not printed within %s, but:\n%s", text, patience, all)
		}
	}
}

// running is a call that goes on while the test does something.
type running struct {
	cmd      *exec.Cmd
	out, err *output
	tty      *os.File // nil: no terminal
	done     chan struct{}
	code     int
}

// start begins a call; it is killed when the test ends before it.
func start(t *testing.T, cmd *exec.Cmd) *running {
	t.Helper()
	r := &running{cmd: cmd, out: newOutput(), err: newOutput(), done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = r.out, r.err
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r.watch(t, func() {})
	return r
}

// startTTY begins a call on a terminal of its own; both streams go to out.
func startTTY(t *testing.T, cmd *exec.Cmd, rows, cols uint16) *running {
	t.Helper()
	r := &running{cmd: cmd, out: newOutput(), err: newOutput(), done: make(chan struct{})}
	tty, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: rows, Cols: cols})
	if err != nil {
		t.Fatal(err)
	}
	r.tty = tty
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		_, _ = io.Copy(r.out, tty) // ends with EIO when the last writer is gone
	}()
	r.watch(t, func() {
		// A daemon that the call started does not hold the terminal: it has its own session.
		<-copied
	})
	t.Cleanup(func() { _ = tty.Close() })
	return r
}

func (r *running) watch(t *testing.T, drained func()) {
	go func() {
		_ = r.cmd.Wait()
		r.code = code(r.cmd.ProcessState)
		drained()
		r.out.end()
		r.err.end()
		close(r.done)
	}()
	t.Cleanup(func() {
		select {
		case <-r.done:
		default:
			_ = r.cmd.Process.Kill()
			<-r.done
		}
	})
}

// wait returns the exit code.
func (r *running) wait(t *testing.T) int {
	t.Helper()
	select {
	case <-r.done:
		return r.code
	case <-time.After(patience):
		t.Fatalf("%v did not end within %s; it printed:\n%s%s", r.cmd.Args, patience, r.out, r.err)
		return -1
	}
}

func (r *running) signal(t *testing.T, sig syscall.Signal) {
	t.Helper()
	if err := r.cmd.Process.Signal(sig); err != nil {
		t.Fatalf("signal %v: %v", r.cmd.Args, err)
	}
}

// send types at the terminal.
func (r *running) send(t *testing.T, text string) {
	t.Helper()
	if _, err := io.WriteString(r.tty, text); err != nil {
		t.Fatal(err)
	}
}

func (r *running) resize(t *testing.T, rows, cols uint16) {
	t.Helper()
	if err := pty.Setsize(r.tty, &pty.Winsize{Rows: rows, Cols: cols}); err != nil {
		t.Fatal(err)
	}
}
