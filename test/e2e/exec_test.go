//go:build e2e

package e2e_test

import (
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestExitCodes(t *testing.T) {
	w, v := s.main, sharedVM(t)
	for _, c := range []struct {
		want  int
		texts []string
		args  []string
	}{
		{0, nil, []string{"true"}},
		{1, nil, []string{"false"}},
		{7, nil, []string{"sh", "-c", "exit 7"}},
		{255, nil, []string{"sh", "-c", "exit 255"}},
		{127, []string{"nosuch"}, []string{"nosuch"}},
		{127, []string{"/no/such"}, []string{"/no/such"}},
		{126, []string{"/etc/passwd"}, []string{"/etc/passwd"}},
		{126, []string{"/etc"}, []string{"/etc"}},
		{128 + 15, nil, []string{"sh", "-c", "kill -TERM $$"}},
		{128 + 9, nil, []string{"sh", "-c", "kill -KILL $$"}},
		{128 + 11, nil, []string{"sh", "-c", "kill -SEGV $$"}},
		{128 + 1, nil, []string{"sh", "-c", "kill -HUP $$"}},
	} {
		w.fails(t, c.want, c.texts, append([]string{"exec", v.Name, "--"}, c.args...)...)
	}
	// Without "--" too, and with flags of the command's own.
	if got := w.ok(t, "exec", v.Name, "echo", "-n", "--", "x"); got != "-- x" {
		t.Errorf("echo printed %q", got)
	}
	if got := w.ok(t, "exec", "--user", "root", v.Name, "id", "-u"); got != "0" {
		t.Errorf("id -u printed %q", got)
	}
	w.fails(t, 2, []string{`error: flags go before the VM, got "-u" after it`, "try: banger exec -u ... e2e-shared -- CMD"},
		"exec", v.Name, "-u", "root", "id")
}

func TestTimeout(t *testing.T) {
	w, v := s.main, sharedVM(t)
	w.fails(t, 124, []string{"the command did not end within 1s"}, "exec", "--timeout", "1s", v.Name, "--", "sleep", "1000")
	// A command that does not care about SIGTERM is killed.
	began := time.Now()
	w.fails(t, 124, nil, "exec", "--timeout", "500ms", v.Name, "--", "sh", "-c", "trap '' TERM; while :; do sleep 1; done")
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("the end took %s", took)
	}
	w.fails(t, 3, nil, "exec", "--timeout", "60s", v.Name, "--", "sh", "-c", "exit 3")
}

func TestStreams(t *testing.T) {
	w, v := s.main, sharedVM(t)
	r := w.run(t, "exec", v.Name, "--", "sh", "-c", "echo out; echo err >&2; echo more; echo worse >&2")
	if r.code != 0 || r.stdout != "out\nmore\n" || r.stderr != "err\nworse\n" {
		t.Errorf("the streams are mixed up or carry more than the command's: %q", r)
	}
	every := make([]byte, 256)
	for i := range every {
		every[i] = byte(i)
	}
	cmd := w.command("exec", v.Name, "--", "cat")
	cmd.Stdin = strings.NewReader(string(every))
	if r := call(t, cmd); r.stdout != string(every) {
		t.Errorf("bytes came back changed: %q", r.stdout)
	}
}

func TestStdin(t *testing.T) {
	w, v := s.main, sharedVM(t)
	for _, text := range []string{"", "x", "ten bytes.", strings.Repeat("line\n", 100_000)} {
		cmd := w.command("exec", v.Name, "--", "wc", "-c")
		// A pipe, not a file: its end has to be noticed.
		cmd.Stdin = io.MultiReader(strings.NewReader(text))
		if r := call(t, cmd); r.code != 0 || strings.TrimSpace(r.stdout) != fmt.Sprint(len(text)) {
			t.Errorf("%d bytes of stdin: %s", len(text), r)
		}
	}
	if got := w.exec(t, v, "wc", "-c"); got != "0" {
		t.Errorf("without stdin the command reads %s bytes", got)
	}
	// A command that ends without reading does not wait for the rest.
	cmd := w.command("exec", v.Name, "--", "sh", "-c", "exit 5")
	cmd.Stdin = endless{}
	cmd.WaitDelay = time.Second // the copying into the pipe has no other end
	if err := cmd.Run(); cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != 5 {
		t.Errorf("a command that does not read its stdin: %v", err)
	}
}

// endless is a stream of zeros.
type endless struct{}

func (endless) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestSignalBesideInput sends a signal to a command that does not read its stdin,
// of which more is waiting than any buffer holds.
func TestSignalBesideInput(t *testing.T) {
	w, v := s.main, sharedVM(t)
	cmd := w.command("exec", v.Name, "--", "sh", "-c", `trap 'echo got TERM; exit 7' TERM; echo ready; while :; do sleep 0.1; done`)
	cmd.Stdin, cmd.WaitDelay = endless{}, time.Second
	r := start(t, cmd)
	r.out.expect(t, "ready\n")
	r.signal(t, syscall.SIGTERM)
	r.out.expect(t, "got TERM\n")
	if code := r.wait(t); code != 7 {
		t.Errorf("code %d, want 7; stderr: %s", code, r.err)
	}
}

// TestSignals passes each signal on.
func TestSignals(t *testing.T) {
	w, v := s.main, sharedVM(t)
	for sig, name := range map[syscall.Signal]string{
		syscall.SIGINT: "INT", syscall.SIGHUP: "HUP", syscall.SIGUSR1: "USR1", syscall.SIGQUIT: "QUIT",
	} {
		r := start(t, w.command("exec", v.Name, "--", "sh", "-c",
			fmt.Sprintf(`trap 'echo got %s; exit 9' %s; echo ready; while :; do sleep 0.1; done`, name, name)))
		r.out.expect(t, "ready\n")
		r.signal(t, sig)
		if code := r.wait(t); code != 9 || !strings.Contains(r.out.String(), "got "+name) {
			t.Errorf("%s: code %d, stdout %q, stderr %q", name, code, r.out, r.err)
		}
	}
	r := start(t, w.command("exec", v.Name, "--", "sh", "-c", "echo ready; exec sleep 1000"))
	r.out.expect(t, "ready\n")
	r.signal(t, syscall.SIGINT)
	if code := r.wait(t); code != 130 {
		t.Errorf("a command that SIGINT ends: code %d, want 130; stderr %q", code, r.err)
	}
	// Three in a row give up on a command that goes on. Each is sent when the one
	// before has arrived, because signals that are pending merge.
	r = start(t, w.command("exec", v.Name, "--", "sh", "-c", "trap 'echo int' INT; trap '' HUP PIPE; echo ready; while :; do sleep 0.05; done"))
	r.out.expect(t, "ready\n")
	for range 20 {
		r.signal(t, syscall.SIGINT)
		if !r.out.await(t, "int\n") {
			break
		}
	}
	if code := r.wait(t); code != 130 {
		t.Errorf("giving up: code %d, want 130; stderr %q", code, r.err)
	}
	w.exec(t, v, "sh", "-c", "pkill -KILL -f '^sh -c trap .echo int' || true")
}

// TestHangUp kills the client: what it had started gets SIGHUP. (Its streams are
// gone by then, so a shell that reports the end of a child gets SIGPIPE too.)
func TestHangUp(t *testing.T) {
	w, v := s.main, sharedVM(t)
	r := start(t, w.command("exec", v.Name, "--", "sh", "-c",
		`rm -f /home/dev/hup; exec 9>/home/dev/lock; flock 9; trap '' PIPE; trap 'echo hup > /home/dev/hup; exit' HUP; echo ready; sleep 1000 9>&- & wait`))
	r.out.expect(t, "ready\n")
	r.signal(t, syscall.SIGKILL)
	r.wait(t)
	if got := w.exec(t, v, "flock", "--timeout", "30", "/home/dev/lock", "cat", "/home/dev/hup"); got != "hup" {
		t.Errorf("the command noted %q", got)
	}
}

func TestUsersAndDirectories(t *testing.T) {
	w, v := s.main, sharedVM(t)
	ids := []string{"sh", "-c", `echo "$(id -un 2>/dev/null) $(id -u) $(id -g) $HOME $(pwd)"`}
	dev := w.exec(t, v, ids...)
	if !strings.HasPrefix(dev, "dev ") || !strings.HasSuffix(dev, " /home/dev /home/dev") {
		t.Errorf("by default commands run as %q", dev)
	}
	for _, c := range []struct{ user, want string }{
		{"root", "root 0 0 /root /root"},
		{"dev", dev},
		{"0", "root 0 0 /root /root"},
		{"dev:0", ""},
	} {
		got := w.ok(t, append([]string{"exec", "--user", c.user, v.Name, "--"}, ids...)...)
		if c.want != "" && got != c.want {
			t.Errorf("user %s: %q, want %q", c.user, got, c.want)
		}
	}
	if got := w.ok(t, "exec", "--user", "4321:1234", v.Name, "--", "sh", "-c", "echo $(id -u) $(id -g)"); got != "4321 1234" {
		t.Errorf("user 4321:1234: %q", got)
	}
	if got := w.ok(t, "exec", "--user", "dev", v.Name, "--", "id", "-G"); got == "0" || strings.HasPrefix(got, "0 ") {
		t.Errorf("dev has the groups %q", got)
	}
	r := w.run(t, "exec", "--user", "nobodyhere", v.Name, "--", "true")
	if r.code == 0 || !strings.Contains(r.stderr, "nobodyhere") {
		t.Errorf("a user that is not there: %s", r)
	}
	if got := w.ok(t, "exec", "--workdir", "/usr/lib", v.Name, "--", "pwd"); got != "/usr/lib" {
		t.Errorf("workdir /usr/lib: %q", got)
	}
	r = w.run(t, "exec", "--workdir", "/no/such/dir", v.Name, "--", "pwd")
	if r.code == 0 || !strings.Contains(r.stderr, "/no/such/dir") {
		t.Errorf("a directory that is not there: %s", r)
	}
	if got := w.exec(t, v, "sudo", "-n", "id", "-u"); got != "0" {
		t.Errorf("sudo gives uid %q", got)
	}
}

func TestEnvironment(t *testing.T) {
	w, v := s.main, sharedVM(t)
	file := filepath.Join(t.TempDir(), "env")
	if err := os.WriteFile(file, []byte("# comment\n\nFROM_FILE=one two\nBOTH=file\nE2E_INHERITED\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := w.command("exec", "--env", "A=1", "--env", "EMPTY=", "--env", "BOTH=flag", "--env", "E2E_UNSET", "--env-file", file,
		v.Name, "--", "sh", "-c", `echo "$A|${EMPTY-unset}|$BOTH|${E2E_UNSET-unset}|$FROM_FILE|$E2E_INHERITED"`)
	cmd.Env = append(cmd.Env, "E2E_INHERITED=yes")
	if r := call(t, cmd); r.stdout != "1||flag|unset|one two|yes\n" {
		t.Errorf("the environment: %s", r)
	}
	env := w.exec(t, v, "env")
	for _, want := range []string{"PATH=", "HOME=/home/dev", "USER=dev"} {
		if !strings.Contains(env, want) {
			t.Errorf("the environment lacks %s:\n%s", want, env)
		}
	}
	if strings.Contains(env, "BANGER_STATE_DIR") {
		t.Errorf("the host's environment leaks into the guest:\n%s", env)
	}
}

// TestBulk sends 200 MB through a command and compares the checksums.
func TestBulk(t *testing.T) {
	const size = 200_000_000
	w, v := s.main, sharedVM(t)
	sent, received := sha256.New(), sha256.New()
	cmd := w.command("exec", v.Name, "--", "cat")
	cmd.Stdin = io.TeeReader(io.LimitReader(rand.NewChaCha8([32]byte{1}), size), sent)
	cmd.Stdout = received
	began := time.Now()
	if r := call(t, cmd); r.code != 0 {
		t.Fatal(r)
	}
	took := time.Since(began)
	t.Logf("%d MB there and back in %s: %.0f MB/s", size/1_000_000, took.Round(time.Millisecond), size/1e6/took.Seconds())
	if a, b := fmt.Sprintf("%x", sent.Sum(nil)), fmt.Sprintf("%x", received.Sum(nil)); a != b {
		t.Errorf("sent %s, received %s", a, b)
	}
}

// TestOutputThatNobodyTakes holds the command back instead of buffering.
func TestOutputThatNobodyTakes(t *testing.T) {
	w, v := s.main, sharedVM(t)
	r, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := w.command("exec", v.Name, "--", "sh", "-c", "head -c 50000000 /dev/zero; echo done >&2")
	said := newOutput()
	cmd.Stdout, cmd.Stderr = out, said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = out.Close()
	// Another command is not held back by it.
	if got := w.exec(t, v, "echo", "beside"); got != "beside" {
		t.Errorf("beside a stuck command: %q", got)
	}
	n, err := io.Copy(io.Discard, r)
	if err != nil || n != 50_000_000 {
		t.Errorf("%d bytes came out, error %v", n, err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v: %s", err, said)
	}
}

// TestTerminal resizes a terminal and types Ctrl-C.
func TestTerminal(t *testing.T) {
	w, v := s.main, sharedVM(t)
	r := startTTY(t, w.command("exec", "-t", v.Name, "--", "sh", "-c",
		`trap 'stty size' WINCH; tty; stty size; echo "$TERM"; while :; do sleep 0.1; done`), 33, 101)
	r.out.expect(t, "/dev/pts/")
	r.out.expect(t, "33 101")
	r.out.expect(t, "xterm")
	r.resize(t, 44, 132)
	r.out.expect(t, "44 132")
	r.send(t, "\x03")
	if code := r.wait(t); code != 130 {
		t.Errorf("Ctrl-C: code %d, want 130:\n%s", code, r.out)
	}
}

// TestShell works on a terminal and without one.
func TestShell(t *testing.T) {
	w, v := s.main, sharedVM(t)
	r := startTTY(t, w.command("shell", v.Name), 24, 80)
	r.out.expect(t, "$") // a prompt
	r.send(t, "echo sum $((40 + 2)); stty size; exit 6\r")
	r.out.expect(t, "sum 42")
	r.out.expect(t, "24 80")
	if code := r.wait(t); code != 6 {
		t.Errorf("code %d, want 6:\n%s", code, r.out)
	}
	cmd := w.command("shell", "--user", "root", v.Name)
	cmd.Stdin = strings.NewReader("id -u; pwd; exit 4\n")
	if r := call(t, cmd); r.code != 4 || r.stdout != "0\n/root\n" {
		t.Errorf("a shell that reads its commands: %s", r)
	}
}
