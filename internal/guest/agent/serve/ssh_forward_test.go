package serve

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"golang.org/x/crypto/ssh"

	"banger/internal/guest"
)

// upper is a program that answers what it gets, to the end, in capitals.
func upper(t *testing.T, l net.Listener) {
	t.Helper()
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				all, _ := io.ReadAll(c)
				_, _ = c.Write(bytes.ToUpper(all))
			}()
		}
	}()
}

// ask sends much through a connection and expects it in capitals, with both ends in order.
func ask(t *testing.T, network, addr string) {
	t.Helper()
	c, err := net.Dial(network, addr)
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close()
	payload := bytes.Repeat([]byte("some bytes. "), 200_000)
	go func() {
		_, _ = c.Write(payload)
		_ = c.(interface{ CloseWrite() error }).CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, bytes.ToUpper(payload)) {
		t.Errorf("%s %s: %d bytes of %d came back, %v", network, addr, len(got), len(payload), err)
	}
}

// said is what a program prints, to look at while it runs.
type said struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *said) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(p)
}

func (s *said) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// during runs a client with forwarding while use runs; what the client prints goes to use
// when a session of it has begun.
func (w *sshWorld) during(use func(said string), args ...string) {
	w.t.Helper()
	c := w.command("ssh", append(args, "-o", "ExitOnForwardFailure=yes", "-o", "LogLevel=INFO", "box.vm", "echo ready; cat")...)
	stdin, err1 := c.StdinPipe()
	stdout, err2 := c.StdoutPipe()
	var stderr said
	c.Stderr = &stderr
	if err1 != nil || err2 != nil {
		w.t.Fatal(err1, err2)
	}
	if err := c.Start(); err != nil {
		w.t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err == nil && line == "ready\n" {
		use(stderr.String())
	}
	_ = stdin.Close()
	if werr := c.Wait(); werr != nil || err != nil {
		w.t.Fatalf("%q: %v, %v: %s", args, err, werr, stderr.String())
	}
}

func listenTCP(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	upper(t, l)
	return l
}

func listenUnix(t *testing.T, name string) {
	t.Helper()
	l, err := net.Listen("unix", name)
	if err != nil {
		t.Fatal(err)
	}
	upper(t, l)
}

func TestSSHForwardsPorts(t *testing.T) {
	w := newSSHWorld(t)
	target := listenTCP(t).Addr().String()
	t.Run("local", func(t *testing.T) {
		here := freePort(t)
		w.during(func(string) {
			ask(t, "tcp", here)
			ask(t, "tcp", here)
		}, "-L", here+":"+strings.Replace(target, "127.0.0.1", "localhost", 1))
	})
	t.Run("remote", func(t *testing.T) {
		there := freePort(t)
		w.during(func(string) { ask(t, "tcp", there) }, "-R", there+":"+target)
		if c, err := net.Dial("tcp", there); err == nil {
			_ = c.Close()
			w.settled()
			if c, err = net.Dial("tcp", there); err == nil {
				_ = c.Close()
				t.Error("it is listened on without the client")
			}
		}
	})
	t.Run("remote, any port", func(t *testing.T) {
		w.during(func(said string) {
			port := regexp.MustCompile(`Allocated port (\d+)`).FindStringSubmatch(said)
			if port == nil {
				t.Fatalf("the client says %q", said)
			}
			ask(t, "tcp", "127.0.0.1:"+port[1])
		}, "-R", "0:"+target)
	})
	t.Run("taken", func(t *testing.T) {
		out, err := w.command("ssh", "-o", "ExitOnForwardFailure=yes", "-R", target+":"+target, "box.vm", "true").CombinedOutput()
		if exitCode(err) != 255 {
			t.Errorf("got %v: %s", err, out)
		}
	})
	t.Run("refused", func(t *testing.T) {
		here, nobody := freePort(t), freePort(t)
		w.during(func(string) {
			c, err := net.Dial("tcp", here)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if got, err := io.ReadAll(c); len(got) > 0 || err != nil && !strings.Contains(err.Error(), "reset") {
				t.Errorf("got %q, %v", got, err)
			}
		}, "-L", here+":"+nobody)
	})
	t.Run("dynamic", func(t *testing.T) {
		here := freePort(t)
		w.during(func(string) {
			c, err := net.Dial("tcp", here)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			addr, _ := net.ResolveTCPAddr("tcp", target)
			_, _ = c.Write([]byte{5, 1, 0})
			_, _ = io.ReadFull(c, make([]byte, 2))
			_, _ = c.Write(append([]byte{5, 1, 0, 3, 9}, append([]byte("localhost"), byte(addr.Port>>8), byte(addr.Port))...))
			answer := make([]byte, 10)
			if _, err := io.ReadFull(c, answer); err != nil || answer[1] != 0 {
				t.Fatalf("the proxy says %v, %v", answer, err)
			}
			_, _ = c.Write([]byte("word"))
			_ = c.(*net.TCPConn).CloseWrite()
			if got, err := io.ReadAll(c); string(got) != "WORD" {
				t.Errorf("got %q, %v", got, err)
			}
		}, "-D", here)
	})
}

func TestSSHForwardsSockets(t *testing.T) {
	w := newSSHWorld(t)
	target := filepath.Join(w.dir, "target")
	listenUnix(t, target)
	here, there := filepath.Join(w.dir, "here"), filepath.Join(w.dir, "there")
	w.during(func(string) { ask(t, "unix", here) }, "-L", here+":"+target)
	w.settled()
	for _, before := range []string{"nothing", "a socket that was left"} {
		if before != "nothing" {
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: there, Net: "unix"})
			if err != nil {
				t.Fatal(err)
			}
			l.SetUnlinkOnClose(false)
			_ = l.Close()
		}
		w.during(func(string) {
			ask(t, "unix", there)
			if info, err := os.Stat(there); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%v, %v", info, err)
			}
		}, "-R", there+":"+target)
		w.settled()
		if _, err := os.Lstat(there); !os.IsNotExist(err) {
			t.Errorf("%s: the socket is left: %v", before, err)
		}
	}
	// Neither a file nor a socket in use gives way.
	w.file("file", "content")
	for _, name := range []string{filepath.Join(w.dir, "file"), target} {
		out, err := w.command("ssh", "-o", "ExitOnForwardFailure=yes", "-R", name+":"+target, "box.vm", "true").CombinedOutput()
		if exitCode(err) != 255 {
			t.Errorf("%s: %v %s", name, err, out)
		}
	}
	if got := read(t, filepath.Join(w.dir, "file")); got != "content" {
		t.Errorf("the file holds %q", got)
	}
}

// client is a client of our own, for what the usual ones do not do.
func (w *sshWorld) client() *ssh.Client {
	w.t.Helper()
	conn, err := net.Dial("unix", filepath.Join(w.dir, "s"))
	if err != nil {
		w.t.Fatal(err)
	}
	keys := []string{string(ssh.MarshalAuthorizedKey(w.signer.PublicKey()))}
	if err := guest.OpenSSH(context.Background(), conn, guest.SSH{HostKey: w.seed, ClientKeys: keys}); err != nil {
		w.t.Fatal(err)
	}
	c, channels, requests, err := ssh.NewClientConn(conn, "box.vm", &ssh.ClientConfig{
		User: guest.SSHDefaultUser, Auth: []ssh.AuthMethod{ssh.PublicKeys(w.signer)}, HostKeyCallback: ssh.FixedHostKey(w.host),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	client := ssh.NewClient(c, channels, requests)
	w.t.Cleanup(func() { _ = client.Close() })
	return client
}

// A forward that is cancelled is listened on no more, and can be asked for again.
func TestSSHCancelsForwards(t *testing.T) {
	w := newSSHWorld(t)
	c := w.client()
	sock := filepath.Join(w.dir, "sock")
	for range 3 {
		l, err := c.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		u, err := c.ListenUnix(sock)
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range []net.Listener{l, u} {
			if err := l.Close(); err != nil {
				t.Error(err)
			}
			if conn, err := net.Dial(l.Addr().Network(), l.Addr().String()); err == nil {
				_ = conn.Close()
				t.Errorf("%v is still listened on", l.Addr())
			}
		}
	}
	if _, _, err := c.SendRequest("cancel-tcpip-forward", true, ssh.Marshal(struct {
		Addr string
		Port uint32
	}{"", 1})); err != nil {
		t.Error(err)
	}
	if ok, _, err := c.SendRequest("keepalive@openssh.com", true, nil); !ok || err != nil {
		t.Errorf("keepalive: %v, %v", ok, err)
	}
	if _, _, err := c.SendRequest("no-more-sessions@openssh.com", true, nil); err != nil {
		t.Error(err)
	}
	if _, err := c.NewSession(); err == nil || !strings.Contains(err.Error(), "no more sessions") {
		t.Errorf("a session after that: %v", err)
	}
}

func TestSSHSignals(t *testing.T) {
	w := newSSHWorld(t)
	for _, c := range []struct{ name, want string }{{"TERM", "TERM"}, {"KILL", "KILL"}, {"USR1", ""}} {
		s, err := w.client().NewSession()
		if err != nil {
			t.Fatal(err)
		}
		out, _ := s.StdoutPipe()
		if err := s.Start("trap 'echo caught; exit 9' USR1; echo here; sleep 60 >/dev/null 2>&1 & wait"); err != nil {
			t.Fatal(err)
		}
		_, _ = io.ReadFull(out, make([]byte, 5))
		if err := s.Signal(ssh.Signal(c.name)); err != nil {
			t.Fatal(err)
		}
		err = s.Wait()
		var exit *ssh.ExitError
		switch e, ok := err.(*ssh.ExitError); { //nolint:errorlint // as the package returns it
		case !ok:
			t.Errorf("%s: %v", c.name, err)
		default:
			exit = e
			if exit.Signal() != c.want || c.want == "" && exit.ExitStatus() != 9 {
				t.Errorf("%s: ended with %v", c.name, fmt.Sprint(exit))
			}
		}
	}
}

// A terminal has the client's size, and follows it.
func TestSSHWindow(t *testing.T) {
	w := newSSHWorld(t)
	s := session(t, w.client())
	if err := s.RequestPty("xterm", 33, 101, ssh.TerminalModes{ssh.ECHO: 0}); err != nil {
		t.Fatal(err)
	}
	in, err1 := s.StdinPipe()
	pipe, err2 := s.StdoutPipe()
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	if err := s.Start("stty size; stty -a | grep -o -- '-echo '; read x; stty size"); err != nil {
		t.Fatal(err)
	}
	out := bufio.NewReader(pipe)
	for _, want := range []string{"33 101\r\n", "-echo \r\n"} {
		if line, err := out.ReadString('\n'); line != want {
			t.Fatalf("got %q, %v; want %q", line, err, want)
		}
	}
	// More columns than there can be; the answer says that it has happened.
	ok, err := s.SendRequest("window-change", true, ssh.Marshal(struct{ Cols, Rows, Width, Height uint32 }{70_000, 50, 0, 0}))
	if !ok || err != nil {
		t.Fatalf("window-change: %v, %v", ok, err)
	}
	if _, err := in.Write([]byte("x\n")); err != nil {
		t.Error(err)
	}
	if line, err := out.ReadString('\n'); line != "50 65535\r\n" {
		t.Fatalf("after a change: %q, %v", line, err)
	}
	if err := s.Wait(); err != nil {
		t.Error(err)
	}
}

// The end of a client's input is that of a terminal, too.
func TestSSHTerminalEnd(t *testing.T) {
	w := newSSHWorld(t)
	c := w.command("ssh", "-tt", "box.vm", "cat >/dev/null; echo over")
	c.Stdin = strings.NewReader("line\n")
	if out, err := c.Output(); err != nil || !strings.HasSuffix(string(out), "over\r\n") {
		t.Errorf("got %q, %v", out, err)
	}
}
