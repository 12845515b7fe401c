package serve

import (
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
	"banger/internal/guest"
	"banger/internal/guest/agent/proc"
)

const (
	outputChunk = 64 << 10 // the most that is read of a command's output at once
	largePipe   = 256 << 10
	// ttyGrace is how long a terminal may stay open after the command's end. The
	// kernel closes it with the session, unless the command gave it away.
	ttyGrace = 500 * time.Millisecond
)

// sink takes a command's output as frames with a reserved header.
type sink interface {
	WriteReserved(channel byte, buf []byte) error
}

// execution is a command under way.
//
// Its end is the command's own: output that it wrote before it exited is sent,
// then its exit status. A process it left behind may hold the pipes open for
// ever; it is not waited for, and finds them closed afterwards.
type execution struct {
	process *proc.Process
	tty     *proc.Terminal // nil without one
	input   *input         // nil without one
	outputs []*output
	readers sync.WaitGroup
}

// exec serves a request to run a command.
func (s *Server) exec(conn net.Conn, r *guest.FrameReader, w *guest.FrameWriter, e *guest.Exec) error {
	spec, err := s.command(e)
	if err != nil {
		return err
	}
	ex, err := s.start(spec, e, w)
	if err != nil {
		return err
	}
	gone := s.atShutdown(ex, e.StopSignal)
	started := w.Control(guest.Control{Type: guest.ControlStarted, PID: ex.process.PID})
	ex.begin()
	if ex.input != nil {
		s.running.Go(func() { ex.input.pump(w) })
	}
	ended := make(chan struct{})
	s.running.Go(func() {
		defer gone()
		status, err := ex.wait()
		close(ended)
		if ex.input != nil {
			ex.input.stop()
		}
		if err != nil {
			_ = w.Control(guest.ErrorControl(err))
		} else {
			_ = w.Control(guest.Control{Type: guest.ControlExit, Code: status.Code, Signal: status.Signal})
		}
		_ = conn.Close()
	})
	if started == nil {
		err = ex.follow(r)
	}
	select {
	case <-ended:
		return nil
	default:
	}
	ex.hangup()
	return err
}

// start opens the command's streams and starts it.
func (s *Server) start(spec proc.Spec, e *guest.Exec, to sink) (*execution, error) {
	if e.TTY {
		return s.startTTY(spec, e, to)
	}
	ex := &execution{}
	var theirs []int
	closeTheirs := func() {
		for _, fd := range theirs {
			_ = unix.Close(fd)
		}
	}
	fail := func(err error) (*execution, error) {
		closeTheirs()
		ex.abort()
		return nil, err
	}
	spec.Files[0] = s.null.Fd()
	if e.Stdin {
		r, w, err := pipe()
		if err != nil {
			return fail(err)
		}
		theirs = append(theirs, r)
		own(r, spec.User)
		ex.input = newInput(ours(w), false)
		spec.Files[0] = uintptr(r)
	}
	for i, channel := range []byte{guest.ChanStdout, guest.ChanStderr} {
		r, w, err := pipe()
		if err != nil {
			return fail(err)
		}
		theirs = append(theirs, w)
		own(w, spec.User)
		ex.outputs = append(ex.outputs, &output{f: ours(r), channel: channel, to: to})
		spec.Files[1+i] = uintptr(w)
	}
	process, err := s.Spawner.Start(spec)
	if err != nil {
		return fail(err)
	}
	closeTheirs()
	ex.process = process
	return ex, nil
}

func (s *Server) startTTY(spec proc.Spec, e *guest.Exec, to sink) (*execution, error) {
	tty, err := proc.OpenTerminal(spec.User, e.Rows, e.Cols)
	if err != nil {
		return nil, err
	}
	return s.startOn(tty, spec, e, to)
}

// startOn starts a command on a terminal, which is closed when that fails.
func (s *Server) startOn(tty *proc.Terminal, spec proc.Spec, e *guest.Exec, to sink) (*execution, error) {
	fd := tty.Slave.Fd()
	spec.Files = [3]uintptr{fd, fd, fd}
	process, err := s.Spawner.Start(spec)
	if err != nil {
		tty.Close()
		return nil, err
	}
	ex := &execution{process: process, tty: tty}
	ex.outputs = []*output{{f: tty.Master, channel: guest.ChanStdout, to: to, keep: true}}
	if e.Stdin {
		ex.input = newInput(tty.Master, true)
	}
	return ex, nil
}

func pipe() (r, w int, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return -1, -1, errdefs.Exhausted("open a pipe: %w", err)
	}
	return p[0], p[1], nil
}

// own gives a pipe to the command's user, who could not open /dev/stderr and its
// like otherwise.
func own(fd int, u *proc.User) {
	if u.UID != 0 {
		_ = unix.Fchown(fd, int(u.UID), -1)
	}
}

// ours makes the agent's end of a pipe a file of the runtime's poller. The
// command's end stays blocking.
func ours(fd int) *os.File {
	_ = unix.SetNonblock(fd, true)
	return os.NewFile(uintptr(fd), "pipe")
}

// begin starts forwarding output.
func (ex *execution) begin() {
	for _, o := range ex.outputs {
		ex.readers.Go(o.run)
	}
}

// wait waits for the command's end and for its output to be sent.
func (ex *execution) wait() (proc.Status, error) {
	status, err := ex.process.Wait()
	deadline := time.Unix(1, 0)
	if ex.tty != nil {
		deadline = time.Now().Add(ttyGrace)
		// Open until now, for a terminal that no process has open is at its end, and
		// a command may close it and open it again.
		_ = ex.tty.Slave.Close()
	}
	for _, o := range ex.outputs {
		_ = o.f.SetReadDeadline(deadline)
	}
	ex.readers.Wait()
	if ex.tty != nil {
		_ = ex.tty.Master.Close()
	}
	return status, err
}

// follow obeys the host until it hangs up.
func (ex *execution) follow(r *guest.FrameReader) error {
	for {
		channel, payload, err := r.Next()
		if err != nil {
			return nil
		}
		switch channel {
		case guest.ChanStdin:
			if ex.input == nil {
				return errdefs.Invalid("input for a command that takes none")
			}
			if len(payload) == 0 {
				ex.input.end()
			} else if err := ex.input.push(payload); err != nil {
				return err
			}
		case guest.ChanControl:
			c, err := guest.DecodeControl(payload)
			if err != nil {
				return err
			}
			if err := ex.control(c); err != nil {
				return err
			}
		default:
			return errdefs.Invalid("unexpected frame on channel %d", channel)
		}
	}
}

func (ex *execution) control(c guest.Control) error {
	switch c.Type {
	case guest.ControlResize:
		if ex.tty != nil {
			_ = ex.tty.Resize(c.Rows, c.Cols) // gone with the command
		}
	case guest.ControlSignal:
		if c.Number < 1 || c.Number > guest.MaxSignal {
			return errdefs.Invalid("signal %d: 1 to %d are allowed", c.Number, guest.MaxSignal)
		}
		if ex.tty != nil && ex.tty.Signal(c.Number) == nil {
			return nil
		}
		_ = ex.process.Signal(c.Number)
	default:
		return errdefs.Invalid("unexpected %q frame for a command", c.Type)
	}
	return nil
}

// hangup is what a command gets when its user is gone: the signals that a closed
// terminal sends. With a terminal it is the kernel that sends them. Otherwise the
// pipes stay open and what comes is thrown away, so that a command that cleans up
// after itself is not killed by the first line it prints about that.
func (ex *execution) hangup() {
	if ex.input != nil {
		ex.input.stop()
	}
	if ex.tty != nil {
		_ = ex.tty.Master.Close()
		return
	}
	_ = ex.process.Signal(int(syscall.SIGHUP))
	_ = ex.process.Signal(int(syscall.SIGCONT))
}

// abort closes the streams of a command that was not started.
func (ex *execution) abort() {
	if ex.input != nil {
		_ = ex.input.f.Close()
	}
	for _, o := range ex.outputs {
		_ = o.f.Close()
	}
}

// output forwards one stream of a command.
type output struct {
	f       *os.File
	channel byte
	to      sink
	// keep leaves the file open at its end. That of a terminal comes when a command
	// exits in good order, a moment before it has; closing it then would send SIGHUP
	// to that command.
	keep bool
}

// buffers are reused, because a command that says nothing should cost nothing.
var buffers = sync.Pool{New: func() any {
	b := make([]byte, guest.FrameHeader+outputChunk)
	return &b
}}

// run forwards until the end of file, or the deadline that is set when the
// command has ended.
func (o *output) run() {
	if !o.keep {
		defer o.f.Close()
	}
	pooled := buffers.Get().(*[]byte)
	defer buffers.Put(pooled)
	buf := *pooled
	large := false
	for {
		n, err := o.f.Read(buf[guest.FrameHeader:])
		if n > 0 && o.to.WriteReserved(o.channel, buf[:guest.FrameHeader+n]) != nil {
			o.to = discard{}
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			o.drain(buf)
			return
		}
		if err != nil {
			return
		}
		if n == outputChunk && !large {
			large = true
			o.enlarge()
		}
	}
}

// enlarge gives a stream that fills its pipe a larger one: fewer switches
// between the command and the agent.
func (o *output) enlarge() {
	if raw, err := o.f.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			_, _ = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, largePipe)
		})
	}
}

// drain forwards what the command had written when it ended, but not what a
// process it left behind goes on to write.
func (o *output) drain(buf []byte) {
	raw, err := o.f.SyscallConn()
	if err != nil {
		return
	}
	left := 0
	_ = raw.Control(func(fd uintptr) { left, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	for left > 0 {
		n := 0
		_ = raw.Control(func(fd uintptr) {
			n, _ = unix.Read(int(fd), buf[guest.FrameHeader:guest.FrameHeader+min(left, outputChunk)])
		})
		if n <= 0 || o.to.WriteReserved(o.channel, buf[:guest.FrameHeader+n]) != nil {
			return
		}
		left -= n
	}
}
