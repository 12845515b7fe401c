package guest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"banger/internal/errdefs"
)

// script runs a peer that reads the request and then does as told.
func script(t testing.TB, agent func(r *FrameReader, w *FrameWriter, conn net.Conn)) net.Conn {
	t.Helper()
	a, b := pair(t)
	go func() {
		defer b.Close()
		r := NewFrameReader(b)
		if _, err := r.Request(); err == nil {
			agent(r, NewFrameWriter(b), b)
		}
	}()
	return a
}

func execRequest() Request {
	return Request{Kind: KindExec, Exec: &Exec{Args: []string{"x"}, Stdin: true}}
}

func TestRunExecAgainstBadPeers(t *testing.T) {
	for name, c := range map[string]struct {
		agent func(*FrameReader, *FrameWriter, net.Conn)
		want  error
	}{
		"hang-up":        {func(*FrameReader, *FrameWriter, net.Conn) {}, errdefs.ErrUnavailable},
		"hang-up inside": {func(_ *FrameReader, _ *FrameWriter, c net.Conn) { _, _ = c.Write([]byte{2, 0, 0, 1}) }, errdefs.ErrUnavailable},
		"unknown channel": {func(_ *FrameReader, _ *FrameWriter, c net.Conn) {
			_, _ = c.Write([]byte{9, 0, 0, 0, 0})
		}, errdefs.ErrInvalidArgument},
		"stdin from guest": {func(_ *FrameReader, w *FrameWriter, _ net.Conn) { _ = w.Write(ChanStdin, []byte("x")) }, errdefs.ErrInvalidArgument},
		"done":             {func(_ *FrameReader, w *FrameWriter, _ net.Conn) { _ = w.Control(Control{Type: ControlDone}) }, errdefs.ErrInvalidArgument},
		"not json":         {func(_ *FrameReader, w *FrameWriter, _ net.Conn) { _ = w.Write(ChanControl, []byte("{")) }, errdefs.ErrInvalidArgument},
		"error":            {func(_ *FrameReader, w *FrameWriter, _ net.Conn) { _ = w.Control(ErrorControl(errdefs.NotFound("x"))) }, errdefs.ErrNotFound},
	} {
		_, err := RunExec(testContext(t), script(t, c.agent), execRequest(), ExecIO{Stdin: strings.NewReader(""), Stdout: io.Discard})
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestStdinStaysWithinItsCredit: a guest that grants absurd amounts gets no more
// than the window under way, and one that grants nothing gets the first window.
func TestStdinStaysWithinItsCredit(t *testing.T) {
	for name, grant := range map[string]int64{"none": 0, "negative": -1 << 40, "absurd": 1 << 62} {
		got := make(chan int, 1)
		conn := script(t, func(r *FrameReader, w *FrameWriter, _ net.Conn) {
			n := 0
			for n < InitialWindow {
				_, p, err := r.Next()
				if err != nil {
					break
				}
				n += len(p)
			}
			if grant != 0 {
				_ = w.Control(Control{Type: ControlWindow, Bytes: grant})
			}
			if grant > 0 {
				for n < 2*InitialWindow {
					_, p, err := r.Next()
					if err != nil {
						break
					}
					n += len(p)
				}
			}
			_ = w.Control(Control{Type: ControlExit})
			for { // what was sent in spite of that
				_, p, err := r.Next()
				if err != nil {
					break
				}
				n += len(p)
			}
			got <- n
		})
		if _, err := RunExec(testContext(t), conn, execRequest(), ExecIO{Stdin: zeroes{}}); err != nil {
			t.Fatal(err)
		}
		want := InitialWindow
		if grant > 0 {
			want = 2 * InitialWindow
		}
		if n := <-got; n != want {
			t.Errorf("%s: %d bytes came, want %d", name, n, want)
		}
	}
}

func TestCancelEndsEveryCall(t *testing.T) {
	silent := func(r *FrameReader, _ *FrameWriter, _ net.Conn) { _, _, _ = r.Next() }
	for name, call := range map[string]func(context.Context, net.Conn) error{
		"call": func(ctx context.Context, c net.Conn) error {
			_, err := Call(ctx, c, Request{Kind: KindSync})
			return err
		},
		"exec": func(ctx context.Context, c net.Conn) error {
			_, err := RunExec(ctx, c, execRequest(), ExecIO{Signals: make(chan int)})
			return err
		},
		"send": func(ctx context.Context, c net.Conn) error {
			return SendTar(ctx, c, Request{Kind: KindSync}, func(w io.Writer) error {
				_, err := io.Copy(w, zeroes{})
				return err
			})
		},
		"receive": func(ctx context.Context, c net.Conn) error {
			return RecvTar(ctx, c, Request{Kind: KindSync}, io.Discard)
		},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		over := make(chan error, 1)
		conn := script(t, silent)
		go func() { over <- call(ctx, conn) }()
		cancel()
		select {
		case err := <-over:
			if !errors.Is(err, errdefs.ErrCanceled) {
				t.Errorf("%s: %v", name, err)
			}
		case <-testContext(t).Done():
			t.Errorf("%s goes on", name)
		}
	}
}

func TestSendTarReportsTheGuestsError(t *testing.T) {
	conn := script(t, func(r *FrameReader, w *FrameWriter, _ net.Conn) {
		_, _, _ = r.Next()
		_ = w.Control(ErrorControl(errdefs.Exhausted("no space left")))
	})
	err := SendTar(testContext(t), conn, Request{Kind: KindSync}, func(w io.Writer) error {
		_, err := io.Copy(w, zeroes{}) // until somebody says stop
		return err
	})
	if !errors.Is(err, errdefs.ErrExhausted) {
		t.Errorf("error = %v", err)
	}
}

func TestRecvTarStopsWhenTheWriterFails(t *testing.T) {
	conn := script(t, func(_ *FrameReader, w *FrameWriter, _ net.Conn) {
		for w.Write(ChanStdout, make([]byte, 1000)) == nil {
		}
	})
	full := errors.New("disk full")
	err := RecvTar(testContext(t), conn, Request{Kind: KindSync}, failing{full})
	if !errors.Is(err, full) {
		t.Errorf("error = %v", err)
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

func TestValidate(t *testing.T) {
	good := []Request{
		{Kind: KindPing}, execRequest(), {Kind: KindExec, Exec: &Exec{}},
		{Kind: KindBenchSpawn, BenchSpawn: &BenchSpawn{Args: []string{"a"}, Count: maxBench}},
	}
	bad := []Request{
		{}, {Kind: KindExec}, {Kind: KindCopyIn, CopyIn: &CopyIn{}}, {Kind: KindStat, Stat: &StatPath{Path: "a\x00"}},
		{Kind: KindExec, Exec: &Exec{Args: []string{"a\x00b"}}}, {Kind: KindExec, Exec: &Exec{Env: []string{"=x"}}},
		{Kind: KindCopyOut, CopyOut: &CopyOut{Path: strings.Repeat("/a", 4000)}},
		{Kind: KindBenchSpawn, BenchSpawn: &BenchSpawn{Args: []string{"a"}, Count: maxBench + 1}},
	}
	for _, r := range good {
		if err := r.Validate(); err != nil {
			t.Errorf("%+v: %v", r, err)
		}
	}
	for _, r := range bad {
		if r.Validate() == nil {
			t.Errorf("%+v passed", r)
		}
	}
}

func TestStdinWriterCutsFrames(t *testing.T) {
	var b bytes.Buffer
	s := &stdinWriter{w: NewFrameWriter(&b), answered: make(chan struct{})}
	want := bytes.Repeat([]byte("abc"), 300000)
	for p := want; len(p) > 0; p = p[min(len(p), 7777):] {
		if _, err := s.Write(p[:min(len(p), 7777)]); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.end(); err != nil {
		t.Fatal(err)
	}
	var got []byte
	r := NewFrameReader(&b)
	for {
		_, p, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		if len(p) == 0 {
			break
		}
		got = append(got, p...)
	}
	if !bytes.Equal(got, want) {
		t.Error("the bytes differ")
	}
}

func TestWriteRequestLeavesAGuestThatTakesNothing(t *testing.T) {
	a, b := net.Pipe() // without a buffer
	defer b.Close()
	defer a.Close()
	ctx, cancel := context.WithCancelCause(testContext(t))
	cause := errors.New("enough")
	written := make(chan error)
	go func() { written <- WriteRequest(ctx, a, Request{Kind: KindSync}) }()
	if _, err := b.Read(make([]byte, 1)); err != nil { // it is in the middle of it
		t.Fatal(err)
	}
	cancel(cause)
	if err := <-written; !errors.Is(err, cause) {
		t.Errorf("WriteRequest: %v", err)
	}
	go func() { _, _ = io.Copy(io.Discard, b) }()
	if err := a.SetWriteDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	if err := WriteRequest(testContext(t), a, Request{Kind: KindSync}); err != nil {
		t.Error(err)
	}
}
