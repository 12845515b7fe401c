package fakevm_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"banger/internal/daemon/fakevm"
	"banger/internal/errdefs"
	"banger/internal/guest"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/hypervisortest"
	"banger/internal/paths"
)

func newDriver() hypervisor.Driver {
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return fakevm.New(fakevm.Deps{Command: []string{self, "fakevm"}})
}

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "fakevm" {
		os.Exit(fakevm.ChildMain(os.Args[2:]))
	}
	if code, ok := hypervisortest.Main(newDriver); ok {
		os.Exit(code)
	}
	os.Exit(m.Run())
}

func testSpec(t *testing.T, dir string) hypervisor.Spec {
	t.Helper()
	disk := filepath.Join(dir, "disk")
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return hypervisor.Spec{
		VMID: "0123456789ab", Dir: dir, CPUs: 2, MemoryMiB: 64, LinkUp: true,
		Disks: []hypervisor.Disk{{Serial: hypervisor.SerialRoot, Path: disk, Format: hypervisor.FormatRaw}},
	}
}

func TestConformance(t *testing.T) {
	hypervisortest.Run(t, hypervisortest.Harness{
		New:   newDriver,
		Spec:  testSpec,
		Break: func(s *hypervisor.Spec) { s.Disks[0].Path += "-gone" },
		Full: func(t *testing.T, dir string) func() {
			full := filepath.Join(t.TempDir(), "full")
			if err := os.WriteFile(full, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			setKnobs(t, dir, fakevm.Knobs{FullFile: full})
			return func() {
				if err := os.Remove(full); err != nil {
					t.Error(err)
				}
			}
		},
	})
	t.Run("Crash", func(t *testing.T) {
		hypervisortest.Run(t, hypervisortest.Harness{
			New:  newDriver,
			Spec: testSpec,
			Break: func(s *hypervisor.Spec) {
				setKnobs(t, s.Dir, fakevm.Knobs{StartCrash: true})
			},
		})
	})
}

func setKnobs(t *testing.T, dir string, k fakevm.Knobs) {
	t.Helper()
	b, err := json.Marshal(k)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, paths.FakeKnobs), b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// start runs a fake VM for the length of a test.
func start(t *testing.T, dir string, k fakevm.Knobs) hypervisor.Machine {
	t.Helper()
	setKnobs(t, dir, k)
	d := newDriver()
	m, err := d.Start(t.Context(), testSpec(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := errors.Join(d.Cleanup(ctx, dir, m.Handle()), m.Close()); err != nil {
			t.Error(err)
		}
	})
	return m
}

func connect(t *testing.T, m hypervisor.Machine) *guest.Session {
	t.Helper()
	conn, err := m.DialAgent(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s, err := guest.Connect(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func call(t *testing.T, s *guest.Session, r guest.Request) (guest.Control, error) {
	t.Helper()
	conn, err := s.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return guest.Call(t.Context(), conn, r)
}

type result struct {
	status      guest.ExitStatus
	out, errOut string
	err         error
}

func run(t *testing.T, s *guest.Session, e guest.Exec, xio guest.ExecIO) result {
	t.Helper()
	conn, err := s.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var out, errOut bytes.Buffer
	if xio.Stdout == nil {
		xio.Stdout = &out
	}
	xio.Stderr = &errOut
	e.Stdin = xio.Stdin != nil
	st, err := guest.RunExec(t.Context(), conn, guest.Request{Kind: guest.KindExec, Exec: &e}, xio)
	return result{st, out.String(), errOut.String(), err}
}

func TestCommands(t *testing.T) {
	m := start(t, t.TempDir(), fakevm.Knobs{})
	s := connect(t, m)
	conf := guest.Configure{Hostname: "calm-otter", User: "dev", Env: []string{"FROM=conf", "A=1"}}
	if _, err := call(t, s, guest.Request{Kind: guest.KindConfigure, Configure: &conf}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args        []string
		code        int
		out, errOut string
	}{
		{[]string{"true"}, 0, "", ""},
		{[]string{"/bin/false"}, 1, "", ""},
		{[]string{"echo", "a", "b c"}, 0, "a b c\n", ""},
		{[]string{"sh", "-c", "exit 42"}, 42, "", ""},
		{[]string{"sh", "-c", "echo one; false; echo $?; true && echo two || echo three"}, 0, "one\n1\ntwo\n", ""},
		{[]string{"sh", "-c", `echo 'a  b' "$FROM" '$FROM' x\;y # no`}, 0, "a  b conf $FROM x;y\n", ""},
		{[]string{"bash", "-lc", "echo bad >&2; exit 3"}, 3, "", "bad\n"},
		{[]string{"sh", "-c", "nonesuch; echo $?"}, 0, "127\n", "sh: 1: nonesuch: not found\n"},
		{[]string{"sh", "-c", "echo x | cat"}, 2, "", "sh: syntax error: '|' is not supported here\n"},
		{[]string{"sh", "-c", "cd /tmp && echo hi > f && echo ho >> f && cat f && pwd && rm f && test -f f"}, 1, "hi\nho\n/tmp\n", ""},
		{[]string{"pwd"}, 0, "/home/dev\n", ""},
		{[]string{"id", "-un"}, 0, "dev\n", ""},
		{[]string{"hostname"}, 0, "calm-otter\n", ""},
		{[]string{"sh", "-c", "cat /etc/../../../../../etc/passwd"}, 1, "", "cat: /etc/../../../../../etc/passwd: no such file or directory\n"},
		{[]string{"env", "A=2", "sh", "-c", "echo $A"}, 0, "2\n", ""},
	} {
		t.Run(strings.Join(c.args, " "), func(t *testing.T) {
			r := run(t, s, guest.Exec{Args: c.args}, guest.ExecIO{})
			if r.err != nil || r.status.Code != c.code || r.out != c.out || r.errOut != c.errOut {
				t.Errorf("got %d, %q, %q, %v; want %d, %q, %q", r.status.Code, r.out, r.errOut, r.err, c.code, c.out, c.errOut)
			}
		})
	}
	if r := run(t, s, guest.Exec{Args: []string{"nonesuch"}}, guest.ExecIO{}); errdefs.ClassOf(r.err) != errdefs.ClassNotFound {
		t.Errorf("a command that is not there: %v", r.err)
	}
	if r := run(t, s, guest.Exec{Args: []string{"true"}, Workdir: "/none"}, guest.ExecIO{}); r.err == nil {
		t.Error("a directory that is not there passed")
	}
	if r := run(t, s, guest.Exec{Args: []string{"size"}, TTY: true, Rows: 24, Cols: 80}, guest.ExecIO{}); r.out != "24 80\n" {
		t.Errorf("size %q", r.out)
	}
}

func TestStreams(t *testing.T) {
	s := connect(t, start(t, t.TempDir(), fakevm.Knobs{}))
	data := bytes.Repeat([]byte("0123456789\x00\xff"), 1<<20)
	want := fmt.Sprintf("%x  -\n", sha256.Sum256(data))
	if r := run(t, s, guest.Exec{Args: []string{"sha256sum"}}, guest.ExecIO{Stdin: bytes.NewReader(data)}); r.out != want || r.err != nil {
		t.Errorf("got %q, %v; want %q", r.out, r.err, want)
	}
	if r := run(t, s, guest.Exec{Args: []string{"cat"}}, guest.ExecIO{Stdin: bytes.NewReader(data)}); r.out != string(data) || r.err != nil {
		t.Errorf("got %d bytes, %v", len(r.out), r.err)
	}
	if r := run(t, s, guest.Exec{Args: []string{"spew", "5000001"}}, guest.ExecIO{}); len(r.out) != 5000001 || r.err != nil {
		t.Errorf("got %d bytes, %v", len(r.out), r.err)
	}
	// Input that nobody reads holds up neither the end of the command nor a signal.
	if r := run(t, s, guest.Exec{Args: []string{"true"}}, guest.ExecIO{Stdin: bytes.NewReader(data)}); r.err != nil {
		t.Error(r.err)
	}
	if r := run(t, s, guest.Exec{}, guest.ExecIO{Stdin: strings.NewReader("echo hello\ncd /tmp\npwd\nexit 5\necho no\n")}); r.out != "hello\n/tmp\n" || r.status.Code != 5 {
		t.Errorf("shell: %+v", r)
	}
}

func TestSignals(t *testing.T) {
	s := connect(t, start(t, t.TempDir(), fakevm.Knobs{}))
	stuck, w := io.Pipe()
	defer w.Close()
	for _, e := range []guest.Exec{{Args: []string{"hang"}}, {Args: []string{"cat"}}, {Args: []string{"sh", "-c", "hang; echo no"}}} {
		signals := make(chan int, 1)
		signals <- 15
		r := run(t, s, e, guest.ExecIO{Stdin: stuck, Signals: signals})
		if r.err != nil || r.status != (guest.ExitStatus{Code: 143, Signal: 15}) || r.out != "" {
			t.Errorf("%v: %+v", e.Args, r)
		}
	}
}

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	m := start(t, dir, fakevm.Knobs{})
	s := connect(t, m)
	at := time.Unix(1_700_000_000, 0)
	var in bytes.Buffer
	tw := tar.NewWriter(&in)
	for _, h := range []tar.Header{
		{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o750, ModTime: at},
		{Name: "d/run.sh", Typeflag: tar.TypeReg, Mode: 0o755, Size: 5, ModTime: at},
		{Name: "d/link", Typeflag: tar.TypeSymlink, Linkname: "run.sh", ModTime: at},
		{Name: "../../escape", Typeflag: tar.TypeReg, Mode: 0o644, Size: 5, ModTime: at},
	} {
		if err := tw.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			_, _ = io.WriteString(tw, "hello")
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	archive := in.Bytes()
	conn, err := s.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	req := guest.Request{Kind: guest.KindCopyIn, CopyIn: &guest.CopyIn{Dest: "/workspace", Mkdir: true}}
	if err := guest.SendTar(t.Context(), conn, req, func(w io.Writer) error { _, err := w.Write(archive); return err }); err != nil {
		t.Fatal(err)
	}
	c, err := call(t, s, guest.Request{Kind: guest.KindStat, Stat: &guest.StatPath{Path: "/workspace/d/run.sh"}})
	if err != nil || c.Stat == nil || c.Stat.Mode != 0o100755 || c.Stat.Size != 5 || c.Stat.IsDir {
		t.Errorf("stat %+v, %v", c.Stat, err)
	}
	if _, err := os.Stat(filepath.Join(dir, paths.FakeRoot, "workspace/escape")); err != nil {
		t.Errorf("an entry with .. in its name: %v", err)
	}
	if conn, err = s.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := guest.RecvTar(t.Context(), conn, guest.Request{Kind: guest.KindCopyOut, CopyOut: &guest.CopyOut{Path: "/workspace/d"}}, &out); err != nil {
		t.Fatal(err)
	}
	var got []string
	for tr := tar.NewReader(&out); ; {
		h, err := tr.Next()
		if err != nil {
			break
		}
		got = append(got, fmt.Sprintf("%s %c %o %v %s", strings.TrimSuffix(h.Name, "/"), h.Typeflag, h.Mode, h.ModTime.Equal(at), h.Linkname))
	}
	if fmt.Sprint(got) != "[d 5 750 true  d/link 2 777 false run.sh d/run.sh 0 755 true ]" {
		t.Errorf("got %q", got)
	}
	if conn, err = s.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	req.CopyIn = &guest.CopyIn{Dest: "/none/such"}
	if err := guest.SendTar(t.Context(), conn, req, func(w io.Writer) error { _, err := w.Write(archive); return err }); errdefs.ClassOf(err) != errdefs.ClassNotFound {
		t.Errorf("copy to nowhere: %v", err)
	}
	// Files outlive the machine.
	if _, err := call(t, s, guest.Request{Kind: guest.KindShutdown}); err != nil {
		t.Fatal(err)
	}
	<-m.Done()
	if e := m.Exit(); !e.Known || e.Code != 0 {
		t.Errorf("exit %+v", e)
	}
	_ = m.Close()
	again := connect(t, start(t, dir, fakevm.Knobs{}))
	if r := run(t, again, guest.Exec{Args: []string{"cat", "/workspace/d/run.sh"}}, guest.ExecIO{}); r.out != "hello" {
		t.Errorf("after a restart: %+v", r)
	}
}

func TestKnobs(t *testing.T) {
	t.Run("start_error", func(t *testing.T) {
		dir := t.TempDir()
		setKnobs(t, dir, fakevm.Knobs{StartError: "no luck"})
		if _, err := newDriver().Start(t.Context(), testSpec(t, dir)); err == nil || !strings.Contains(err.Error(), "no luck") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("start_block", func(t *testing.T) {
		dir := t.TempDir()
		setKnobs(t, dir, fakevm.Knobs{StartBlock: true})
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if _, err := newDriver().Start(ctx, testSpec(t, dir)); errdefs.ClassOf(err) != errdefs.ClassTimeout {
			t.Errorf("got %v", err)
		}
	})
	t.Run("environment", func(t *testing.T) {
		dir := t.TempDir()
		t.Setenv(paths.EnvFake, `{"start_error": "from the environment"}`)
		if _, err := newDriver().Start(t.Context(), testSpec(t, dir)); err == nil || !strings.Contains(err.Error(), "from the environment") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("kill_after_start", func(t *testing.T) {
		m := start(t, t.TempDir(), fakevm.Knobs{KillAfterStart: "1ms"})
		<-m.Done()
		if e := m.Exit(); e.Signal != 9 {
			t.Errorf("exit %+v", e)
		}
	})
	t.Run("agent_never_ready", func(t *testing.T) {
		m := start(t, t.TempDir(), fakevm.Knobs{AgentNeverReady: true})
		conn, err := m.DialAgent(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if _, err := guest.Connect(ctx, conn); err == nil {
			t.Error("it is ready")
		}
	})
	t.Run("agent_root_error", func(t *testing.T) {
		s := connect(t, start(t, t.TempDir(), fakevm.Knobs{AgentRootError: "disk on fire"}))
		if r := s.Ready(); r.RootReady || r.Error != "disk on fire" {
			t.Errorf("ready %+v", r)
		}
		if r := run(t, s, guest.Exec{Args: []string{"true"}}, guest.ExecIO{}); r.err == nil {
			t.Error("a command ran")
		}
	})
	t.Run("shutdown_ignored", func(t *testing.T) {
		m := start(t, t.TempDir(), fakevm.Knobs{ShutdownIgnored: true})
		if err := m.PowerButton(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := call(t, connect(t, m), guest.Request{Kind: guest.KindShutdown}); err != nil {
			t.Fatal(err)
		}
		if err := m.SetLink(t.Context(), true); err != nil {
			t.Errorf("it is gone: %v", err)
		}
	})
	t.Run("exit_code", func(t *testing.T) {
		m := start(t, t.TempDir(), fakevm.Knobs{ExitCode: 7})
		if _, err := call(t, connect(t, m), guest.Request{Kind: guest.KindShutdown}); err != nil {
			t.Fatal(err)
		}
		<-m.Done()
		if e := m.Exit(); e.Code != 7 {
			t.Errorf("exit %+v", e)
		}
	})
	t.Run("attach_error", func(t *testing.T) {
		dir := t.TempDir()
		m := start(t, dir, fakevm.Knobs{AttachError: "shy"})
		if _, err := newDriver().Attach(t.Context(), testSpec(t, dir), m.Handle()); err == nil || !strings.Contains(err.Error(), "shy") {
			t.Errorf("got %v", err)
		}
	})
}

func TestOtherRequests(t *testing.T) {
	s := connect(t, start(t, t.TempDir(), fakevm.Knobs{}))
	conn, err := s.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ping, err := guest.OpenPing(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	defer ping.Close()
	for range 3 {
		if err := ping.Ping(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if c, err := call(t, s, guest.Request{Kind: guest.KindWaitSystem}); err != nil || c.State != "none" {
		t.Errorf("wait-system: %+v, %v", c, err)
	}
	if _, err := call(t, s, guest.Request{Kind: guest.KindSync}); err != nil {
		t.Error(err)
	}
	c, err := call(t, s, guest.Request{Kind: guest.KindBenchSpawn, BenchSpawn: &guest.BenchSpawn{Args: []string{"true"}, Count: 3}})
	if err != nil || len(c.Nanos) != 3 {
		t.Errorf("bench-spawn: %+v, %v", c, err)
	}
}
