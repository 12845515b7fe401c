package fakevm

import (
	"context"
	"errors"
	"io"
	"net"
	"path"
	"sync"
	"time"

	"banger/internal/errdefs"
	"banger/internal/guest"
)

// serveStream answers one request of the host.
func (v *vm) serveStream(stream net.Conn) {
	v.runs()
	r, w := guest.NewFrameReader(stream), guest.NewFrameWriter(stream)
	req, err := r.Request()
	if err == nil && v.knobs.AgentRootError != "" && req.Kind != guest.KindPing {
		err = errdefs.Unavailable("the root is not ready: %s", v.knobs.AgentRootError)
	}
	if err != nil {
		_ = w.Control(guest.ErrorControl(err))
		return
	}
	if req.Kind == guest.KindShutdown && v.knobs.ShutdownUnanswered {
		_, _ = io.Copy(io.Discard, stream)
		return
	}
	done := guest.Control{Type: guest.ControlDone}
	switch req.Kind {
	case guest.KindPing:
		v.servePing(r, w)
		return
	case guest.KindExec:
		v.serveExec(*req.Exec, r, w)
		return
	case guest.KindDial:
		v.serveDial(req.Dial.Port, r, w)
		return
	case guest.KindWorkspacePut, guest.KindWorkspaceChanges, guest.KindWorkspaceForget:
		if err := v.serveWorkspace(&req, r, w); err != nil {
			_ = w.Control(guest.ErrorControl(err))
		}
		return
	case guest.KindSSH:
		v.serveSSH(req.SSH, stream, r, w)
		return
	case guest.KindConfigure:
		v.mu.Lock()
		v.conf = *req.Configure
		v.mu.Unlock()
		err = v.write("etc/hostname", []byte(req.Configure.Hostname+"\n"))
		for _, dir := range req.Configure.Dirs {
			err = errors.Join(err, v.root.MkdirAll(inRoot("/", dir), 0o755))
		}
	case guest.KindCopyIn:
		err = v.copyIn(*req.CopyIn, &stdin{r: r})
	case guest.KindCopyOut:
		err = v.copyOut(*req.CopyOut, stdout{w, guest.ChanStdout})
	case guest.KindStat:
		done.Stat, err = v.stat(req.Stat.Path)
	case guest.KindWaitSystem:
		done.State = "none"
		switch {
		case v.knobs.SystemBlock:
			_, _ = io.Copy(io.Discard, stream) // until the host gives up
			return
		case v.knobs.SystemError != "":
			err = errdefs.Unavailable("ask the init system: %s", v.knobs.SystemError).WithHint("a knob says so")
		}
	case guest.KindBenchSpawn:
		done.Nanos, err = v.bench(*req.BenchSpawn)
	case guest.KindGrow: // its files are the host's
	case guest.KindSync, guest.KindShutdown:
		v.space() // what was written is in the host's files already
	}
	if err != nil {
		_ = w.Control(guest.ErrorControl(err))
		return
	}
	_ = w.Control(done)
	if req.Kind == guest.KindShutdown {
		// The host closes the stream when it has the answer.
		_, _ = io.Copy(io.Discard, stream)
		v.powerOff()
	}
}

func (v *vm) servePing(r *guest.FrameReader, w *guest.FrameWriter) {
	for {
		if w.Control(guest.Control{Type: guest.ControlDone}) != nil {
			return
		}
		if _, _, err := r.Next(); err != nil {
			return
		}
	}
}

// echoPort is the one port on which the guest that is not there listens: what comes in
// is sent back.
const echoPort = 7

func (v *vm) serveDial(port uint16, r *guest.FrameReader, w *guest.FrameWriter) {
	if port != echoPort {
		_ = w.Control(guest.ErrorControl(errdefs.Unavailable("nothing listens on port %d of the VM", port)))
		return
	}
	_ = w.Control(guest.Control{Type: guest.ControlStarted})
	if _, err := io.Copy(stdout{w, guest.ChanStdout}, &stdin{r: r}); err != nil {
		return
	}
	_ = w.Write(guest.ChanStdout, nil)
	_ = w.Control(guest.Control{Type: guest.ControlDone})
}

func (v *vm) bench(b guest.BenchSpawn) ([]int64, error) {
	nanos := make([]int64, b.Count)
	for i := range nanos {
		start := time.Now()
		p := v.newProcess(guest.Exec{Args: b.Args}, eof{}, io.Discard, io.Discard)
		if _, err := p.run(context.Background()); err != nil {
			return nil, err
		}
		nanos[i] = int64(time.Since(start))
	}
	return nanos, nil
}

// hangup is the signal of a host that went away.
const hangup = 1

// signaled is the cause of a command's context when a signal ends it.
type signaled int

func (signaled) Error() string { return "signal" }

// serveExec runs a command until it ends, a signal ends it, or the host is gone.
func (v *vm) serveExec(e guest.Exec, r *guest.FrameReader, w *guest.FrameWriter) {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	in, feed := io.Pipe()
	out, errOut := io.Writer(stdout{w, guest.ChanStdout}), io.Writer(stdout{w, guest.ChanStderr})
	if e.TTY {
		errOut = out
	}
	p := v.newProcess(e, &granting{r: in, w: w}, out, errOut)
	if !e.Stdin {
		p.stdin = eof{}
	}
	if err := p.check(); err != nil {
		_ = w.Control(guest.ErrorControl(err))
		return
	}
	_ = w.Control(guest.Control{Type: guest.ControlStarted, PID: 2})
	// Whoever waits for input must notice a signal too.
	defer context.AfterFunc(ctx, func() { _ = in.CloseWithError(io.ErrUnexpectedEOF) })()
	go v.follow(r, p, feed, cancel)
	code, err := p.run(ctx)
	_ = in.Close() // what else comes has no reader
	end := guest.Control{Type: guest.ControlExit, Code: code}
	if sig, ok := context.Cause(ctx).(signaled); ok { //nolint:errorlint // set above, bare
		end.Code, end.Signal = 128+int(sig), int(sig)
	} else if err != nil {
		end = guest.ErrorControl(err)
	}
	_ = w.Control(end)
}

// follow reads what the host sends to a running command. Input is queued, so that
// a signal is never stuck behind input nobody reads.
func (v *vm) follow(r *guest.FrameReader, p *process, feed *io.PipeWriter, cancel context.CancelCauseFunc) {
	q := newQueue(feed)
	defer q.close()
	for {
		channel, payload, err := r.Next()
		if err != nil {
			cancel(signaled(hangup))
			return
		}
		switch channel {
		case guest.ChanStdin:
			q.add(payload)
		case guest.ChanControl:
			c, err := guest.DecodeControl(payload)
			if err != nil {
				cancel(signaled(hangup))
				return
			}
			switch c.Type {
			case guest.ControlSignal:
				if c.Number > 0 && c.Number < 65 {
					cancel(signaled(c.Number))
				}
			case guest.ControlResize:
				p.term.resize(c.Rows, c.Cols)
			}
		}
	}
}

// queue holds input between the stream and the command; the window the host was
// granted bounds it.
type queue struct {
	mu   sync.Mutex
	wake *sync.Cond
	data [][]byte
	over bool
}

func newQueue(feed *io.PipeWriter) *queue {
	q := &queue{}
	q.wake = sync.NewCond(&q.mu)
	go func() {
		for {
			q.mu.Lock()
			for len(q.data) == 0 && !q.over {
				q.wake.Wait()
			}
			if len(q.data) == 0 {
				q.mu.Unlock()
				_ = feed.Close()
				return
			}
			next := q.data[0]
			q.data = q.data[1:]
			q.mu.Unlock()
			if len(next) == 0 { // end of file
				_ = feed.Close()
				return
			}
			if _, err := feed.Write(next); err != nil {
				return
			}
		}
	}()
	return q
}

func (q *queue) add(p []byte) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.data = append(q.data, append([]byte(nil), p...))
	q.wake.Signal()
}

func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.over = true
	q.wake.Signal()
}

// granting lets the host send as much more as was read.
type granting struct {
	r io.Reader
	w *guest.FrameWriter
}

func (g *granting) Read(p []byte) (int, error) {
	n, err := g.r.Read(p)
	if n > 0 {
		_ = g.w.Control(guest.Control{Type: guest.ControlWindow, Bytes: int64(n)})
	}
	return n, err
}

// stdin reads the input frames of a stream up to the empty one.
type stdin struct {
	r    *guest.FrameReader
	rest []byte
	over bool
}

func (s *stdin) Read(p []byte) (int, error) {
	for len(s.rest) == 0 {
		if s.over {
			return 0, io.EOF
		}
		channel, payload, err := s.r.Next()
		if err != nil {
			return 0, io.ErrUnexpectedEOF // no end of file was sent
		}
		if channel != guest.ChanStdin {
			continue
		}
		s.over = len(payload) == 0
		s.rest = payload
	}
	n := copy(p, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

// stdout sends what is written as frames of one channel.
type stdout struct {
	w       *guest.FrameWriter
	channel byte
}

func (s stdout) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if err := s.w.Write(s.channel, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

type eof struct{}

func (eof) Read([]byte) (int, error) { return 0, io.EOF }

// inRoot turns a path of the guest into one of its root, starting at dir.
func inRoot(dir, p string) string {
	if !path.IsAbs(p) {
		p = path.Join("/", dir, p)
	}
	if p = path.Clean(p); p == "/" {
		return "."
	}
	return p[1:]
}
