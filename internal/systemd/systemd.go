// Package systemd speaks with systemd: about units, by systemctl, and as the process
// of one, by the datagrams that a service sends.
package systemd

import (
	"context"
	"errors"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"banger/internal/errdefs"
	"banger/internal/paths"
	"banger/internal/sysexec"
)

// Daemon is the unit that runs bangerd.
const Daemon = "bangerd.service"

// Booted reports whether systemd is this host's init.
func Booted() bool {
	info, err := os.Lstat(paths.SystemdDir)
	return err == nil && info.IsDir()
}

// RunsDaemon reports whether the daemon of l is systemd's to start. It is when it is
// the system's and was installed as a service.
func RunsDaemon(l paths.Layout) bool {
	if l != paths.System() || !Booted() {
		return false
	}
	_, err := os.Stat(paths.SystemUnit)
	return err == nil
}

// patience bounds one call of systemctl. It is more than the unit gives the daemon to
// end, undoing what it was doing, and the next to find all VMs.
const patience = 6 * time.Minute

// Reload makes systemd read its units again.
func Reload(ctx context.Context) error {
	_, err := systemctl(ctx, "daemon-reload")
	return err
}

// Enable makes systemd start the unit whenever the host boots.
func Enable(ctx context.Context, unit string) error {
	_, err := systemctl(ctx, "enable", "--quiet", unit)
	return err
}

// Start starts a unit and returns when it has said that it is ready. One that is
// active is left as it is.
func Start(ctx context.Context, unit string) error {
	_, err := systemctl(ctx, "start", unit)
	return err
}

// Restart is Start, after the end of the process that there may be.
func Restart(ctx context.Context, unit string) error {
	_, err := systemctl(ctx, "restart", unit)
	return err
}

// Disable stops a unit, returns when its process has ended, and lets it not be started
// again.
func Disable(ctx context.Context, unit string) error {
	_, err := systemctl(ctx, "disable", "--quiet", "--now", unit)
	return err
}

// MainPID is the process of a unit; 0: none.
func MainPID(ctx context.Context, unit string) (int, error) {
	out, err := systemctl(ctx, "show", "--property", "MainPID", "--value", unit)
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil {
		return 0, errdefs.Internal("systemctl says that the process of %s is %.20q", unit, out)
	}
	return pid, nil
}

func systemctl(ctx context.Context, args ...string) ([]byte, error) {
	call, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	out, err := sysexec.Output(call, sysexec.Cmd{Path: "systemctl", Args: append([]string{"--no-ask-password"}, args...)})
	switch {
	case err == nil:
		return out, nil
	case ctx.Err() != nil:
		return nil, errdefs.Wrap(context.Cause(ctx), "systemctl %s", strings.Join(args, " "))
	case errors.Is(err, errdefs.ErrUnsupported):
		return nil, errdefs.Wrap(err, "tell systemd (%s)", args[0])
	}
	return nil, errdefs.Unavailable("tell systemd (%s): %w", args[0], err).WithHint("see what it says: journalctl -u bangerd")
}

// What a service says of itself.
const (
	Ready    = "READY=1"
	Stopping = "STOPPING=1"
)

// Notifier returns a function that tells systemd how this service is. It takes the
// socket out of the environment, so that no child speaks for us. Where no systemd
// listens, the function does nothing.
func Notifier() func(state string) error {
	const env = "NOTIFY_SOCKET"
	socket := os.Getenv(env)
	_ = os.Unsetenv(env)
	if socket == "" {
		return func(string) error { return nil }
	}
	return func(state string) error {
		// A name that begins with @ is one of the abstract space, for Go as well.
		conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: socket, Net: "unixgram"})
		if err != nil {
			return errdefs.Unavailable("tell systemd %s: %w", state, err)
		}
		_, err = conn.Write([]byte(state))
		if err = errors.Join(err, conn.Close()); err != nil {
			return errdefs.Unavailable("tell systemd %s: %w", state, err)
		}
		return nil
	}
}
