package script_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// What scripts cannot say: signals at a certain moment, and terminals.

// rig is a state directory with a kernel and an image, for one test.
type rig struct {
	t     *testing.T
	state string
	env   []string
}

func newRig(t *testing.T, env ...string) *rig {
	t.Helper()
	dir, err := os.MkdirTemp("", "bs")
	if err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(dir, "config.yaml")
	if err := os.WriteFile(conf, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, state: filepath.Join(dir, "s"), env: append([]string{
		"PATH=" + programs + string(os.PathListSeparator) + os.Getenv("PATH"), "HOME=" + dir, "TERM=xterm", "NO_COLOR=1",
		"BANGER_STATE_DIR=" + filepath.Join(dir, "s"), "BANGER_CONFIG=" + conf,
	}, env...)}
	t.Cleanup(func() {
		end(t, r.state, conf)
		_ = os.RemoveAll(dir)
	})
	r.ok("kernel", "import", "tiny", "--from", filepath.Join(assets, "kernel"))
	r.ok("image", "register", "mini", "--rootfs", filepath.Join(assets, "rootfs.ext4"), "--user", "dev")
	return r
}

func (r *rig) cmd(args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(programs, "banger"), args...)
	cmd.Env, cmd.Dir = r.env, filepath.Dir(r.state)
	return cmd
}

// ok runs banger, which must succeed, and returns its stdout.
func (r *rig) ok(args ...string) string {
	r.t.Helper()
	cmd := r.cmd(args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		r.t.Fatalf("banger %v: %v\n%s", args, err, stderr.Bytes())
	}
	return string(out)
}

// running is a banger of which the test has a hand on.
type running struct {
	t      *testing.T
	cmd    *exec.Cmd
	out    *bufio.Reader
	stderr bytes.Buffer
}

// start runs banger with a pipe for stdout.
func (r *rig) start(args ...string) *running {
	r.t.Helper()
	p := &running{t: r.t, cmd: r.cmd(args...)}
	p.cmd.Stderr = &p.stderr
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		r.t.Fatal(err)
	}
	p.out = bufio.NewReader(out)
	if err := p.cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = p.cmd.Process.Kill() })
	return p
}

// line waits for a line of output.
func (p *running) line(want string) {
	p.t.Helper()
	if got, err := p.out.ReadString('\n'); err != nil || strings.TrimSpace(got) != want {
		p.t.Fatalf("printed %q, %v, want %q; stderr: %s", got, err, want, p.stderr.Bytes())
	}
}

func (p *running) signal(sig syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		p.t.Fatal(err)
	}
}

// ends waits for the exit code.
func (p *running) ends(want int) {
	p.t.Helper()
	_, _ = io.Copy(io.Discard, p.out)
	_ = p.cmd.Wait()
	if got := p.cmd.ProcessState.ExitCode(); got != want {
		p.t.Errorf("exit code %d (%v), want %d; stderr: %s", got, p.cmd.ProcessState, want, p.stderr.Bytes())
	}
}

func (r *rig) noVMs() {
	r.t.Helper()
	if out := r.ok("vm", "list", "-q"); out != "" {
		r.t.Errorf("left behind: VMs %q", out)
	}
	if dirs, _ := filepath.Glob(filepath.Join(r.state, "vms", "*")); len(dirs) > 0 {
		r.t.Errorf("left behind: %q", dirs)
	}
}

// until returns once the daemon says that it is busy with something.
func (r *rig) until(busy string) {
	r.t.Helper()
	for !strings.Contains(r.ok("daemon", "status"), busy) {
	}
}

func TestSignalReachesTheCommand(t *testing.T) {
	r := newRig(t)
	r.ok("vm", "create", "--name", "box")
	for sig, want := range map[syscall.Signal]int{syscall.SIGINT: 130, syscall.SIGTERM: 143, syscall.SIGHUP: 129} {
		p := r.start("exec", "box", "--", "sh", "-c", "echo ready; hang")
		p.line("ready")
		p.signal(sig)
		p.ends(want)
	}
	p := r.start("run", "--rm", "--", "sh", "-c", "echo ready; hang")
	p.line("ready")
	p.signal(syscall.SIGINT)
	p.ends(130)
	r.ok("vm", "delete", "-f", "box")
	r.noVMs()
}

// The VM of --rm goes even when the client is gone.
func TestKilledClient(t *testing.T) {
	r := newRig(t)
	p := r.start("run", "--rm", "--name", "box", "--", "sh", "-c", "echo ready; hang")
	p.line("ready")
	waiting := r.start("vm", "wait", "box")
	r.until(`wait of vm "box"`)
	p.signal(syscall.SIGKILL)
	waiting.line("box deleted")
	waiting.ends(0)
	p.ends(-1)
	r.noVMs()
}

func TestDaemonDiesUnderACommand(t *testing.T) {
	r := newRig(t)
	r.ok("vm", "create", "--name", "box")
	p := r.start("exec", "box", "--", "sh", "-c", "echo ready; hang")
	p.line("ready")
	if err := killDaemonOf(r.state); err != nil {
		t.Fatal(err)
	}
	p.ends(125)
	if text := p.stderr.String(); !strings.HasPrefix(text, "error: ") || !strings.Contains(text, "lost") {
		t.Errorf("stderr: %s", text)
	}
	// The VM is found again.
	if out := r.ok("exec", "box", "--", "echo", "alive"); out != "alive\n" {
		t.Errorf("exec printed %q", out)
	}
}

// screen is a terminal of the test's own.
type screen struct {
	t             *testing.T
	pty           *os.File
	cmd           *exec.Cmd
	seen          bytes.Buffer
	before, after *unix.Termios // of the terminal, around the program
}

// onScreen runs banger with a terminal for all three streams.
func (r *rig) onScreen(args ...string) *screen { return r.onScreenBut(nil, args...) }

// onScreenBut is onScreen with another stdout, unless that is nil.
func (r *rig) onScreenBut(stdout io.Writer, args ...string) *screen {
	r.t.Helper()
	f, tty, err := pty.Open()
	if err != nil {
		r.t.Fatal(err)
	}
	if err := pty.Setsize(f, &pty.Winsize{Rows: 24, Cols: 100}); err != nil {
		r.t.Fatal(err)
	}
	s := &screen{t: r.t, pty: f, cmd: r.cmd(args...), before: termios(r.t, f)}
	s.cmd.Stdin, s.cmd.Stdout, s.cmd.Stderr = tty, tty, tty
	if stdout != nil {
		s.cmd.Stdout = stdout
	}
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	err = s.cmd.Start()
	_ = tty.Close()
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = s.cmd.Process.Kill(); _ = f.Close() })
	return s
}

// until reads what appears up to something that matches.
func (s *screen) until(pattern string) {
	s.t.Helper()
	want := regexp.MustCompile(pattern)
	buf := make([]byte, 4096)
	for !want.Match(s.seen.Bytes()) {
		n, err := s.pty.Read(buf)
		s.seen.Write(buf[:n])
		if err != nil {
			s.t.Fatalf("%q never appeared, but\n%s", pattern, s.seen.Bytes())
		}
	}
}

func (s *screen) types(text string) {
	s.t.Helper()
	s.seen.Reset()
	if _, err := io.WriteString(s.pty, text); err != nil {
		s.t.Fatal(err)
	}
}

// ends reads the rest and waits for the exit code.
func (s *screen) ends(want int) string {
	s.t.Helper()
	_, _ = io.Copy(&s.seen, s.pty) // ends with EIO
	_ = s.cmd.Wait()
	s.after = termios(s.t, s.pty)
	if got := s.cmd.ProcessState.ExitCode(); got != want {
		s.t.Errorf("exit code %d (%v), want %d; on the screen:\n%s", got, s.cmd.ProcessState, want, s.seen.Bytes())
	}
	return s.seen.String()
}

func TestStagesAreShownOnATerminal(t *testing.T) {
	r := newRig(t)
	s := r.onScreen("vm", "run", "--rm", "--name", "box", "--", "echo", "done")
	text := s.ends(0)
	sizes := strings.Index(text, "box: 1 cpu, 256 MiB memory, 64 MiB disk, image mini")
	// Stages that take no time leave no line, but each is drawn while it lasts.
	stage := strings.Index(text, "  boot ")
	if sizes < 0 || stage < sizes || !strings.Contains(text, "done\r\n") {
		t.Errorf("on the screen:\n%q", text)
	}
	s = r.onScreen("vm", "run", "--name", "stays", "--", "true")
	if text := s.ends(0); !strings.Contains(text, "banger vm delete -f stays") {
		t.Errorf("no reminder:\n%q", text)
	}
	r.ok("vm", "delete", "-f", "stays")
}

// Somebody who takes the output elsewhere wants nothing beside it but what matters.
func TestNoStagesBesideOutputThatGoesElsewhere(t *testing.T) {
	r := newRig(t)
	r.ok("daemon", "stop") // its start is not worth a word either
	for _, args := range [][]string{
		{"vm", "run", "--name", "box", ".", "--", "echo", "done"}, {"vm", "stop", "box"}, {"vm", "start", "box"},
		{"cp", "config.yaml", "box:/tmp/copy"}, {"vm", "delete", "-f", "box"},
	} {
		var out bytes.Buffer
		if text := r.onScreenBut(&out, args...).ends(0); text != "" {
			t.Errorf("banger %v showed %q", args, text)
		}
		if want := "done\n"; args[1] == "run" && out.String() != want {
			t.Errorf("banger %v printed %q", args, out.Bytes())
		}
	}
	var out bytes.Buffer
	if text := r.onScreenBut(&out, "vm", "start", "none").ends(1); !strings.HasPrefix(text, "error: ") {
		t.Errorf("an error went missing: %q", text)
	}
}

func TestInterruptDuringCreate(t *testing.T) {
	r := newRig(t, `BANGER_FAKE={"start_block":true}`)
	for _, args := range [][]string{{"vm", "create"}, {"vm", "run", "--", "true"}, {"vm", "run", "--rm", "--", "true"}} {
		s := r.onScreen(append(args[:2:2], append([]string{"--name", "stuck"}, args[2:]...)...)...)
		s.until(`stuck: 1 cpu`)
		s.types("\x03")
		s.ends(130)
		r.noVMs()
	}
	// --timeout bounds the creation too.
	p := r.start("vm", "run", "--rm", "--timeout", "1s", "--", "true")
	p.ends(124)
	r.noVMs()
}

// Waiting for the system is part of making the VM.
func TestInterruptWhileTheSystemStarts(t *testing.T) {
	r := newRig(t, `BANGER_FAKE={"system_block":true}`)
	for _, args := range [][]string{{"vm", "create", "--wait", "system"}, {"vm", "run", "-d", "--wait", "system"}} {
		s := r.onScreen(args...)
		s.until(`  system`)
		s.types("\x03")
		s.ends(130)
		r.noVMs()
	}
}

func TestSystemThatCannotBeAsked(t *testing.T) {
	r := newRig(t, `BANGER_FAKE={"system_error":"no bus"}`)
	for code, args := range map[int][]string{1: {"vm", "create", "--wait", "system"}, 125: {"vm", "run", "-d", "--wait", "system"}} {
		p := r.start(args...)
		p.ends(code)
		if text := p.stderr.String(); !strings.Contains(text, "no bus") || !strings.Contains(text, "try: ") {
			t.Errorf("banger %v: stderr %q", args, text)
		}
		r.noVMs()
	}
}

func TestCommandOnATerminal(t *testing.T) {
	r := newRig(t)
	r.ok("vm", "create", "--name", "box")
	s := r.onScreen("exec", "-it", "box", "--", "size")
	if text := s.ends(0); !strings.Contains(text, "24 100") {
		t.Errorf("size printed %q", text)
	}
	// While the command runs every byte is its own; signals from elsewhere reach it
	// too; and the terminal is as before afterwards.
	s = r.onScreen("exec", "-t", "box", "--", "sh", "-c", "echo ready; cat")
	s.until("ready")
	if raw := termios(t, s.pty); raw.Lflag&(unix.ICANON|unix.ECHO|unix.ISIG) != 0 {
		t.Errorf("the terminal is not raw while the command runs: %+v", raw)
	}
	s.types("a\x03b\x04c")
	s.until("a\x03b\x04c")
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	s.ends(143)
	if *s.before != *s.after {
		t.Errorf("the terminal was\n%+v and is\n%+v", *s.before, *s.after)
	}
}

// On a terminal in raw mode Ctrl-C belongs to the command, which a frozen VM never
// gives it.
// What an image names gets the terminal that is there, like a shell; an init that it
// names, and the default image, make way for the shell.
func TestImageOnATerminal(t *testing.T) {
	r := newRig(t)
	r.ok("daemon", "stop")
	for name, config := range map[string]string{
		"sized": `{"entrypoint":["sh"],"cmd":["-c","size; exit 4"]}`, "init": `{"cmd":["/sbin/init"]}`,
	} {
		if err := putImage(r.state, "mini", name, config); err != nil {
			t.Fatal(err)
		}
	}
	s := r.onScreen("vm", "run", "--rm", "--image", "sized")
	s.until(`24 100`)
	s.ends(4)
	for _, flags := range [][]string{{"--image", "init"}, {}, {"--image", "sized", "--entrypoint", ""}} {
		s := r.onScreen(append([]string{"vm", "run", "--rm"}, flags...)...)
		s.types("echo in a shell; exit 3\n")
		if text := s.ends(3); !strings.Contains(text, "in a shell") {
			t.Errorf("%v: %q", flags, text)
		}
	}
}

func TestWayOutOfAFrozenVM(t *testing.T) {
	r := newRig(t)
	r.ok("vm", "create", "--name", "box")
	files, err := filepath.Glob(filepath.Join(r.state, "vms", "*", "handles.json"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	text, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	var handles struct {
		VMM struct{ PID int }
	}
	if err := json.Unmarshal(text, &handles); err != nil || handles.VMM.PID <= 1 {
		t.Fatalf("%v in %s", err, text)
	}
	s := r.onScreen("exec", "-t", "box", "--", "sh", "-c", "echo ready; cat")
	s.until("ready")
	// What the VM echoes shows that it is alive.
	for range 4 {
		s.types("\x03")
		s.until("\x03")
	}
	if err := syscall.Kill(handles.VMM.PID, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Kill(handles.VMM.PID, syscall.SIGCONT) }()
	s.types("\x03\x03\x03")
	if text := s.ends(130); !strings.Contains(text, "banger vm kill box") {
		t.Errorf("no way on:\n%s", text)
	}
	if *s.before != *s.after {
		t.Errorf("the terminal was\n%+v and is\n%+v", *s.before, *s.after)
	}
}

func termios(t *testing.T, f *os.File) *unix.Termios {
	t.Helper()
	tio, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return tio
}
