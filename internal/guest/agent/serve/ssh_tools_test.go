package serve

import (
	"bufio"
	"crypto/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// makeTree makes files that copying could get wrong, and returns their directory.
func makeTree(t *testing.T, dir, odd string) string {
	t.Helper()
	src := filepath.Join(dir, "src")
	if err := os.MkdirAll(filepath.Join(src, "sub dir"), 0o755); err != nil {
		t.Fatal(err)
	}
	big := make([]byte, 3<<20+17)
	_, _ = rand.Read(big)
	for name, content := range map[string][]byte{"empty": nil, "big": big, "sub dir/" + odd: []byte("odd"), "prog": []byte("#!/bin/sh\n")} {
		if err := os.WriteFile(filepath.Join(src, name), content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(src, "prog"), 0o755); err != nil {
		t.Fatal(err)
	}
	return src
}

func sameTree(t *testing.T, a, b string) {
	t.Helper()
	if out, err := exec.Command("diff", "-r", a, b).CombinedOutput(); err != nil {
		t.Errorf("%s and %s differ: %v %s", a, b, err, out)
	}
	one, err1 := os.Stat(filepath.Join(a, "prog"))
	other, err2 := os.Stat(filepath.Join(b, "prog"))
	if err1 != nil || err2 != nil || one.Mode() != other.Mode() {
		t.Errorf("modes are not kept: %v %v", err1, err2)
	}
}

func TestSSHCopies(t *testing.T) {
	const odd = "ä\nb"
	// The program scp, which the second needs in the image, writes line ends in another way.
	for name, c := range map[string]struct{ flag, odd string }{"sftp": {"-s", odd}, "legacy": {"-O", "ä b"}} {
		t.Run("scp "+name, func(t *testing.T) {
			w := newSSHWorld(t)
			src := makeTree(t, w.dir, c.odd)
			in, out := filepath.Join(w.dir, "in"), filepath.Join(w.dir, "out")
			w.run("scp", c.flag, "-rpq", src, "box.vm:"+in)
			sameTree(t, src, in)
			w.run("scp", c.flag, "-rpq", "box.vm:"+in, out)
			sameTree(t, src, out)
		})
	}
	t.Run("rsync", func(t *testing.T) {
		w := newSSHWorld(t)
		src := makeTree(t, w.dir, odd)
		in, out := filepath.Join(w.dir, "in"), filepath.Join(w.dir, "out")
		w.run("rsync", "-a", src+"/", "box.vm:"+in)
		sameTree(t, src, in)
		w.run("rsync", "-a", "box.vm:"+in+"/", out)
		sameTree(t, src, out)
		if got := w.run("rsync", "-ai", src+"/", "box.vm:"+in); got != "" {
			t.Errorf("the second time sends %q", got)
		}
	})
	t.Run("sftp", func(t *testing.T) {
		w := newSSHWorld(t)
		src := makeTree(t, w.dir, odd)
		in := filepath.Join(w.dir, "in")
		c := w.command("sftp", "-q", "-b", "-", "box.vm")
		c.Stdin = strings.NewReader("pwd\nmkdir " + in + "\nput -rp " + src + "/* " + in + "\nrename " + in + "/empty " + in + "/moved\n" +
			"symlink moved " + in + "/link\nln " + in + "/moved " + in + "/hard\nchmod 600 " + in + "/moved\nls -l " + in + "\ndf " + in + "\nrm " + in + "/hard\n")
		got, err := c.CombinedOutput()
		if err != nil || !strings.Contains(string(got), "Remote working directory: "+home(t)) {
			t.Fatalf("%v: %s", err, got)
		}
		if dest, err := os.Readlink(filepath.Join(in, "link")); dest != "moved" {
			t.Errorf("the link leads to %q, %v", dest, err)
		}
		if info, err := os.Stat(filepath.Join(in, "moved")); err != nil || info.Mode() != 0o600 {
			t.Errorf("%v, %v", info, err)
		}
	})
}

// A repository is cloned, and pushed to.
func TestSSHGit(t *testing.T) {
	w := newSSHWorld(t)
	git := func(dir string, args ...string) string {
		return w.run("git", append([]string{"-C", dir, "-c", "user.name=n", "-c", "user.email=e@x", "-c", "init.defaultBranch=main"}, args...)...)
	}
	origin := filepath.Join(w.dir, "origin.git")
	git(w.dir, "init", "-q", "--bare", origin)
	first, second := filepath.Join(w.dir, "first"), filepath.Join(w.dir, "second")
	git(w.dir, "clone", "-q", "ssh://box.vm"+origin, first)
	makeTree(t, first, "ä\nb")
	git(first, "add", ".")
	git(first, "commit", "-qm", "all")
	git(first, "push", "-q", "origin", "HEAD:main")
	git(w.dir, "clone", "-q", "ssh://box.vm"+origin, second)
	sameTree(t, filepath.Join(first, "src"), filepath.Join(second, "src"))
	git(origin, "fsck", "--strict")
}

// Several sessions share a connection, and end with its master.
func TestSSHControlMaster(t *testing.T) {
	w := newSSHWorld(t)
	sock := filepath.Join(w.dir, "cm")
	if err := w.command("ssh", "-MNf", "-o", "ControlPersist=no", "-S", sock, "box.vm").Run(); err != nil { // it keeps our stdout
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.command("ssh", "-S", sock, "-O", "exit", "box.vm").Run() })
	for range 20 {
		if got := w.run("ssh", "-S", sock, "box.vm", "echo one"); got != "one\n" {
			t.Errorf("got %q", got)
		}
	}
	w.run("ssh", "-S", sock, "-O", "check", "box.vm")
	w.run("ssh", "-S", sock, "-O", "exit", "box.vm")
}

// Programs of the guest use the client's agent, through a socket that is the user's alone
// and goes with the connection.
func TestSSHAgentForwarding(t *testing.T) {
	w := newSSHWorld(t)
	agent := filepath.Join(w.dir, "agent")
	daemon := w.command("ssh-agent", "-D", "-a", agent)
	said, err := daemon.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = daemon.Process.Kill()
		_ = daemon.Wait()
	})
	with := func(name string, args ...string) string {
		c := w.command(name, args...)
		c.Env = append(c.Env, "SSH_AUTH_SOCK="+agent)
		out, err := c.CombinedOutput()
		if err != nil {
			t.Fatalf("%s %q: %v %s", name, args, err, out)
		}
		return string(out)
	}
	if _, err := bufio.NewReader(said).ReadString('\n'); err != nil { // it listens
		t.Fatal(err)
	}
	with("ssh-add", "-q", filepath.Join(w.dir, "id"))
	out := with("ssh", "-A", "box.vm", "ssh-add -l; ssh-add -l; stat -c '%a %U' $SSH_AUTH_SOCK $(dirname $SSH_AUTH_SOCK); echo $SSH_AUTH_SOCK")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if len(lines) != 5 || !strings.Contains(lines[0], "ED25519") || lines[0] != lines[1] || lines[2] != "600 "+w.login || lines[3] != "700 "+w.login {
		t.Fatalf("got %q", out)
	}
	w.settled()
	if _, err := os.Stat(filepath.Dir(lines[4])); !os.IsNotExist(err) {
		t.Errorf("the socket's directory is left: %v", err)
	}
	if got := w.run("ssh", "-a", "box.vm", "echo none${SSH_AUTH_SOCK_OF_SESSION}"); got != "none\n" {
		t.Errorf("got %q", got)
	}
}
