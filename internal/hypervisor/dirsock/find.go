package dirsock

import (
	"context"
	"fmt"
	"net"

	"banger/internal/errdefs"
	"banger/internal/sysexec"
)

// Find returns the process that serves the socket name in dir, and when it started.
// It is known by two things: the kernel names it as the listener, and it works in
// dir. A process that inherited the socket and has not come to listen yet is named
// only after it first answers: until then the name is that of the process that made
// the socket. greet waits for such an answer. That nobody listens is not believed: a
// process may have closed its socket, or lost its name, and work on. So it is looked for
// among all. Class not_found: nobody works there.
func Find(ctx context.Context, dir, name string, greet func(context.Context, *net.UnixConn) error) (pid int, start uint64, err error) {
	here := func(pid int) bool { return sysexec.WorksIn(pid, dir) }
	for greeted := false; ; {
		conn, err := Dial(ctx, dir, name)
		if NoListener(err) {
			pid, start, serr := sysexec.Search(here)
			if serr == nil && pid == 0 {
				serr = errdefs.NotFound("nobody listens: %w", err)
			}
			return pid, start, serr
		}
		if err != nil {
			return 0, 0, err
		}
		pid, err := PeerPID(conn)
		if err == nil {
			if start, ok := sysexec.Identify(pid, here); ok {
				_ = conn.Close()
				return pid, start, nil
			}
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
