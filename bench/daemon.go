package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/hypervisor/dirsock"
	"banger/internal/paths"
)

// daemon is a bangerd of ours on one state directory.
type daemon struct {
	lab    *lab
	layout paths.Layout
	cmd    *exec.Cmd
	exited chan struct{}
}

// serve starts a daemon on state and waits until it serves.
func (l *lab) serve(ctx context.Context, state string) (*daemon, error) {
	return l.serveOn(ctx, l.thread, state)
}

// serveOn is serve with a daemon that is where the thread is.
func (l *lab) serveOn(ctx context.Context, on *thread, state string) (*daemon, error) {
	layout, err := paths.At(state)
	if err != nil {
		return nil, err
	}
	mode := os.FileMode(0o700)
	if os.Geteuid() == 0 {
		mode = 0o711
	}
	if err := os.MkdirAll(state, mode); err != nil {
		return nil, err
	}
	log, err := os.OpenFile(layout.DaemonLog(), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	d := &daemon{lab: l, layout: layout, exited: make(chan struct{})}
	d.cmd = exec.Command(l.program("bangerd"), "serve", "--state-dir", state, "--socket", layout.Socket, "--ready-fd", "3")
	d.cmd.Env, d.cmd.Dir = append(l.env(state), "GOTRACEBACK=all"), "/"
	d.cmd.Stdout, d.cmd.Stderr, d.cmd.ExtraFiles = log, log, []*os.File{w}
	err = on.start(d.cmd, unix.SIGTERM)
	_ = w.Close()
	if err != nil {
		return nil, fmt.Errorf("start the daemon: %w", err)
	}
	go func() {
		_ = d.cmd.Wait()
		close(d.exited)
	}()
	stop := context.AfterFunc(ctx, func() { _ = r.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if line, err := bufio.NewReader(r).ReadString('\n'); err != nil || line != "ready\n" {
		err = errors.Join(context.Cause(ctx), d.stop(context.WithoutCancel(ctx)))
		return nil, fmt.Errorf("start the daemon on %s: it said %q, see its log: %w", state, line, err)
	}
	return d, nil
}

// pid is the daemon's process id.
func (d *daemon) pid() int { return d.cmd.Process.Pid }

// stop ends the daemon, then its network helper.
func (d *daemon) stop(ctx context.Context) error {
	helper := d.helper(ctx)
	_ = d.cmd.Process.Signal(unix.SIGTERM)
	select {
	case <-d.exited:
	case <-ctx.Done():
		_ = d.cmd.Process.Kill()
		<-d.exited
	}
	if helper == 0 {
		return nil
	}
	// Not our child; its pid was read from its socket just now.
	fd, err := unix.PidfdOpen(helper, 0)
	if err != nil {
		return nil //nolint:nilerr // it has ended already
	}
	defer unix.Close(fd)
	_ = unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0)
	if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 20_000); err != nil && !errors.Is(err, unix.EINTR) {
		return fmt.Errorf("wait for the network helper: %w", err)
	}
	return nil
}

// helper is the process id of the daemon's network helper, 0 when none runs.
func (d *daemon) helper(ctx context.Context) int {
	conn, err := dirsock.Dial(ctx, d.layout.State, paths.UsernetSocket)
	if err != nil {
		return 0
	}
	defer conn.Close()
	pid, err := dirsock.PeerPID(conn)
	if err != nil {
		return 0
	}
	return pid
}

// cli makes a call of banger with this daemon. Ending ctx interrupts it as a
// user would, so that it cleans up.
func (d *daemon) cli(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, d.lab.program("banger"), args...)
	cmd.Env, cmd.Dir = d.lab.env(d.layout.State), "/"
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.WaitDelay = cleanupTime
	return cmd
}

// deleteAll deletes every VM of this daemon.
func (d *daemon) deleteAll(ctx context.Context) error {
	ids, err := output(d.cli(ctx, "vm", "list", "-q"))
	if err != nil || ids == "" {
		return err
	}
	_, err = output(d.cli(ctx, append([]string{"vm", "delete", "--force"}, strings.Fields(ids)...)...))
	return err
}

// decode runs a command that prints JSON.
func (d *daemon) decode(ctx context.Context, into any, args ...string) error {
	out, err := output(d.cli(ctx, args...))
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(out), into); err != nil {
		return fmt.Errorf("decode the output of banger %s: %w", strings.Join(args, " "), err)
	}
	return nil
}

// image is what `image show --json` prints, as far as it matters here.
type image struct {
	ID        string `json:"id"`
	Name      string `json:"name"`
	Path      string `json:"path"`
	SizeBytes int64  `json:"size_bytes"`
}

// ready is the daemon that keeps image and kernel in the cache, both made when
// they are not there yet.
func (l *lab) ready(ctx context.Context) (*daemon, error) {
	if l.shared != nil {
		return l.shared, nil
	}
	d, err := l.serve(ctx, filepath.Join(l.cache, "state"))
	if err != nil {
		return nil, err
	}
	l.later(func(ctx context.Context) error {
		return errors.Join(d.deleteAll(ctx), d.stop(ctx))
	})
	if err := d.deleteAll(ctx); err != nil { // of a killed run
		return nil, err
	}
	for _, kind := range []string{"kernel", "image"} {
		if _, err := output(d.cli(ctx, kind, "show", "debian")); err == nil {
			continue
		}
		l.say("  making the %s (once)", kind)
		if _, err := output(d.cli(ctx, kind, "pull", "debian")); err != nil {
			return nil, err
		}
	}
	l.shared = d
	return d, nil
}
