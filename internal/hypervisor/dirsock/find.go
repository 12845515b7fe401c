package dirsock

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
	"banger/internal/sysexec"
)

// Find returns the process that serves the socket name in dir, and when it started.
// It is known by two things: the kernel names it as the listener, and it works in
// dir. A process that inherited the socket and has not come to listen yet is named
// only after it first answers: until then the name is that of the process that made
// the socket. greet waits for such an answer. Class not_found: nobody serves there.
func Find(ctx context.Context, dir, name string, greet func(context.Context, *net.UnixConn) error) (pid int, start uint64, err error) {
	for greeted := false; ; {
		conn, err := Dial(ctx, dir, name)
		if NoListener(err) {
			return 0, 0, errdefs.NotFound("nobody listens: %w", err)
		}
		if err != nil {
			return 0, 0, err
		}
		pid, err := PeerPID(conn)
		if err == nil && worksIn(pid, dir) {
			// While the connection is open the process is not gone, and the pid its own.
			start, err = sysexec.StartTime(pid)
			_ = conn.Close()
			if err != nil {
				return 0, 0, errdefs.NotFound("who listens on %s in %s has just ended: %w", name, dir, err)
			}
			return pid, start, nil
		}
		if err == nil && greeted {
			err = errdefs.Internal("process %d listens on %s in %s, but does not work there", pid, name, dir)
		}
		if err != nil {
			_ = conn.Close()
			return 0, 0, err
		}
		greeted = greet(ctx, conn) == nil
		_ = conn.Close()
		if !greeted && ctx.Err() != nil {
			return 0, 0, fmt.Errorf("somebody listens on %s in %s but does not answer: %w", name, dir, context.Cause(ctx))
		}
		// Without an answer it hung up: it ended while we looked. Look again.
	}
}

// worksIn reports whether dir is the working directory of another process pid.
func worksIn(pid int, dir string) bool {
	if pid <= 0 || pid == os.Getpid() {
		return false
	}
	var cwd, want unix.Stat_t
	return unix.Stat("/proc/"+strconv.Itoa(pid)+"/cwd", &cwd) == nil && unix.Stat(dir, &want) == nil &&
		cwd.Dev == want.Dev && cwd.Ino == want.Ino
}
