package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"banger/internal/guest"
	"banger/internal/paths"
)

// sshGuest is a guest with an OpenSSH server, as like the VM that banger is
// measured with as can be: the same image, kernel, shape and QEMU, its init system
// settled. It is set up to make ssh look good:
//
//   - QEMU is started by hand with a tap for its network, so that nothing of
//     banger is on the way to sshd; see wire for what happens without root. A relay
//     through banger would have added its cost to ssh.
//   - The server looks up no names, asks neither PAM nor Kerberos, and prints no
//     message of the day; the key exchange is the cheapest that both sides have.
//   - The client knows key and host beforehand, asks no agent and reads no
//     configuration.
//   - For copies, cipher and protocol are the ones that are fastest here.
type sshGuest struct {
	vm     *handVM
	wire   *wire
	user   string
	keys   string // directory of the keys
	cipher string // empty: ssh's choice
	legacy bool   // scp is faster with its old protocol
}

const (
	sshdConfig = `HostKey /etc/ssh/bench_host
AuthorizedKeysFile /etc/ssh/bench_authorized
UsePAM no
UseDNS no
GSSAPIAuthentication no
PasswordAuthentication no
KbdInteractiveAuthentication no
PrintMotd no
PrintLastLog no
X11Forwarding no
MaxStartups 100
Subsystem sftp internal-sftp
`
	// An account whose password is locked counts as locked as a whole when PAM is
	// not asked; '*' is no password, but not locked.
	sshdInstall = `set -e
export DEBIAN_FRONTEND=noninteractive
apt-get update
apt-get install -y --no-install-recommends openssh-server rsync git
usermod -p '*' "$1"
install -m 600 /tmp/bench-ssh/host /etc/ssh/bench_host
install -m 644 /tmp/bench-ssh/user.pub /etc/ssh/bench_authorized
install -m 644 /tmp/bench-ssh/sshd_config /etc/ssh/sshd_config
rm -rf /tmp/bench-ssh /etc/ssh/sshd_config.d
sshd -t
systemctl enable ssh
`
)

// sshServer is the guest with sshd, booted when it is first needed.
func (l *lab) sshServer(ctx context.Context) (*sshGuest, error) {
	if l.ssh != nil {
		return l.ssh, nil
	}
	vm, err := l.settled(ctx)
	if err != nil {
		return nil, err
	}
	t, err := vm.template(ctx)
	if err != nil {
		return nil, err
	}
	s := &sshGuest{user: vm.user, keys: filepath.Join(l.cache, "ssh")}
	kept := filepath.Join(s.keys, "root-git-"+vm.ImageID+".qcow2")
	if _, err := os.Stat(kept); err != nil {
		l.say("  making a guest with sshd (once)")
		if err := l.installSSHD(ctx, s, kept); err != nil {
			return nil, fmt.Errorf("make a guest with sshd: %w", err)
		}
	}
	dir := filepath.Join(l.scratch, "ssh")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	if err := copyFile(kept, filepath.Join(dir, paths.RootDiskFile)); err != nil {
		return nil, err
	}
	if s.wire, err = newWire(); err != nil {
		return nil, err
	}
	l.later(func(context.Context) error { s.wire.close(); return nil })
	netdev, files := s.wire.netdev(firstExtra)
	if s.vm, err = boot(ctx, s.wire.thread, t.with(netdev), dir, files...); err != nil {
		return nil, err
	}
	l.later(func(context.Context) error { s.vm.kill(); return nil })
	conf := guest.Configure{Hostname: "bench-ssh", Net: &guestNet, User: s.user}
	if err := s.vm.call(ctx, guest.Request{Kind: guest.KindConfigure, Configure: &conf}); err != nil {
		return nil, err
	}
	if err := s.vm.call(ctx, guest.Request{Kind: guest.KindWaitSystem}); err != nil {
		return nil, err
	}
	key, err := os.ReadFile(filepath.Join(s.keys, "server", "host.pub"))
	if err != nil {
		return nil, err
	}
	known := fmt.Appendf(nil, "bench %s", key) // HostKeyAlias
	if err := os.WriteFile(s.knownHosts(), known, 0o600); err != nil {
		return nil, err
	}
	if _, err := s.wire.thread.timed(s.ssh(ctx, "true")); err != nil {
		return nil, err
	}
	l.ssh = s
	return s, nil
}

// installSSHD makes the keys, installs the server in a VM of banger's, and keeps
// that VM's disk.
func (l *lab) installSSHD(ctx context.Context, s *sshGuest, kept string) (err error) {
	server := filepath.Join(s.keys, "server") // what goes into the guest
	if err := errors.Join(os.RemoveAll(s.keys), os.MkdirAll(server, 0o700)); err != nil {
		return err
	}
	for _, file := range []string{filepath.Join(server, "host"), filepath.Join(s.keys, "user")} {
		if _, err := timed(exec.CommandContext(ctx, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "bench", "-f", file)); err != nil {
			return err
		}
	}
	err = errors.Join(copyFile(filepath.Join(s.keys, "user.pub"), filepath.Join(server, "user.pub")),
		os.WriteFile(filepath.Join(server, "sshd_config"), []byte(sshdConfig), 0o600))
	if err != nil {
		return err
	}
	vm, err := l.create(ctx, "bench-sshd")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, vm.remove(context.WithoutCancel(ctx))) }()
	if _, err := output(vm.cli(ctx, "cp", server, vm.Name+":/tmp/bench-ssh")); err != nil {
		return err
	}
	if _, err := output(vm.cli(ctx, "exec", "--user", "root", vm.Name, "--", "sh", "-c", sshdInstall, "sh", s.user)); err != nil {
		return err
	}
	if _, err := output(vm.cli(ctx, "vm", "stop", vm.Name)); err != nil {
		return err
	}
	return os.Link(filepath.Join(vm.Dir, paths.RootDiskFile), kept)
}

// copyFile copies what a file holds.
func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// freePort is a port of the loopback that nobody uses. Should somebody take it
// before QEMU does, QEMU says so.
func freePort() (int, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer listener.Close()
	return listener.Addr().(*net.TCPAddr).Port, nil
}

func (s *sshGuest) knownHosts() string { return filepath.Join(s.keys, "known_hosts") }

// options are what ssh and scp have in common.
func (s *sshGuest) options() []string {
	o := []string{"-F", "none", "-i", filepath.Join(s.keys, "user"), "-q"}
	for _, option := range []string{
		"HostKeyAlias=bench", "UserKnownHostsFile=" + s.knownHosts(), "GlobalKnownHostsFile=none", "StrictHostKeyChecking=yes",
		"UpdateHostKeys=no", "CheckHostIP=no", "AddressFamily=inet", "BatchMode=yes",
		"IdentitiesOnly=yes", "IdentityAgent=none", "PreferredAuthentications=publickey",
		"GSSAPIAuthentication=no", "ControlMaster=no", "ControlPath=none", "Compression=no",
		"KexAlgorithms=curve25519-sha256", "HostKeyAlgorithms=ssh-ed25519",
	} {
		o = append(o, "-o", option)
	}
	if s.cipher != "" {
		o = append(o, "-c", s.cipher)
	}
	return o
}

// ssh runs a command of the remote shell's over a connection of its own.
func (s *sshGuest) ssh(ctx context.Context, command string) *exec.Cmd {
	address, port := s.wire.server()
	args := append(s.options(), "-p", strconv.Itoa(port), s.user+"@"+address, command)
	return exec.CommandContext(ctx, "ssh", args...)
}

// scp copies a file to the home directory there.
func (s *sshGuest) scp(ctx context.Context, file, name string) *exec.Cmd {
	address, port := s.wire.server()
	args := append(s.options(), "-P", strconv.Itoa(port))
	if s.legacy {
		args = append(args, "-O")
	}
	return exec.CommandContext(ctx, "scp", append(args, file, s.user+"@"+address+":"+name)...)
}

// exec runs a command through the agent: what is not measured need not be ssh.
func (s *sshGuest) exec(ctx context.Context, args ...string) (string, error) {
	return s.vm.exec(ctx, s.user, nil, args...)
}

func (s *sshGuest) describe() string {
	out, err := exec.Command("ssh", "-V").CombinedOutput()
	if err != nil {
		return ""
	}
	d := strings.TrimSpace(string(out)) + ", " + s.wire.String() + ", no PAM, curve25519"
	if s.cipher != "" {
		d += ", " + s.cipher
	}
	if s.legacy {
		d += ", scp -O"
	}
	return d
}
