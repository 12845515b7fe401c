package serve

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"banger/internal/guest"
	"banger/internal/guest/agent/sftpd"
)

// proxyEnv makes the test's program the ProxyCommand of a real client: it names a socket
// and a file with the client's public key.
const proxyEnv = "BANGER_TEST_SSH_PROXY"

func TestMain(m *testing.M) {
	switch {
	case os.Args[0] == sftpd.Name:
		os.Exit(sftpd.Main(os.Stderr))
	case os.Getenv(proxyEnv) != "":
		if err := proxy(os.Getenv(proxyEnv)); err != nil {
			fmt.Fprintln(os.Stderr, "proxy:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func proxy(dir string) error {
	conn, err := net.Dial("unix", filepath.Join(dir, "s"))
	if err != nil {
		return err
	}
	key, err := os.ReadFile(filepath.Join(dir, "id.pub"))
	if err != nil {
		return err
	}
	seed, err := os.ReadFile(filepath.Join(dir, "seed"))
	if err != nil {
		return err
	}
	if err := guest.OpenSSH(context.Background(), conn, guest.SSH{HostKey: seed, ClientKeys: []string{string(key)}}); err != nil {
		return err
	}
	go func() {
		_, _ = io.Copy(conn, os.Stdin)
		_ = conn.(*net.UnixConn).CloseWrite()
	}()
	_, err = io.Copy(os.Stdout, conn)
	return err
}

// sshWorld is a server that real clients reach.
type sshWorld struct {
	*world
	dir    string
	config string
	login  string
	signer ssh.Signer // the client's
	host   ssh.PublicKey
	seed   []byte

	mu      sync.Mutex // guards clients
	clients int        // that are served
	changed *sync.Cond
}

func newSSHWorld(t testing.TB) *sshWorld {
	t.Helper()
	w := makeSSHWorld(t)
	w.listen()
	return w
}

// makeSSHWorld is one that does not listen yet.
func makeSSHWorld(t testing.TB) *sshWorld {
	t.Helper()
	if _, err := exec.LookPath("ssh"); err != nil {
		t.Skip("no OpenSSH client is installed")
	}
	u, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "ssh") // a short path, as sockets want it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	w := &sshWorld{world: newWorld(t), dir: dir, config: filepath.Join(dir, "config"), login: u.Username}
	w.changed = sync.NewCond(&w.mu)
	seed := make([]byte, guest.HostKeySize)
	_, _ = rand.Read(seed)
	w.seed = seed
	host, err := ssh.NewPublicKey(ed25519.NewKeyFromSeed(seed).Public())
	if err != nil {
		t.Fatal(err)
	}
	w.host = host
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		t.Fatal(err)
	}
	if w.signer, err = ssh.NewSignerFromKey(key); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	w.file("seed", string(seed))
	w.file("id", string(pem.EncodeToMemory(block)))
	w.file("id.pub", string(ssh.MarshalAuthorizedKey(w.signer.PublicKey())))
	w.file("known_hosts", "box.vm "+string(ssh.MarshalAuthorizedKey(host)))
	w.file("config", fmt.Sprintf(`Host *
	ProxyCommand env %s=%s %s
	User %s
	IdentityFile %s/id
	IdentitiesOnly yes
	PreferredAuthentications publickey
	UserKnownHostsFile %s/known_hosts
	StrictHostKeyChecking yes
	LogLevel ERROR
`, proxyEnv, dir, self, guest.SSHDefaultUser, dir, dir))
	return w
}

// listen begins to serve.
func (w *sshWorld) listen() {
	w.t.Helper()
	l, err := net.Listen("unix", filepath.Join(w.dir, "s"))
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			w.count(1)
			go func() {
				defer w.count(-1)
				w.server.Serve(ctx, conn)
			}()
		}
	}()
	w.t.Cleanup(func() {
		_ = l.Close()
		<-done
		cancel()
		w.settled()
	})
}

// count changes how many clients are served.
func (w *sshWorld) count(by int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.clients += by
	w.changed.Broadcast()
}

// settled returns when the server is done with all its clients.
func (w *sshWorld) settled() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.clients > 0 {
		w.changed.Wait()
	}
}

func (w *sshWorld) file(name, content string) {
	w.t.Helper()
	if err := os.WriteFile(filepath.Join(w.dir, name), []byte(content), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// command is a program that finds the server by the test's configuration.
func (w *sshWorld) command(name string, args ...string) *exec.Cmd {
	w.t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		w.t.Skipf("%s is not installed", name)
	}
	switch name {
	case "ssh", "scp", "sftp":
		args = append([]string{"-F", w.config}, args...)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute) // the test's own ends before clean-ups
	w.t.Cleanup(cancel)
	c := exec.CommandContext(ctx, name, args...)
	c.Env = append(os.Environ(), "GIT_SSH_COMMAND=ssh -F "+w.config, "RSYNC_RSH=ssh -F "+w.config, "LC_ALL=C")
	c.WaitDelay = 5 * time.Second
	return c
}

// run runs a program that must succeed, and returns what it prints on stdout.
func (w *sshWorld) run(name string, args ...string) string {
	w.t.Helper()
	c := w.command(name, args...)
	var stderr bytes.Buffer
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		w.t.Fatalf("%s %q: %v\n%s%s", name, args, err, out, stderr.String())
	}
	return string(out)
}

func exitCode(err error) int {
	var e *exec.ExitError
	if errors.As(err, &e) {
		return e.ExitCode()
	}
	if err != nil {
		return -1
	}
	return 0
}

func TestSSHRunsCommands(t *testing.T) {
	w := newSSHWorld(t)
	if got := w.run("ssh", "box.vm", "uname; pwd; id -un"); got != fmt.Sprintf("Linux\n%s\n%s\n", home(t), w.login) {
		t.Errorf("got %q", got)
	}
	for _, c := range []struct {
		line           string
		code           int
		stdout, stderr string
	}{
		{"exit 7", 7, "", ""},
		{"echo out; echo err >&2", 0, "out\n", "err\n"},
		{"printf %s \"$SSH_CONNECTION\"", 0, "UNKNOWN 65535 UNKNOWN 65535", ""},
		{"echo \"$LC_TEST\"", 0, "über\n", ""},
		{"kill -9 $$", 255, "", ""},
		{"cat", 0, "input", ""},
	} {
		cmd := w.command("ssh", "-o", "SetEnv=LC_TEST=über", "box.vm", c.line)
		var stdout, stderr bytes.Buffer
		cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader("input"), &stdout, &stderr
		err := cmd.Run()
		if exitCode(err) != c.code || stdout.String() != c.stdout || stderr.String() != c.stderr {
			t.Errorf("%s: %v, stdout %q, stderr %q", c.line, err, stdout.String(), stderr.String())
		}
	}
}

// freePort is an address that nobody listens on yet.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func home(t *testing.T) string {
	t.Helper()
	u, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	return u.HomeDir
}

// Bytes go in and out unharmed, much more of them than any window holds.
func TestSSHCarriesMuch(t *testing.T) {
	w := newSSHWorld(t)
	payload := make([]byte, 64<<20)
	_, _ = rand.Read(payload)
	want := sha256.Sum256(payload)
	for _, option := range []string{"RekeyLimit=default", "RekeyLimit=3M", "Ciphers=aes256-ctr"} {
		c := w.command("ssh", "-o", option, "box.vm", "cat")
		c.Stdin = bytes.NewReader(payload)
		h := sha256.New()
		c.Stdout = h
		if err := c.Run(); err != nil {
			t.Fatal(option, err)
		}
		if !bytes.Equal(h.Sum(nil), want[:]) {
			t.Errorf("%s: other bytes came back", option)
		}
	}
}

// Clients do not wait for each other.
func TestSSHManyClients(t *testing.T) {
	w := newSSHWorld(t)
	var wg sync.WaitGroup
	for i := range 20 {
		c := w.command("ssh", "box.vm", fmt.Sprintf("cat; exit %d", i))
		c.Stdin = strings.NewReader(fmt.Sprint("client ", i))
		wg.Go(func() {
			if out, err := c.Output(); exitCode(err) != i || string(out) != fmt.Sprint("client ", i) {
				t.Errorf("client %d: %q, %v", i, out, err)
			}
		})
	}
	wg.Wait()
}

// A script that comes on stdin, with forwarding by SOCKS beside it, is what editors do.
func TestSSHScriptOnStdin(t *testing.T) {
	w := newSSHWorld(t)
	c := w.command("ssh", "-T", "-D", freePort(t), "-o", "ConnectTimeout=15", "box.vm", "sh")
	c.Stdin = strings.NewReader("echo start\n(sleep 0; echo in background) &\nwait\necho 'listeningOn==1234=='\nexit 3\n")
	out, err := c.Output()
	if exitCode(err) != 3 || string(out) != "start\nin background\nlisteningOn==1234==\n" {
		t.Errorf("got %q, %v", out, err)
	}
}

func TestSSHTerminal(t *testing.T) {
	w := newSSHWorld(t)
	c := w.command("ssh", "-tt", "box.vm", "test -t 0 -a -t 1 -a -t 2 && echo terminal $TERM; test $(tty) = $SSH_TTY && echo same; stty -a; exit 4")
	c.Env = append(c.Env, "TERM=vt220")
	out, err := c.Output()
	if exitCode(err) != 4 || !strings.Contains(string(out), "terminal vt220\r\nsame\r\n") {
		t.Errorf("got %q, %v", out, err)
	}
}

// The login shell of a session without a command is one.
func TestSSHLoginShell(t *testing.T) {
	w := newSSHWorld(t)
	c := w.command("ssh", "-T", "box.vm")
	c.Stdin = strings.NewReader("echo shell $0\nexit 5\n")
	out, err := c.Output()
	if exitCode(err) != 5 || !strings.Contains(string(out), "shell -") {
		t.Errorf("got %q, %v", out, err)
	}
}

// What a command leaves behind may go on to write; its status comes at once.
func TestSSHWaitsForOutput(t *testing.T) {
	w := newSSHWorld(t)
	fifo := filepath.Join(w.dir, "fifo")
	w.run("mkfifo", fifo)
	c := w.command("ssh", "box.vm", "(read x <"+fifo+"; echo later) & echo now; exit 6")
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 4)
	if _, err := io.ReadFull(out, line); err != nil || string(line) != "now\n" {
		t.Fatalf("got %q, %v", line, err)
	}
	if err := os.WriteFile(fifo, []byte("x\n"), 0); err != nil {
		t.Fatal(err)
	}
	rest, _ := io.ReadAll(out)
	if err := c.Wait(); string(rest) != "later\n" || exitCode(err) != 6 {
		t.Errorf("got %q, %v", rest, err)
	}
}

// A command that does not care for its client lives on, as editors' servers must.
func TestSSHLeavesCommandsAlone(t *testing.T) {
	w := newSSHWorld(t)
	fifo, result := filepath.Join(w.dir, "fifo"), filepath.Join(w.dir, "result")
	w.run("mkfifo", fifo, result)
	c := w.command("ssh", "box.vm", "echo here; read x <"+fifo+"; echo alive >"+result)
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	_ = c.Process.Kill()
	_ = c.Wait()
	if err := os.WriteFile(fifo, []byte("x\n"), 0); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(result); string(got) != "alive\n" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestSSHRefusesOthers(t *testing.T) {
	w := newSSHWorld(t)
	out, err := w.command("ssh", "-o", "LogLevel=INFO", "nobody-by-this-name@box.vm", "true").CombinedOutput()
	if exitCode(err) != 255 || !strings.Contains(string(out), `banger: the image has no user "nobody-by-this-name"`) {
		t.Errorf("an unknown user: %v, %s", err, out)
	}
	w.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(w.dir, "other"))
	w.file("id", read(t, filepath.Join(w.dir, "other")))
	if out, err = w.command("ssh", "box.vm", "true").CombinedOutput(); exitCode(err) != 255 || !strings.Contains(string(out), "Permission denied") {
		t.Errorf("another key: %v, %s", err, out)
	}
	for _, method := range []string{"none", "password", "keyboard-interactive"} {
		out, err := w.command("ssh", "-o", "PreferredAuthentications="+method, "-o", "BatchMode=yes", "box.vm", "true").CombinedOutput()
		if exitCode(err) != 255 {
			t.Errorf("%s: %v, %s", method, err, out)
		}
	}
	// A server with another key is not talked to.
	w.file("seed", strings.Repeat("x", guest.HostKeySize))
	if out, err = w.command("ssh", "box.vm", "true").CombinedOutput(); exitCode(err) != 255 || !strings.Contains(string(out), "Host key verification failed") {
		t.Errorf("another host key: %v, %s", err, out)
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
