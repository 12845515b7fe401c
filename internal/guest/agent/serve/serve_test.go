package serve

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"os/user"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"banger/internal/errdefs"
	"banger/internal/guest"
	"banger/internal/guest/agent/proc"
)

// testMachine records what reaches the machine.
type testMachine struct {
	configure func(*guest.Configure) error
	off       bool
	went      chan time.Time // when; holds one
	grown     int64          // to so many bytes
	growErr   error
}

func (m *testMachine) Configure(_ context.Context, c *guest.Configure) error {
	if m.configure != nil {
		return m.configure(c)
	}
	return nil
}

func (m *testMachine) Shutdown(context.Context) (func(), error) {
	return func() {
		m.off = true
		m.went <- time.Now()
	}, nil
}

func (m *testMachine) Grow(bytes int64) error {
	m.grown = bytes
	return m.growErr
}

func (m *testMachine) WaitSystem(ctx context.Context) (string, error) {
	<-ctx.Done()
	return "", context.Cause(ctx)
}

// world is a server on this machine, and what it takes to talk to it.
type world struct {
	t       testing.TB
	machine *testMachine
	server  *Server
	serving sync.WaitGroup
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, machine: &testMachine{went: make(chan time.Time, 1)}}
	w.server = New(Deps{
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Machine: w.machine,
		Spawner: proc.NewSpawner(), Users: proc.NewUsers("/etc"),
	})
	if err := w.server.Open(); err != nil {
		t.Fatal(err)
	}
	// A test run in the background has signals ignored that commands would inherit.
	heard := make(chan os.Signal, 1)
	signal.Notify(heard, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT)
	t.Cleanup(func() { signal.Stop(heard) })
	// Commands run as whoever runs the test.
	u, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	w.server.defaults.User = u.Uid
	w.server.defaults.Workdir = "/"
	t.Cleanup(func() {
		w.serving.Wait()
		w.server.Close()
	})
	return w
}

// dial opens a stream to the server.
func (w *world) dial() net.Conn {
	w.t.Helper()
	l, err := net.Listen("unix", filepath.Join(w.t.TempDir(), "s"))
	if err != nil {
		w.t.Fatal(err)
	}
	defer l.Close()
	a, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		w.t.Fatal(err)
	}
	b, err := l.Accept()
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = a.Close() })
	w.serving.Go(func() { w.server.Serve(w.t.Context(), b) })
	return a
}

func (w *world) context() context.Context {
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	w.t.Cleanup(cancel)
	return ctx
}

func (w *world) call(r guest.Request) (guest.Control, error) {
	w.t.Helper()
	return guest.Call(w.context(), w.dial(), r)
}

func (w *world) run(e guest.Exec, xio guest.ExecIO) (guest.ExitStatus, error) {
	w.t.Helper()
	e.Stdin = xio.Stdin != nil
	return guest.RunExec(w.context(), w.dial(), guest.Request{Kind: guest.KindExec, Exec: &e}, xio)
}

// sh runs a shell line and returns its status and its output.
func (w *world) sh(line string) (guest.ExitStatus, string, string) {
	w.t.Helper()
	var out, errs bytes.Buffer
	st, err := w.run(guest.Exec{Args: []string{"sh", "-c", line}}, guest.ExecIO{Stdout: &out, Stderr: &errs})
	if err != nil {
		w.t.Fatalf("%s: %v", line, err)
	}
	return st, out.String(), errs.String()
}

func TestExecStatusAndStreams(t *testing.T) {
	w := newWorld(t)
	for _, c := range []struct {
		line, out, errs string
		want            guest.ExitStatus
	}{
		{"echo out; echo err >&2; exit 7", "out\n", "err\n", guest.ExitStatus{Code: 7}},
		{"kill -KILL $$", "", "", guest.ExitStatus{Code: 137, Signal: 9}},
		{"kill -TERM $$", "", "", guest.ExitStatus{Code: 143, Signal: 15}},
		{"cat; exit 0", "", "", guest.ExitStatus{}},
		{"pwd; umask", "/\n0022\n", "", guest.ExitStatus{}},
		{"printf 'a\\000b\\377'", "a\x00b\xff", "", guest.ExitStatus{}},
	} {
		st, out, errs := w.sh(c.line)
		if st != c.want || out != c.out || errs != c.errs {
			t.Errorf("%s: %+v %q %q", c.line, st, out, errs)
		}
	}
}

func TestExecStartErrors(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return p
	}
	for name, c := range map[string]struct {
		exec guest.Exec
		want error
	}{
		"unknown command":     {guest.Exec{Args: []string{"no-such-command"}}, errdefs.ErrNotFound},
		"unknown path":        {guest.Exec{Args: []string{dir + "/none"}}, errdefs.ErrNotFound},
		"missing interpreter": {guest.Exec{Args: []string{write("a", "#!/no/such/thing\n", 0o755)}}, errdefs.ErrNotFound},
		"not executable":      {guest.Exec{Args: []string{write("b", "x", 0o644)}}, errdefs.ErrPermission},
		"directory":           {guest.Exec{Args: []string{dir}}, errdefs.ErrPermission},
		"no directory":        {guest.Exec{Args: []string{"true"}, Workdir: dir + "/none"}, errdefs.ErrInvalidArgument},
		"no user":             {guest.Exec{Args: []string{"true"}, User: "no-such-user"}, errdefs.ErrInvalidArgument},
		"bad environment":     {guest.Exec{Args: []string{"true"}, Env: []string{"NOVALUE"}}, errdefs.ErrInvalidArgument},
		"empty command":       {guest.Exec{Args: []string{""}}, errdefs.ErrInvalidArgument},
		"too long":            {guest.Exec{Args: []string{"true", strings.Repeat("x", 200<<10)}}, errdefs.ErrInvalidArgument},
	} {
		_, err := w.run(c.exec, guest.ExecIO{})
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v (%s)", name, err, errdefs.ClassOf(err))
		}
	}
	// A script without an interpreter line is the shell's.
	var out bytes.Buffer
	st, err := w.run(guest.Exec{Args: []string{write("c", "echo \"$0 $1\"\n", 0o755), "arg"}}, guest.ExecIO{Stdout: &out})
	if err != nil || st.Code != 0 || out.String() != dir+"/c arg\n" {
		t.Errorf("script: %+v %v %q", st, err, out.String())
	}
}

func TestExecEnvironment(t *testing.T) {
	w := newWorld(t)
	w.server.defaults.Env = []string{"A=image", "B=image"}
	dir := t.TempDir()
	var out bytes.Buffer
	st, err := w.run(guest.Exec{
		Args: []string{"sh", "-c", `echo "$A $B $C"; pwd; echo ${TERM-none} "$PATH"; test -n "$HOME$USER$SHELL" && test "$HOSTNAME" = "$(uname -n)"`},
		Env:  []string{"B=request", "C=x=y"}, Workdir: dir,
	}, guest.ExecIO{Stdout: &out})
	want := "image request x=y\n" + dir + "\nnone " + proc.DefaultPath + "\n"
	if err != nil || st.Code != 0 || out.String() != want {
		t.Errorf("%+v %v: %q, want %q", st, err, out.String(), want)
	}
}

func TestExecAsUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("switching users needs root")
	}
	etc := t.TempDir()
	_ = os.WriteFile(etc+"/passwd", []byte("root:x:0:0::/root:/bin/sh\ndev:x:4321:4322::/nonexistent:/bin/sh\n"), 0o644)
	_ = os.WriteFile(etc+"/group", []byte("dev:x:4322:\nextra:x:77:root,dev\n"), 0o644)
	w := newWorld(t)
	w.server.Users = proc.NewUsers(etc)
	w.server.defaults.Workdir = ""
	for user, want := range map[string]string{
		"dev":       "4321 4322 4322 77 dev /nonexistent /\n",
		"dev:extra": "4321 77 77 dev /nonexistent /\n",
		"99:98":     "99 98 98 99 / /\n",
		"0":         "0 0 0 77 root /root /root\n",
	} {
		var out bytes.Buffer
		_, err := w.run(guest.Exec{Args: []string{"sh", "-c", `echo $(id -u) $(id -g) $(id -G) $USER $HOME $PWD`}, User: user}, guest.ExecIO{Stdout: &out, Stderr: &out})
		if err != nil || out.String() != want {
			t.Errorf("%s: %v: %q, want %q", user, err, out.String(), want)
		}
	}
}

func TestLoginShell(t *testing.T) {
	w := newWorld(t)
	var out bytes.Buffer
	st, err := w.run(guest.Exec{}, guest.ExecIO{Stdin: strings.NewReader("echo $0; exit 3\n"), Stdout: &out})
	if err != nil || st.Code != 3 || !strings.HasPrefix(out.String(), "-") {
		t.Errorf("%+v %v %q", st, err, out.String())
	}
}

// pattern is a reader of n bytes that are not alike.
type pattern struct{ n, at int }

func (p *pattern) Read(b []byte) (int, error) {
	if p.at == p.n {
		return 0, io.EOF
	}
	b = b[:min(len(b), p.n-p.at)]
	for i := range b {
		b[i] = byte((p.at + i) * 2654435761 >> 13)
	}
	p.at += len(b)
	return len(b), nil
}

func TestExecMovesMuchBothWays(t *testing.T) {
	w := newWorld(t)
	size := 200 << 20
	if testing.Short() {
		size = 20 << 20
	}
	want, got := sha256.New(), sha256.New()
	in := io.TeeReader(&pattern{n: size}, want)
	st, err := w.run(guest.Exec{Args: []string{"cat"}}, guest.ExecIO{Stdin: in, Stdout: got})
	if err != nil || st.Code != 0 {
		t.Fatal(st, err)
	}
	if !bytes.Equal(want.Sum(nil), got.Sum(nil)) {
		t.Error("what came back differs")
	}
	var out bytes.Buffer
	st, err = w.run(guest.Exec{Args: []string{"sha256sum"}}, guest.ExecIO{Stdin: &pattern{n: size}, Stdout: &out})
	if err != nil || st.Code != 0 || !strings.HasPrefix(out.String(), hex.EncodeToString(want.Sum(nil))) {
		t.Errorf("%+v %v %q", st, err, out.String())
	}
}

func TestExecStdinClosedByTheCommand(t *testing.T) {
	w := newWorld(t)
	var out bytes.Buffer
	st, err := w.run(guest.Exec{Args: []string{"sh", "-c", "exec <&-; head -c 3 /dev/zero | od -An -tx1; exit 4"}},
		guest.ExecIO{Stdin: &pattern{n: 8 << 20}, Stdout: &out})
	if err != nil || st.Code != 4 || strings.TrimSpace(out.String()) != "00 00 00" {
		t.Errorf("%+v %v %q", st, err, out.String())
	}
}

// TestSignalPassesUnreadStdin: the command reads nothing, the host sends all it
// may, and a signal still gets through.
func TestSignalPassesUnreadStdin(t *testing.T) {
	w := newWorld(t)
	signals := make(chan int, 1)
	out := &trigger{on: func() { signals <- 15 }}
	st, err := w.run(guest.Exec{Args: []string{"sh", "-c", "echo ready; exec sleep 60"}},
		guest.ExecIO{Stdin: &pattern{n: 1 << 30}, Stdout: out, Signals: signals})
	if err != nil || st != (guest.ExitStatus{Code: 143, Signal: 15}) {
		t.Errorf("%+v %v", st, err)
	}
}

// trigger calls on once the output holds after; at the first output without that.
type trigger struct {
	bytes.Buffer
	after string
	on    func()
	once  sync.Once
}

func (tr *trigger) Write(p []byte) (int, error) {
	n, err := tr.Buffer.Write(p)
	if strings.Contains(tr.String(), tr.after) {
		tr.once.Do(tr.on)
	}
	return n, err
}

func TestSignalReachesTheGroup(t *testing.T) {
	w := newWorld(t)
	signals := make(chan int, 1)
	out := &trigger{on: func() { signals <- 15 }}
	st, err := w.run(guest.Exec{Args: []string{"sh", "-c", "trap 'wait; echo shell; exit 5' TERM; (trap 'echo child; exit' TERM; echo ready; while :; do sleep 0.05; done) & wait"}},
		guest.ExecIO{Stdout: out, Signals: signals})
	if err != nil || st.Code != 5 || out.String() != "ready\nchild\nshell\n" {
		t.Errorf("%+v %v %q", st, err, out.String())
	}
}

// TestBackgroundProcessHoldsNobodyUp: a process left behind keeps the pipes open.
func TestBackgroundProcessHoldsNobodyUp(t *testing.T) {
	w := newWorld(t)
	st, out, _ := w.sh("sleep 20 & echo $!; head -c 50000 /dev/zero; exit 6")
	pid, rest, _ := strings.Cut(out, "\n")
	if st.Code != 6 || len(rest) != 50000 {
		t.Errorf("%+v, %d bytes", st, len(rest))
	}
	if st, _, errs := w.sh("kill " + pid); st.Code != 0 {
		t.Errorf("the process was not left alone: %s", errs)
	}
}

func TestHangupReachesTheCommand(t *testing.T) {
	w := newWorld(t)
	fifo := filepath.Join(t.TempDir(), "fifo")
	if st, _, errs := w.sh("mkfifo " + fifo); st.Code != 0 {
		t.Fatal(errs)
	}
	for _, tty := range []bool{false, true} {
		ctx, cancel := context.WithCancel(t.Context())
		out := &trigger{on: cancel}
		e := guest.Exec{Args: []string{"sh", "-c", "trap 'trap \"\" HUP; echo gone >" + fifo + "; exit' HUP; echo ready; while :; do sleep 0.05; done"}, TTY: tty}
		_, err := guest.RunExec(ctx, w.dial(), guest.Request{Kind: guest.KindExec, Exec: &e}, guest.ExecIO{Stdout: out})
		if !errors.Is(err, errdefs.ErrCanceled) {
			t.Errorf("error = %v", err)
		}
		b, err := os.ReadFile(fifo) // waits for the command
		if err != nil || string(b) != "gone\n" {
			t.Errorf("tty %v: %q %v", tty, b, err)
		}
	}
}

func TestTerminal(t *testing.T) {
	w := newWorld(t)
	resize := make(chan [2]uint16, 1)
	r, stdin := io.Pipe()
	defer stdin.Close()
	out := &trigger{after: "24 80", on: func() { resize <- [2]uint16{50, 132} }}
	e := guest.Exec{
		Args: []string{"sh", "-c", `trap 'stty size; exit 9' WINCH; tty; stty size; while :; do sleep 0.05; done`},
		TTY:  true, Rows: 24, Cols: 80,
	}
	st, err := w.run(e, guest.ExecIO{Stdin: r, Stdout: out, Resize: resize})
	if err != nil || st.Code != 9 || !strings.Contains(out.String(), "24 80\r\n") || !strings.Contains(out.String(), "50 132\r\n") {
		t.Errorf("%+v %v %q", st, err, out.String())
	}
	// What is typed is a terminal's input: ^C is a signal, ^D the end.
	var typed bytes.Buffer
	st, err = w.run(guest.Exec{Args: []string{"sh", "-c", "read x; echo got:$x; exec cat"}, TTY: true},
		guest.ExecIO{Stdin: strings.NewReader("hello\n"), Stdout: &typed})
	if err != nil || st.Code != 0 || !strings.Contains(typed.String(), "got:hello") {
		t.Errorf("%+v %v %q", st, err, typed.String())
	}
	st, err = w.run(guest.Exec{Args: []string{"sh", "-c", "echo ready; exec sleep 60"}, TTY: true},
		guest.ExecIO{Stdin: io.MultiReader(strings.NewReader("\x03"), blocked{t.Context()}), Stdout: io.Discard})
	if err != nil || st.Signal != 2 {
		t.Errorf("%+v %v", st, err)
	}
}

// blocked is a reader that gives nothing until the end of the test.
type blocked struct{ ctx context.Context }

func (b blocked) Read([]byte) (int, error) { <-b.ctx.Done(); return 0, io.EOF }

func TestTerminalGivesAllOutput(t *testing.T) {
	w := newWorld(t)
	var out bytes.Buffer
	st, err := w.run(guest.Exec{Args: []string{"seq", "100000"}, TTY: true}, guest.ExecIO{Stdout: &out})
	lines := strings.Split(strings.TrimSpace(out.String()), "\r\n")
	if err != nil || st.Code != 0 || len(lines) != 100000 || lines[99999] != "100000" {
		t.Errorf("%+v %v, %d lines", st, err, len(lines))
	}
}

func TestHostThatSendsTooMuchIsCutOff(t *testing.T) {
	w := newWorld(t)
	conn := w.dial()
	fw := guest.NewFrameWriter(conn)
	if err := fw.Request(guest.Request{Kind: guest.KindExec, Exec: &guest.Exec{Args: []string{"sleep", "60"}, Stdin: true}}); err != nil {
		t.Fatal(err)
	}
	go func() {
		for range 2 * guest.InitialWindow / guest.MaxFrame {
			if fw.Write(guest.ChanStdin, make([]byte, guest.MaxFrame)) != nil {
				return
			}
		}
	}()
	r := guest.NewFrameReader(conn)
	for {
		_, payload, err := r.Next()
		if err != nil {
			t.Fatal("the stream ended without an error frame")
		}
		if c, _ := guest.DecodeControl(payload); c.Type == guest.ControlError {
			if !errors.Is(c.Err(), errdefs.ErrInvalidArgument) {
				t.Errorf("error = %v", c.Err())
			}
			return
		}
	}
}

func TestPanicEndsOneRequest(t *testing.T) {
	w := newWorld(t)
	w.machine.configure = func(*guest.Configure) error { panic("boom") }
	_, err := w.call(guest.Request{Kind: guest.KindConfigure, Configure: &guest.Configure{}})
	if !errors.Is(err, errdefs.ErrInternal) || !strings.Contains(err.Error(), "boom") {
		t.Errorf("error = %v", err)
	}
	if _, err := w.call(guest.Request{Kind: guest.KindSync}); err != nil {
		t.Errorf("the next request: %v", err)
	}
}

func TestConfigureSetsDefaults(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	_, err := w.call(guest.Request{Kind: guest.KindConfigure, Configure: &guest.Configure{
		Env: []string{"FROM=configure"}, Workdir: dir, User: w.server.defaults.User,
	}})
	if err != nil {
		t.Fatal(err)
	}
	if _, out, _ := w.sh("echo $FROM; pwd"); out != "configure\n"+dir+"\n" {
		t.Errorf("output = %q", out)
	}
	_, err = w.call(guest.Request{Kind: guest.KindConfigure, Configure: &guest.Configure{User: "no-such-user"}})
	if !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("error = %v", err)
	}
}

func TestOtherRequests(t *testing.T) {
	w := newWorld(t)
	p, err := guest.OpenPing(w.context(), w.dial())
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := p.Ping(w.context()); err != nil {
			t.Fatal(err)
		}
	}
	_ = p.Close()
	c, err := w.call(guest.Request{Kind: guest.KindBenchSpawn, BenchSpawn: &guest.BenchSpawn{Args: []string{"true"}, Count: 20}})
	if err != nil || len(c.Nanos) != 20 || c.Nanos[0] <= 0 {
		t.Errorf("bench: %v %v", c.Nanos, err)
	}
	c, err = w.call(guest.Request{Kind: guest.KindStat, Stat: &guest.StatPath{Path: "/etc"}})
	if err != nil || c.Stat == nil || !c.Stat.IsDir {
		t.Errorf("stat: %+v %v", c, err)
	}
	if _, err = w.call(guest.Request{Kind: guest.KindStat, Stat: &guest.StatPath{Path: "/no/such"}}); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("stat: %v", err)
	}
	if _, err = w.call(guest.Request{Kind: "nonsense"}); !errors.Is(err, errdefs.ErrUnsupported) {
		t.Errorf("unknown kind: %v", err)
	}
	if _, err = w.call(guest.Request{Kind: guest.KindShutdown}); err != nil {
		t.Errorf("shutdown: %v", err)
	}
	w.serving.Wait()
	if !w.machine.off {
		t.Error("the machine was not turned off")
	}
	// A host that hangs up ends a wait that would last for ever.
	ctx, cancel := context.WithCancel(t.Context())
	conn := w.dial()
	time.AfterFunc(20*time.Millisecond, cancel)
	if _, err = guest.Call(ctx, conn, guest.Request{Kind: guest.KindWaitSystem}); !errors.Is(err, errdefs.ErrCanceled) {
		t.Errorf("wait-system: %v", err)
	}
	w.serving.Wait()
}

func TestWithoutRoot(t *testing.T) {
	w := newWorld(t)
	w.server.RootError = "no disk"
	_, err := w.run(guest.Exec{Args: []string{"true"}}, guest.ExecIO{})
	if !errors.Is(err, errdefs.ErrFailedPrecondition) || !strings.Contains(err.Error(), "no disk") {
		t.Errorf("error = %v", err)
	}
}

func TestCopyThroughTheServer(t *testing.T) {
	w := newWorld(t)
	src, dst := t.TempDir(), t.TempDir()
	for i := range 50 {
		p := filepath.Join(src, "tree", fmt.Sprint(i%5), fmt.Sprint(i))
		_ = os.MkdirAll(filepath.Dir(p), 0o755)
		if err := os.WriteFile(p, bytes.Repeat([]byte{byte(i)}, i*1000), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	var packed bytes.Buffer
	err := guest.RecvTar(w.context(), w.dial(), guest.Request{Kind: guest.KindCopyOut, CopyOut: &guest.CopyOut{Path: src + "/tree"}}, &packed)
	if err != nil {
		t.Fatal(err)
	}
	into := filepath.Join(dst, "new", "place")
	req := guest.Request{Kind: guest.KindCopyIn, CopyIn: &guest.CopyIn{Dest: into, Mkdir: true}}
	send := func(r guest.Request, data []byte) error {
		return guest.SendTar(w.context(), w.dial(), r, func(out io.Writer) error {
			_, err := out.Write(data)
			return err
		})
	}
	if err := send(req, packed.Bytes()); err != nil {
		t.Fatal(err)
	}
	if st, out, errs := w.sh("diff -r " + src + "/tree " + into + "/tree"); st.Code != 0 {
		t.Errorf("%s%s", out, errs)
	}
	req.CopyIn = &guest.CopyIn{Dest: dst + "/missing"}
	if err := send(req, packed.Bytes()); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("missing destination: %v", err)
	}
	req.CopyIn = &guest.CopyIn{Dest: dst}
	if err := send(req, packed.Bytes()[:10000]); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("cut stream: %v", err)
	}
	// An error of the producer is the one that is returned.
	own := errors.New("cannot read")
	err = guest.SendTar(w.context(), w.dial(), req, func(io.Writer) error { return own })
	if !errors.Is(err, own) {
		t.Errorf("producer: %v", err)
	}
	err = guest.RecvTar(w.context(), w.dial(), guest.Request{Kind: guest.KindCopyOut, CopyOut: &guest.CopyOut{Path: "/no/such"}}, io.Discard)
	if !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("missing source: %v", err)
	}
}

// A command that for a moment has its terminal nowhere open is still heard.
func TestTerminalThatIsOpenedAgain(t *testing.T) {
	w := newWorld(t)
	var out bytes.Buffer
	line := "echo one; exec <&- >&- 2>&-; sleep 0.2; exec >/dev/tty; echo two"
	st, err := w.run(guest.Exec{Args: []string{"sh", "-c", line}, TTY: true}, guest.ExecIO{Stdout: &out})
	if err != nil || st.Code != 0 || out.String() != "one\r\ntwo\r\n" {
		t.Errorf("%v, %v, output %q", st, err, out.String())
	}
}
