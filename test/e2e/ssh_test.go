//go:build e2e

package e2e_test

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// sshConfig is the configuration that real clients find VMs by.
func (w *world) sshConfig(t *testing.T) string {
	t.Helper()
	tool(t, "ssh")
	config, _, _ := strings.Cut(w.ok(t, "ssh-config"), "\n")
	return config
}

// client is a program of OpenSSH, or one that uses it.
func (w *world) client(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	config := w.sshConfig(t)
	switch name {
	case "ssh", "scp", "sftp":
		args = append([]string{"-F", config, "-o", "BatchMode=yes"}, args...)
	}
	c := exec.Command(tool(t, name), args...)
	c.Env = append(append([]string(nil), w.env...), "GIT_SSH_COMMAND=ssh -F '"+config+"'", "RSYNC_RSH=ssh -F '"+config+"'", "GIT_CONFIG_GLOBAL=/dev/null")
	return c
}

// ssh runs such a program, which must succeed, and returns its trimmed stdout.
func (w *world) ssh(t *testing.T, name string, args ...string) string {
	t.Helper()
	r := call(t, w.client(t, name, args...))
	if r.code != 0 {
		t.Fatalf("%s %s", name, r)
	}
	return strings.TrimSpace(r.stdout)
}

// imageUser is the default user of the usual image.
const imageUser = "dev"

func TestSSH(t *testing.T) {
	w, v := s.main, sharedVM(t)
	host := v.Name + ".vm"
	if got := w.ssh(t, "ssh", host, "hostname; id -un; pwd"); got != v.Name+"\n"+imageUser+"\n/home/"+imageUser {
		t.Errorf("a session printed %q", got)
	}
	if got := w.ssh(t, "ssh", "root@"+host, "id -u; pwd"); got != "0\n/root" {
		t.Errorf("a session of root's printed %q", got)
	}
	r := call(t, w.client(t, "ssh", host, "echo out; echo err >&2; exit 7"))
	if r.code != 7 || r.stdout != "out\n" || r.stderr != "err\n" {
		t.Errorf("%s", r)
	}
	if got := w.ok(t, "vm", "ssh", v.Name, "--", "echo by banger"); got != "by banger" {
		t.Errorf("vm ssh printed %q", got)
	}
	payload := make([]byte, 32<<20)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(payload)
	for name, c := range map[string]*exec.Cmd{
		"ssh": w.client(t, "ssh", host, "cat"), "vm ssh": w.command("vm", "ssh", v.Name, "--", "cat"),
	} {
		h := sha256.New()
		c.Stdin, c.Stdout = bytes.NewReader(payload), h
		if r := call(t, c); r.code != 0 || fmt.Sprintf("%x", h.Sum(nil)) != fmt.Sprintf("%x", sha256.Sum256(payload)) {
			t.Errorf("%s: bytes came back changed: %s", name, r)
		}
	}
	tty := w.client(t, "ssh", "-tt", host, "stty size; tty; echo $TERM")
	if r := call(t, tty); r.code != 0 || !strings.Contains(r.stdout, "/dev/pts/") {
		t.Errorf("with a terminal: %s", r)
	}
	r = call(t, w.client(t, "ssh", "nosuch@"+host, "true"))
	if r.code != 255 || !strings.Contains(r.stderr, `banger: the image has no user "nosuch"`) {
		t.Errorf("an unknown user: %s", r)
	}
}

func TestSSHCopies(t *testing.T) {
	w, v := s.main, sharedVM(t)
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree")
	if err := os.Mkdir(tree, 0o755); err != nil {
		t.Fatal(err)
	}
	sampleTree(t, tree)
	for _, link := range []string{"link", "sub/up", "dangling", "absolute"} {
		if err := os.Remove(filepath.Join(tree, link)); err != nil { // scp follows them
			t.Fatal(err)
		}
	}
	want := describe(t, tree)
	place := v.Name + ".vm:/tmp/e2e-ssh"
	defer w.execRoot(t, v, "rm", "-rf", "/tmp/e2e-ssh")
	w.ssh(t, "scp", "-rpq", tree, place)
	compare(t, "by scp", describeGuest(t, w, v, "/tmp/e2e-ssh"), want)
	back := filepath.Join(dir, "back")
	w.ssh(t, "scp", "-rpq", place, back)
	compare(t, "and back", describe(t, back), want)
	if got := w.execRoot(t, v, "stat", "-c", "%U", "/tmp/e2e-ssh/plain.txt"); got != imageUser {
		t.Errorf("what came by scp belongs to %s", got)
	}
	batch := w.client(t, "sftp", "-b", "-", v.Name+".vm")
	batch.Stdin = strings.NewReader("cd /tmp/e2e-ssh\nrename plain.txt moved\nsymlink moved sym\nls -l\nget moved " + dir + "/moved\n")
	if r := call(t, batch); r.code != 0 {
		t.Errorf("sftp: %s", r)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "moved")); string(got) != "plain\n" {
		t.Errorf("sftp brought %q, %v", got, err)
	}
	if got := w.exec(t, v, "readlink", "/tmp/e2e-ssh/sym"); got != "moved" {
		t.Errorf("the link leads to %q", got)
	}
	if r := w.run(t, "exec", v.Name, "--", "rsync", "--version"); r.code == 0 {
		w.ssh(t, "rsync", "-a", "--delete", tree+"/", place)
		compare(t, "by rsync", describeGuest(t, w, v, "/tmp/e2e-ssh"), want)
	} else {
		t.Log("the image has no rsync")
	}
	if r := w.run(t, "exec", v.Name, "--", "git", "--version"); r.code != 0 {
		t.Log("the image has no git")
		return
	}
	defer w.execRoot(t, v, "rm", "-rf", "/tmp/e2e-git")
	w.exec(t, v, "git", "init", "-q", "--bare", "/tmp/e2e-git")
	clone := filepath.Join(dir, "clone")
	w.ssh(t, "git", "clone", "-q", "ssh://"+v.Name+".vm/tmp/e2e-git", clone)
	for _, args := range [][]string{
		{"commit", "-q", "--allow-empty", "-m", "one"}, {"push", "-q", "origin", "HEAD:main"},
	} {
		w.ssh(t, "git", append([]string{"-C", clone, "-c", "user.name=n", "-c", "user.email=e@x"}, args...)...)
	}
	if got, want := w.exec(t, v, "git", "-C", "/tmp/e2e-git", "rev-parse", "main"), w.ssh(t, "git", "-C", clone, "rev-parse", "HEAD"); got != want {
		t.Errorf("pushed was %s, there is %s", want, got)
	}
}

// A port of the guest leads to a program here, and a port here to that port of the guest.
func TestSSHForwards(t *testing.T) {
	w, v := s.main, sharedVM(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
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
	there, here, sock := freePort(t), freePort(t), filepath.Join(t.TempDir(), "sock")
	agent := filepath.Join(t.TempDir(), "agent")
	daemon := exec.Command(tool(t, "ssh-agent"), "-D", "-a", agent)
	said, err := daemon.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = daemon.Process.Kill()
		_ = daemon.Wait()
	}()
	if _, err := bufio.NewReader(said).ReadString('\n'); err != nil { // it listens
		t.Fatal(err)
	}
	c := w.client(t, "ssh", "-A", "-o", "ExitOnForwardFailure=yes", "-R", "127.0.0.1:"+there+":"+l.Addr().String(),
		"-L", "127.0.0.1:"+here+":localhost:"+there, "-L", sock+":/tmp/e2e-ssh-sock", "-R", "/tmp/e2e-ssh-sock:"+l.Addr().String(),
		v.Name+".vm", `stat -c '%F %U %a' "$SSH_AUTH_SOCK" /tmp/e2e-ssh-sock; ssh-add -l; exec cat`)
	c.Env = append(c.Env, "SSH_AUTH_SOCK="+agent)
	stdin, err1 := c.StdinPipe()
	stdout, err2 := c.StdoutPipe()
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	c.Stderr = os.Stderr
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	out := bufio.NewReader(stdout)
	for range 2 {
		if line, err := out.ReadString('\n'); line != "socket "+imageUser+" 600\n" {
			t.Fatalf("the guest says %q, %v", line, err)
		}
	}
	if line, err := out.ReadString('\n'); line != "The agent has no identities.\n" {
		t.Errorf("asked for its keys the agent says %q, %v", line, err)
	}
	for network, addr := range map[string]string{"tcp": "127.0.0.1:" + here, "unix": sock} {
		conn, err := net.Dial(network, addr)
		if err != nil {
			t.Fatal(err)
		}
		payload := bytes.Repeat([]byte("words "), 100_000)
		go func() {
			_, _ = conn.Write(payload)
			_ = conn.(interface{ CloseWrite() error }).CloseWrite()
		}()
		got, err := io.ReadAll(conn)
		if err != nil || !bytes.Equal(got, bytes.ToUpper(payload)) {
			t.Errorf("%s: %d bytes of %d came back, %v", network, len(got), len(payload), err)
		}
		_ = conn.Close()
	}
	_ = stdin.Close()
	if err := c.Wait(); err != nil {
		t.Error(err)
	}
	if r := w.run(t, "exec", v.Name, "--", "test", "-e", "/tmp/e2e-ssh-sock"); r.code != 1 {
		t.Errorf("the socket is left: %s", r)
	}
}

// The identity of a VM lasts as long as the VM, needs no network, and is not another's of the
// same name.
func TestSSHIdentity(t *testing.T) {
	w := s.main
	v := w.create(t, "e2e-ssh", "--net", "none")
	config := w.sshConfig(t)
	known := func() string {
		out, err := exec.Command("grep", "^e2e-ssh.vm ", filepath.Join(filepath.Dir(config), "known_hosts")).Output()
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	w.ssh(t, "ssh", "e2e-ssh.vm", "true")
	first := known()
	r := start(t, w.client(t, "ssh", "e2e-ssh.vm", "echo ready; cat; echo alive > /home/dev/alive"))
	r.out.expect(t, "ready\n")
	w.killDaemon(t)
	if code := r.wait(t); code != 255 {
		t.Errorf("ssh whose daemon died: code %d, stderr %q", code, r.err)
	}
	if got := w.ssh(t, "ssh", "e2e-ssh.vm", "hostname"); got != "e2e-ssh" || known() != first {
		t.Errorf("after the daemon died: %q", got)
	}
	w.ok(t, "vm", "stop", v.ID)
	if r := call(t, w.client(t, "ssh", "e2e-ssh.vm", "true")); r.code != 255 || !strings.Contains(r.stderr, `error: vm "e2e-ssh" is stopped`) {
		t.Errorf("a stopped VM: %s", r)
	}
	w.ok(t, "vm", "start", v.ID)
	w.ssh(t, "ssh", "e2e-ssh.vm", "true")
	if known() != first {
		t.Error("a VM that was started again has another key")
	}
	r = start(t, w.client(t, "ssh", "e2e-ssh.vm", "echo ready; exec sleep 1000"))
	r.out.expect(t, "ready\n")
	w.ok(t, "vm", "delete", "--force", v.ID)
	if code := r.wait(t); code != 255 {
		t.Errorf("ssh whose VM was deleted: code %d, stderr %q", code, r.err)
	}
	w.create(t, "e2e-ssh", "--net", "none")
	w.ssh(t, "ssh", "e2e-ssh.vm", "true")
	if known() == first {
		t.Error("another VM of that name has the same key")
	}
}

// Files pass from VM to VM.
func TestCopyBetweenVMs(t *testing.T) {
	w, v := s.main, sharedVM(t)
	other := w.create(t, "e2e-other")
	dir := t.TempDir()
	sampleTree(t, dir)
	want := describe(t, dir)
	defer w.execRoot(t, v, "rm", "-rf", "/tmp/e2e-between")
	w.ok(t, "cp", dir, v.Name+":/tmp/e2e-between")
	w.ok(t, "cp", v.Name+":/tmp/e2e-between", other.Name+":/tmp/made")
	compare(t, "between VMs", describeGuest(t, w, other, "/tmp/made"), want)
	w.execRoot(t, v, "sh", "-c", "cd /tmp/e2e-between && cp /bin/true suid && chmod 4755 suid")
	w.ok(t, "cp", v.Name+":/tmp/e2e-between/suid", other.Name+":/tmp/suid")
	w.ok(t, "cp", "--archive", v.Name+":/tmp/e2e-between/suid", other.Name+":/tmp/suid-kept")
	if got := w.execRoot(t, other, "stat", "-c", "%a %U", "/tmp/suid", "/tmp/suid-kept"); got != "755 "+imageUser+"\n4755 root" {
		t.Errorf("a set-id file arrived as %q", got)
	}
}
