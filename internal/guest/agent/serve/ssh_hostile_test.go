package serve

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"banger/internal/errdefs"
	"banger/internal/guest"
)

// raw opens an SSH connection and leaves what is said on it to the test.
func (w *sshWorld) raw() net.Conn {
	w.t.Helper()
	conn, err := net.Dial("unix", filepath.Join(w.dir, "s"))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = conn.Close() })
	keys := []string{string(ssh.MarshalAuthorizedKey(w.signer.PublicKey()))}
	if err := guest.OpenSSH(context.Background(), conn, guest.SSH{HostKey: w.seed, ClientKeys: keys}); err != nil {
		w.t.Fatal(err)
	}
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	return conn
}

// What is no SSH is the end of that connection and of nothing else.
func TestSSHGarbage(t *testing.T) {
	w := newSSHWorld(t)
	noise := make([]byte, 1<<20)
	_, _ = rand.Read(noise)
	huge := binary.BigEndian.AppendUint32([]byte("SSH-2.0-x\r\n"), 1<<31)
	for name, said := range map[string][]byte{
		"noise": noise, "another protocol": []byte("GET / HTTP/1.1\r\n\r\n"), "old": []byte("SSH-1.5-x\r\n"),
		"no end of line": []byte(strings.Repeat("a", 1<<20)), "a huge packet": huge, "noise after the version": append([]byte("SSH-2.0-x\r\n"), noise...),
		"nothing": nil,
	} {
		conn := w.raw()
		_, _ = conn.Write(said)
		_ = conn.(*net.UnixConn).CloseWrite()
		if _, err := io.Copy(io.Discard, conn); err != nil && !strings.Contains(err.Error(), "reset") {
			t.Errorf("%s: %v", name, err)
		}
	}
	w.settled()
	if got := w.run("ssh", "box.vm", "echo well"); got != "well\n" {
		t.Errorf("after that: %q", got)
	}
}

// Channels are bounded, and those that are closed make room.
func TestSSHManyChannels(t *testing.T) {
	w := newSSHWorld(t)
	c := w.client()
	var open []ssh.Channel
	refused := 0
	for range 5000 {
		ch, requests, err := c.OpenChannel("session", nil)
		var why *ssh.OpenChannelError
		switch {
		case errors.As(err, &why) && why.Reason == ssh.ResourceShortage:
			refused++
		case err != nil:
			t.Fatal(err)
		default:
			go ssh.DiscardRequests(requests)
			open = append(open, ch)
		}
	}
	if len(open) > 512 || len(open) < 256 || refused == 0 {
		t.Errorf("%d are open, %d were refused", len(open), refused)
	}
	for _, ch := range open {
		_ = ch.Close()
	}
	s := session(t, c)
	if out, err := s.Output("echo well"); string(out) != "well\n" {
		t.Errorf("after that: %q, %v", out, err)
	}
}

// session opens one, once the server has room for it.
func session(t *testing.T, c *ssh.Client) *ssh.Session {
	t.Helper()
	for range 10_000 {
		if s, err := c.NewSession(); err == nil {
			return s
		}
	}
	t.Fatal("no session is to be had")
	return nil
}

// A client that reads nothing holds up its command and no other, and what is left of it goes
// with its connection.
func TestSSHClientReadsNothing(t *testing.T) {
	w := newSSHWorld(t)
	c := w.client()
	s := session(t, c)
	pipe, err := s.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	pid := filepath.Join(w.dir, "pid")
	if err := s.Start("echo $$ >" + pid + "; echo begun; exec cat /dev/zero"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(pipe, make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		if out, err := session(t, c).Output("echo well"); string(out) != "well\n" {
			t.Fatalf("beside it: %q, %v", out, err)
		}
	}
	if _, err := os.Stat("/proc/" + strings.TrimSpace(read(t, pid))); err != nil {
		t.Errorf("the command has ended: %v", err)
	}
	_ = c.Close()
	w.settled() // the command gets SIGPIPE
	if _, err := os.Stat("/proc/" + strings.TrimSpace(read(t, pid))); err == nil {
		t.Error("the command is left")
	}
}

// Requests that make no sense are refused, in any order.
func TestSSHBadRequests(t *testing.T) {
	w := newSSHWorld(t)
	c := w.client()
	for _, kind := range []string{"pty-req", "exec", "env", "signal", "window-change", "subsystem", "x11-req", "auth-agent-req@openssh.com", "nonsense"} {
		ch, requests, err := c.OpenChannel("session", nil)
		if err != nil {
			t.Fatal(err)
		}
		go ssh.DiscardRequests(requests)
		ok, err := ch.SendRequest(kind, true, []byte{0xff, 0xff, 0xff, 0xff, 1})
		if err != nil || ok != (kind == "auth-agent-req@openssh.com") {
			t.Errorf("%s: %v, %v", kind, ok, err)
		}
		_ = ch.Close()
	}
	for _, kind := range []string{"direct-tcpip", "direct-streamlocal@openssh.com", "x11", "tun@openssh.com", "forwarded-tcpip"} {
		if _, _, err := c.OpenChannel(kind, []byte{0xff, 0xff, 0xff, 0xff}); err == nil {
			t.Errorf("a channel of type %s is open", kind)
		}
	}
	for _, kind := range []string{"tcpip-forward", "cancel-tcpip-forward", "streamlocal-forward@openssh.com", "cancel-streamlocal-forward@openssh.com", "nonsense"} {
		if ok, _, err := c.SendRequest(kind, true, []byte{0xff}); ok || err != nil {
			t.Errorf("%s: %v, %v", kind, ok, err)
		}
	}
	s := session(t, c)
	if err := s.Setenv("A=B", "x"); err == nil {
		t.Error("a variable with = in its name is taken")
	}
	if err := s.Start("true\x00"); err == nil {
		t.Error("a command with NUL is taken")
	}
	ch, requests, err := c.OpenChannel("session", nil)
	if err != nil {
		t.Fatal(err)
	}
	go ssh.DiscardRequests(requests)
	line := ssh.Marshal(struct{ Line string }{"cat"})
	for i, want := range []bool{true, false} {
		if ok, err := ch.SendRequest("exec", true, line); ok != want || err != nil {
			t.Errorf("command %d of a session: %v, %v", i, ok, err)
		}
	}
	_ = ch.Close()
}

// A request without what it takes is refused with a frame.
func TestSSHBadKeys(t *testing.T) {
	w := newSSHWorld(t)
	good := string(ssh.MarshalAuthorizedKey(w.signer.PublicKey()))
	for name, q := range map[string]guest.SSH{
		"no host key": {ClientKeys: []string{good}}, "half a host key": {HostKey: w.seed[:16], ClientKeys: []string{good}},
		"no client key": {HostKey: w.seed}, "no key at all": {HostKey: w.seed, ClientKeys: []string{"ssh-ed25519 nonsense"}},
		"a long one": {HostKey: w.seed, ClientKeys: []string{strings.Repeat("a", 20<<10)}}, "many": {HostKey: w.seed, ClientKeys: make([]string, 17)},
	} {
		err := guest.OpenSSH(w.context(), w.dial(), q)
		if !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
