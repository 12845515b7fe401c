package serve

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"banger/internal/guest/agent/proc"
)

// tester is a user of the image who is nobody on the machine of the test.
const tester = 61234

// newUserWorld is a server of root's, with a user of its own.
func newUserWorld(t *testing.T) (w *sshWorld, home string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root serves other users")
	}
	w = makeSSHWorld(t)
	home = filepath.Join(w.dir, "home")
	for _, dir := range []string{home, filepath.Join(w.dir, "etc")} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(home, tester, tester); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(w.dir, 0o711); err != nil {
		t.Fatal(err)
	}
	w.file("etc/passwd", fmt.Sprintf("root:x:0:0::/root:/bin/sh\ntester:x:%d:%d::%s:/bin/sh\nlost:x:%d:0::/none:/none\n", tester, tester, home, tester+1))
	w.file("etc/group", fmt.Sprintf("root:x:0:\ntester:x:%d:\nmore:x:%d:tester\n", tester, tester+5))
	w.server.Users = proc.NewUsers(filepath.Join(w.dir, "etc"))
	w.server.defaults.User = "tester"
	w.listen()
	return w, home
}

func owner(t *testing.T, name string) uint32 {
	t.Helper()
	info, err := os.Lstat(name)
	if err != nil {
		t.Error(err)
		return 0
	}
	return info.Sys().(*syscall.Stat_t).Uid
}

// Whatever a client does, it does as the user who has logged in.
func TestSSHActsAsTheUser(t *testing.T) {
	w, home := newUserWorld(t)
	if got, want := w.run("ssh", "box.vm", "pwd; id -u; id -G"), fmt.Sprintf("%s\n%d\n%d %d\n", home, tester, tester, tester+5); got != want {
		t.Errorf("a session: %q, want %q", got, want)
	}
	if got := w.run("ssh", "root@box.vm", "id -u"); got != "0\n" {
		t.Errorf("a session of root: %q", got)
	}
	w.file("sent", "content")
	w.run("scp", "-s", "-q", filepath.Join(w.dir, "sent"), "box.vm:there")
	if id := owner(t, filepath.Join(home, "there")); id != tester {
		t.Errorf("a file by sftp belongs to %d", id)
	}
	secret := filepath.Join(w.dir, "secret")
	w.file("secret", "of root")
	if out, err := w.command("scp", "-s", "-q", "box.vm:"+secret, filepath.Join(w.dir, "got")).CombinedOutput(); err == nil {
		t.Errorf("sftp reads what is root's: %s", out)
	}
	if out, err := w.command("scp", "-s", "-q", filepath.Join(w.dir, "sent"), "box.vm:"+w.dir+"/new").CombinedOutput(); err == nil {
		t.Errorf("sftp writes what is root's: %s", out)
	}
}

func TestSSHForwardsAsTheUser(t *testing.T) {
	w, home := newUserWorld(t)
	of := filepath.Join(w.dir, "of-root")
	listenUnix(t, of)
	if err := os.Chmod(of, 0o600); err != nil {
		t.Fatal(err)
	}
	here := filepath.Join(w.dir, "here")
	w.during(func(string) {
		c, err := net.Dial("unix", here)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, _ = c.Write([]byte("x"))
		_ = c.(*net.UnixConn).CloseWrite()
		if n, _ := c.Read(make([]byte, 1)); n != 0 {
			t.Error("a socket that is root's answers")
		}
	}, "-L", here+":"+of)
	there := filepath.Join(home, "sock")
	w.during(func(string) {
		if id := owner(t, there); id != tester {
			t.Errorf("the socket belongs to %d", id)
		}
		ask(t, "unix", there)
	}, "-R", there+":"+of)
	for _, forward := range []string{filepath.Join(w.dir, "not-mine") + ":" + of, "127.0.0.1:1:127.0.0.1:1"} {
		if out, err := w.command("ssh", "-o", "ExitOnForwardFailure=yes", "-R", forward, "box.vm", "true").CombinedOutput(); exitCode(err) != 255 {
			t.Errorf("-R %s: %v %s", forward, err, out)
		}
	}
	if os.Geteuid() != 0 {
		t.Error("this thread is the user's still")
	}
}

// Without a shell there is none, but what needs none works.
func TestSSHWithoutShell(t *testing.T) {
	w, _ := newUserWorld(t)
	w.file("sent", "content")
	if err := os.Chmod(w.dir, 0o777); err != nil {
		t.Fatal(err)
	}
	w.run("scp", "-s", "-q", filepath.Join(w.dir, "sent"), "lost@box.vm:"+w.dir+"/got")
	if id := owner(t, filepath.Join(w.dir, "got")); id != tester+1 {
		t.Errorf("the file belongs to %d", id)
	}
	// The user's own shell is not there; the image's is.
	if got := w.run("ssh", "lost@box.vm", "pwd; echo $0"); got != "/\nsh\n" {
		t.Errorf("got %q", got)
	}
}

// A command that cannot be started says so and ends with the code a shell gives.
func TestSSHSaysWhyNot(t *testing.T) {
	w, home := newUserWorld(t)
	w.file("etc/passwd", fmt.Sprintf("tester:x:%d:%d::%s:%s/shell\n", tester, tester, home, w.dir))
	w.file("shell", "no program")
	out, err := w.command("ssh", "box.vm", "true").CombinedOutput()
	if exitCode(err) != 126 || !strings.Contains(string(out), "banger: ") || !strings.Contains(string(out), "try: ") {
		t.Errorf("%v: %s", err, out)
	}
}
