package guest

import (
	"context"
	"io"
	"net"
	"sync"

	"banger/internal/errdefs"
)

// ExecIO is what a command in the guest is connected to. A nil member is left
// out: no input, output thrown away.
type ExecIO struct {
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
	Resize <-chan [2]uint16 // rows, columns of the terminal
	// Signals are numbers to deliver to the command's process group. The sender of
	// either channel must not count on a receiver once the command has ended.
	Signals <-chan int
}

// ExitStatus is how a command ended. Code is 128+Signal when a signal ended it.
type ExitStatus struct {
	Code   int
	Signal int
}

// RunExec runs a command and returns when it has ended and all its output was
// written. It owns conn. Cancelling ctx hangs up, on which the agent sends SIGHUP
// to the command. An error of class not_found or permission means that the
// command could not be started (exit codes 127 and 126 of a shell).
//
// One Read of io.Stdin may still be pending when RunExec returns; what it gets is
// lost.
func RunExec(ctx context.Context, conn net.Conn, r Request, io ExecIO) (ExitStatus, error) {
	w := NewFrameWriter(conn)
	over := make(chan struct{})
	var feeder sync.WaitGroup
	stop := guard(ctx, conn)
	defer func() {
		close(over)
		stop()
		feeder.Wait()
	}()
	if err := w.Request(r); err != nil {
		return ExitStatus{}, lost(ctx, err)
	}
	if io.Resize != nil || io.Signals != nil {
		feeder.Go(func() { feedControl(w, io, over) })
	}
	run := execRun{out: io, over: over}
	if r.Exec != nil && r.Exec.Stdin && io.Stdin != nil {
		run.credit = newCredit(InitialWindow)
		go feedStdin(w, io.Stdin, run.credit, over)
	}
	return run.follow(ctx, NewFrameReader(conn))
}

// execRun is the receiving half of a running command.
type execRun struct {
	out    ExecIO
	credit *credit
	over   <-chan struct{}
}

func (e *execRun) follow(ctx context.Context, r *FrameReader) (ExitStatus, error) {
	for {
		channel, payload, err := r.Next()
		if err != nil {
			return ExitStatus{}, lost(ctx, err)
		}
		switch channel {
		case ChanStdout, ChanStderr:
			to := e.out.Stdout
			if channel == ChanStderr {
				to = e.out.Stderr
			}
			if to == nil {
				continue
			}
			if _, err := to.Write(payload); err != nil {
				return ExitStatus{}, errdefs.Wrap(err, "write the command's output")
			}
		case ChanControl:
			c, err := DecodeControl(payload)
			if err != nil {
				return ExitStatus{}, err
			}
			switch c.Type {
			case ControlStarted:
			case ControlWindow:
				if e.credit != nil {
					e.credit.grant(c.Bytes)
				}
			case ControlExit:
				return ExitStatus{Code: c.Code & 0xff, Signal: c.Signal & 0x7f}, nil
			case ControlError:
				return ExitStatus{}, c.Err()
			default:
				return ExitStatus{}, unexpected(c)
			}
		default:
			return ExitStatus{}, errdefs.Invalid("unexpected frame on channel %d from the VM", channel)
		}
	}
}

// feedControl forwards resizes and signals. A failed write is noticed by the
// receiving half too, so it only ends the loop.
func feedControl(w *FrameWriter, io ExecIO, over <-chan struct{}) {
	for {
		var err error
		select {
		case size, ok := <-io.Resize:
			if !ok {
				io.Resize = nil
				continue
			}
			err = w.Control(Control{Type: ControlResize, Rows: size[0], Cols: size[1]})
		case number, ok := <-io.Signals:
			if !ok {
				io.Signals = nil
				continue
			}
			err = w.Control(Control{Type: ControlSignal, Number: number})
		case <-over:
			return
		}
		if err != nil {
			return
		}
	}
}

// feedStdin sends stdin as far as the credit goes, so that a command that does
// not read can never hold up the control frames behind its input.
func feedStdin(w *FrameWriter, stdin io.Reader, c *credit, over <-chan struct{}) {
	const chunk = 128 << 10
	buf := make([]byte, FrameHeader+chunk)
	for {
		allowed := c.wait(over, chunk)
		if allowed == 0 {
			return
		}
		n, err := stdin.Read(buf[FrameHeader : FrameHeader+allowed])
		select {
		case <-over:
			return
		default:
		}
		if n > 0 {
			c.use(n)
			if w.WriteReserved(ChanStdin, buf[:FrameHeader+n]) != nil {
				return
			}
		}
		if err != nil {
			// Any error ends the input: the command sees the end of file.
			_ = w.Write(ChanStdin, nil)
			return
		}
	}
}

// credit counts the bytes that may be sent.
type credit struct {
	mu      sync.Mutex
	left    int64
	changed chan struct{}
}

func newCredit(n int64) *credit { return &credit{left: n, changed: make(chan struct{}, 1)} }

// grant adds n bytes. The sum stays within InitialWindow, whatever a guest says.
func (c *credit) grant(n int64) {
	c.mu.Lock()
	if n > 0 {
		c.left = min(c.left+min(n, InitialWindow), InitialWindow)
	}
	c.mu.Unlock()
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

func (c *credit) use(n int) {
	c.mu.Lock()
	c.left -= int64(n)
	c.mu.Unlock()
}

// wait blocks until something may be sent and returns how much, at most limit;
// 0 when over is closed.
func (c *credit) wait(over <-chan struct{}, limit int64) int {
	for {
		c.mu.Lock()
		left := c.left
		c.mu.Unlock()
		if left > 0 {
			return int(min(left, limit))
		}
		select {
		case <-c.changed:
		case <-over:
			return 0
		}
	}
}
