package client

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
	"banger/internal/paths"
	"banger/internal/sysexec"
	"banger/internal/systemd"
)

// maxReadyLine bounds what the daemon says when it is up, or why it is not.
const maxReadyLine = 64 << 10

// FindDaemon finds the daemon's binary: beside this program, in ../lib/banger, or
// in PATH. The first two keep a checkout or an installation together.
func FindDaemon() (string, error) {
	if self, err := os.Executable(); err == nil {
		if real, err := filepath.EvalSymlinks(self); err == nil {
			self = real
		}
		dir := filepath.Dir(self)
		for _, p := range []string{
			filepath.Join(dir, paths.DaemonProgram),
			filepath.Join(dir, "..", "lib", "banger", paths.DaemonProgram),
		} {
			if unix.Access(p, unix.X_OK) == nil {
				return p, nil
			}
		}
	}
	p, err := sysexec.Look(paths.DaemonProgram)
	if err != nil {
		return "", errdefs.Unavailable("find %s: it is not beside banger and not in PATH", paths.DaemonProgram).
			WithHint("install it next to banger (`make build` puts both in bin/)")
	}
	return filepath.Abs(p)
}

// StartDaemon starts the daemon of l and returns once it serves: detached, or by
// systemd where that runs it. When several programs do this at once one daemon comes
// up, and all return.
func StartDaemon(ctx context.Context, l paths.Layout) error {
	if systemd.RunsDaemon(l) {
		return systemd.Start(ctx, systemd.Daemon)
	}
	if err := paths.CheckSocket(l.Socket); err != nil {
		return err
	}
	program, err := FindDaemon()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(l.State, 0o700); err != nil {
		return startErr(err, "make the state directory")
	}
	log, err := os.OpenFile(l.DaemonLog(), os.O_CREATE|os.O_WRONLY|os.O_APPEND|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return startErr(err, "open the daemon's log")
	}
	defer func() { _ = log.Close() }()
	turn, err := takeTurn(ctx, l.DaemonLog())
	if err != nil {
		return err
	}
	defer func() { _ = turn.Close() }()
	// Whoever had the turn before may have started it.
	if conn, err := dialSocket(ctx, l.Socket); err == nil {
		return conn.Close()
	}
	mark, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return startErr(err, "read the daemon's log")
	}
	err = launch(ctx, program, l, log)
	if err == nil {
		return nil
	}
	// A daemon that was started by other means holds the directory: use it.
	if conn, dialErr := dialSocket(ctx, l.Socket); dialErr == nil {
		return conn.Close()
	}
	if errors.Is(err, errSilent) {
		err = errdefs.Unavailable("start the daemon: it ended before it was ready%s", lastWords(l.DaemonLog(), mark)).
			WithHint("look at %s, or run: %s serve --state-dir %s", l.DaemonLog(), program, l.State)
	}
	return err
}

func startErr(err error, what string) error {
	if errors.Is(err, fs.ErrPermission) {
		return errdefs.Permission("start the daemon: %s: %w", what, err).
			WithHint("choose a state directory of your own: set %s", paths.EnvStateDir)
	}
	return errdefs.Wrap(err, "start the daemon: %s", what)
}

// takeTurn makes starters of one daemon wait for each other, by a lock on the
// log file that its opener alone holds: the daemon gets another opening of the
// file, which carries no lock.
func takeTurn(ctx context.Context, file string) (*os.File, error) {
	f, err := os.OpenFile(file, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, startErr(err, "open the daemon's log")
	}
	got := make(chan error, 1)
	go func() {
		for {
			err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
			if err != unix.EINTR {
				got <- err
				return
			}
		}
	}()
	select {
	case err = <-got:
	case <-ctx.Done():
		// The goroutine keeps f until it has the lock; this program is ending.
		return nil, context.Cause(ctx)
	}
	if err != nil {
		_ = f.Close()
		return nil, startErr(err, "lock the daemon's log")
	}
	return f, nil
}

// errSilent says that the daemon ended without a word on the ready pipe.
var errSilent = errors.New("the daemon said nothing")

// launch runs the daemon and reads its one line: ready, or why not.
func launch(ctx context.Context, program string, l paths.Layout, log *os.File) error {
	r, w, err := os.Pipe()
	if err != nil {
		return startErr(err, "make a pipe")
	}
	defer func() { _ = r.Close() }()
	proc, err := sysexec.StartDetached(sysexec.Detached{
		Path:       program,
		Args:       []string{"serve", "--state-dir", l.State, "--socket", l.Socket, "--ready-fd", "3"},
		Dir:        "/",
		Env:        daemonEnv(os.Environ()),
		Stdout:     log,
		Stderr:     log,
		ExtraFiles: []*os.File{w},
	})
	_ = w.Close()
	if err != nil {
		return startErr(err, "run it")
	}
	stop := context.AfterFunc(ctx, func() { _ = r.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	line, err := bufio.NewReader(io.LimitReader(r, maxReadyLine)).ReadString('\n')
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return errSilent
	case line == "ready\n":
		return nil
	}
	if body, ok := strings.CutPrefix(line, "error: "); ok {
		if err := decodeDetail([]byte(body)); err != nil {
			select { // it was its last word: who is told so finds nothing of it left
			case <-proc.Done():
			case <-ctx.Done():
			}
			return errdefs.Wrap(err, "start the daemon")
		}
	}
	return errdefs.Internal("start the daemon: it said %q", strings.TrimSpace(line))
}

// daemonEnv is our environment for a program that runs in another directory.
func daemonEnv(env []string) []string {
	out := make([]string, 0, len(env))
	for _, kv := range env {
		key, value, _ := strings.Cut(kv, "=")
		switch key {
		case paths.EnvStateDir, paths.EnvSocket:
			continue // given as flags
		case paths.EnvConfig:
			if abs, err := filepath.Abs(value); err == nil && value != "" {
				kv = key + "=" + abs
			}
		}
		out = append(out, kv)
	}
	return out
}

// lastWords returns the last line that was added to the log since mark.
func lastWords(file string, mark int64) string {
	f, err := os.Open(file)
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(io.NewSectionReader(f, mark, 1<<20), 1<<20))
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	if last := lines[len(lines)-1]; last != "" {
		return ": " + last
	}
	return ""
}

// Peer is the process behind a socket, as the kernel knows it.
type Peer struct {
	PID int
	UID int
}

// PeerOf asks the kernel who serves a socket.
func PeerOf(ctx context.Context, socket string) (Peer, error) {
	conn, err := dialSocket(ctx, socket)
	if err != nil {
		return Peer{}, err
	}
	defer func() { _ = conn.Close() }()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return Peer{}, fmt.Errorf("ask who serves %s: %w", socket, err)
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return Peer{}, fmt.Errorf("ask who serves %s: %w", socket, err)
	}
	if credErr != nil {
		return Peer{}, fmt.Errorf("ask who serves %s: %w", socket, credErr)
	}
	return Peer{PID: int(cred.Pid), UID: int(cred.Uid)}, nil
}

// StopDaemon shuts the daemon behind socket down and returns when its process has
// ended. VMs go on running. With ifIdle a daemon whose end would cut something off
// is left alone; the error is ErrBusy then and says what holds it.
func StopDaemon(ctx context.Context, socket string, ifIdle bool) error {
	peer, err := PeerOf(ctx, socket)
	if err != nil {
		return err
	}
	start, err := sysexec.StartTime(peer.PID)
	if err != nil {
		return errdefs.Wrap(err, "find the daemon's process")
	}
	proc, err := sysexec.Find(peer.PID, start)
	if err != nil {
		return errdefs.Wrap(err, "watch the daemon's process")
	}
	c := Open(Options{Sockets: []string{socket}, AnyProtocol: true})
	defer c.Close()
	if err := c.Shutdown(ctx, ifIdle); err != nil && !errors.Is(err, errdefs.ErrUnavailable) {
		return err
	}
	select {
	case <-proc.Done():
		return nil
	case <-ctx.Done():
		return errdefs.Wrap(context.Cause(ctx), "wait for the daemon (pid %d) to end", peer.PID)
	}
}
