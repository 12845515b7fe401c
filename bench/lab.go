package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/paths"
)

// cleanupTime bounds the cleaning up at the end.
const cleanupTime = 2 * time.Minute

// lab is where measuring happens: a cache that stays, a scratch directory that
// does not, and what several measurements share, each made when first needed.
type lab struct {
	ctx     context.Context // ends with the run
	bin     string          // directory of the three programs
	cache   string          // stays between runs
	scratch string          // is removed
	machine Machine
	onClose []func(context.Context) error // run in reverse
	thread  *thread                       // starts processes that end with this program

	shared *daemon   // keeps image and kernel in the cache
	vm     *sandbox  // a settled VM of the shared daemon
	ssh    *sshGuest // a settled VM with sshd, started by hand
}

func openLab(ctx context.Context) (l *lab, err error) {
	l = &lab{ctx: ctx, machine: thisMachine(), thread: newThread()}
	if l.bin, err = filepath.Abs(os.Getenv("BANGER_E2E_BIN")); err != nil {
		return nil, err
	}
	for _, program := range []string{"banger", "bangerd", "banger-agent"} {
		if _, err := os.Stat(l.program(program)); err != nil {
			return nil, fmt.Errorf("%w: set BANGER_E2E_BIN to the directory of the programs, or run make bench", err)
		}
	}
	if l.cache, err = cacheDir(); err != nil {
		return nil, err
	}
	l.scratch = filepath.Join(l.cache, "scratch")
	if err := os.MkdirAll(l.cache, 0o755); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(l.cache, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, fmt.Errorf("another bench uses %s: %w", l.cache, errors.Join(err, lock.Close()))
	}
	// Processes of a killed run went with it; its files are what is left.
	if err := errors.Join(os.RemoveAll(l.scratch), os.Mkdir(l.scratch, 0o755)); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	l.later(func(context.Context) error { return errors.Join(os.RemoveAll(l.scratch), lock.Close()) })
	l.later(func(context.Context) error { l.thread.close(); return nil })
	out, err := exec.CommandContext(ctx, l.program("banger"), "version").Output()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("run banger version: %w", err), l.close())
	}
	first, _, _ := strings.Cut(string(out), "\n")
	l.machine.Banger = strings.TrimSpace(strings.TrimPrefix(first, "banger"))
	return l, nil
}

// cacheDir is where image, kernel and the guest with sshd are kept.
func cacheDir() (string, error) {
	if dir := os.Getenv("BANGER_TEST_CACHE"); dir != "" {
		return filepath.Abs(filepath.Join(dir, "bench"))
	}
	dir, err := os.UserCacheDir()
	return filepath.Join(dir, "banger-bench"), err
}

// later registers fn for the end of the run.
func (l *lab) later(fn func(context.Context) error) { l.onClose = append(l.onClose, fn) }

// close undoes everything, newest first, even when the run was interrupted.
func (l *lab) close() error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(l.ctx), cleanupTime)
	defer cancel()
	var errs []error
	for _, fn := range slices.Backward(l.onClose) {
		errs = append(errs, fn(ctx))
	}
	return errors.Join(errs...)
}

// say tells whoever waits what is going on.
func (l *lab) say(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

func (l *lab) program(name string) string { return filepath.Join(l.bin, name) }

// env is the environment of the programs, for one state directory. The user's own
// configuration has no part in it.
func (l *lab) env(state string) []string {
	var env []string
	for _, kv := range os.Environ() {
		key, _, _ := strings.Cut(kv, "=")
		if strings.HasPrefix(key, "BANGER_") || strings.HasPrefix(key, "XDG_") || key == "GOTRACEBACK" {
			continue
		}
		env = append(env, kv)
	}
	return append(env, "NO_COLOR=1", paths.EnvStateDir+"="+state,
		paths.EnvConfig+"="+filepath.Join(l.cache, "no-config.yaml"), "XDG_CONFIG_HOME="+filepath.Join(l.cache, "config"))
}

// start starts a process that gets sig should this program be killed.
func (t *thread) start(cmd *exec.Cmd, sig unix.Signal) error {
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: sig, Setpgid: true} // not Ctrl-C's business
	return t.do(cmd.Start)
}

// timed runs a program to its end and returns how long that took, from before it
// was started until it was waited for.
func timed(cmd *exec.Cmd) (time.Duration, error) { return timedBy(cmd, cmd.Start) }

func timedBy(cmd *exec.Cmd, start func() error) (time.Duration, error) {
	var complaint strings.Builder
	if cmd.Stderr == nil {
		cmd.Stderr = &complaint
	}
	began := time.Now()
	err := start()
	if err == nil {
		err = cmd.Wait()
	}
	took := time.Since(began)
	if err != nil {
		return 0, fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(complaint.String()))
	}
	return took, nil
}

// output runs a program and returns what it prints.
func output(cmd *exec.Cmd) (string, error) {
	var out strings.Builder
	cmd.Stdout = &out
	_, err := timed(cmd)
	return out.String(), err
}
