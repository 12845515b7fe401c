//go:build e2e

package e2e_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
	"banger/internal/guest"
)

// printed is a writer that says when something was written.
func printed() (guest.ExecIO, <-chan struct{}) {
	begun := make(chan struct{}, 64)
	return guest.ExecIO{Stdout: writerFunc(func(p []byte) (int, error) {
		begun <- struct{}{}
		return len(p), nil
	})}, begun
}

// An image of one static program and not a single directory: FROM scratch.
func TestImageOfOneProgram(t *testing.T) {
	tree := t.TempDir()
	place(t, tool(t, "busybox"), filepath.Join(tree, "busybox"))
	vm := bootBare(t, bareConfig{root: ext4(t, "scratch", tree), modules: true})
	s := vm.connect()
	if r := s.Ready(); !r.RootReady || r.InitSystem != "none" {
		t.Fatalf("ready = %+v", r)
	}
	vm.call(s, guest.Request{Kind: guest.KindConfigure, Configure: &guest.Configure{
		Hostname: "calm-otter", UnixNanos: time.Now().UnixNano(), User: "1234:33", Workdir: "/srv/app",
		Env: []string{"FROM=image"}, Dirs: []string{"/var/lib/data", "/srv/app"},
		Net: &guest.NetConf{Address: "192.168.127.2/24", Gateway: "192.168.127.1", DNS: []string{"192.168.127.1"}},
	}})
	for line, want := range map[string]string{ // the shell of busybox finds its own programs
		"id -u; id -g; id -G; pwd":                      "1234\n33\n33\n/srv/app",
		"echo $HOME $HOSTNAME $FROM $PATH":              "/ calm-otter image /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"cat /etc/hostname /etc/resolv.conf /etc/hosts": "calm-otter\nnameserver 192.168.127.1\n127.0.0.1 localhost # this machine\n127.0.1.1 calm-otter # this machine",
		"stat -c '%a %F' /tmp /var/lib/data":            "1777 directory\n755 directory",
		"for d in proc sys dev run dev/pts dev/shm; do grep -q \" /$d \" /proc/mounts || echo $d; done": "",
		"echo x > /dev/stderr; test -c /dev/null":                                                       "x",
	} {
		st, out, err := vm.exec(s, guest.Exec{Args: []string{"/busybox", "sh", "-c", line}}, nil)
		if err != nil || st.Code != 0 || strings.TrimSpace(out) != want {
			t.Errorf("%s: %+v %v %q, want %q", line, st, err, out, want)
		}
	}
	for name, c := range map[string]struct {
		exec guest.Exec
		want error
		text string
	}{
		"no such program": {guest.Exec{Args: []string{"nosuchprogram"}}, errdefs.ErrNotFound, "nosuchprogram: command not found"},
		"no shell":        {guest.Exec{}, errdefs.ErrNotFound, "has no /bin/sh"},
		"not executable":  {guest.Exec{Args: []string{"/etc/hosts"}}, errdefs.ErrPermission, "/etc/hosts: cannot be executed"},
		"a directory":     {guest.Exec{Args: []string{"/etc"}}, errdefs.ErrPermission, "/etc: cannot be executed"},
		"no such user":    {guest.Exec{Args: []string{"/busybox"}, User: "eve"}, errdefs.ErrInvalidArgument, `no user "eve"`},
	} {
		if _, _, err := vm.exec(s, c.exec, nil); !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) || errdefs.HintOf(err) == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The command ends by the signal it wants, in order, before the machine does.
	conn, err := s.Open(vm.context(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	io, begun := printed()
	ended := make(chan guest.ExitStatus, 1)
	go func() {
		line := `trap 'sync; exit 5' QUIT; echo up; while :; do sleep 1000 & wait; done`
		e := guest.Exec{Args: []string{"/busybox", "sh", "-c", line}, StopSignal: int(unix.SIGQUIT)}
		st, err := guest.RunExec(context.WithoutCancel(t.Context()), conn, guest.Request{Kind: guest.KindExec, Exec: &e}, io)
		if err != nil {
			t.Error(err)
		}
		ended <- st
	}()
	<-begun
	vm.off(s)
	if st := <-ended; st.Code != 5 {
		t.Errorf("the command ended with %+v", st)
	}
}

// An image in which nothing is what it should be boots all the same.
func TestImageThatIsOdd(t *testing.T) {
	tree := t.TempDir()
	busybox(t, tree)
	err := errors.Join(os.RemoveAll(filepath.Join(tree, "tmp")), os.Mkdir(filepath.Join(tree, "sbin"), 0o755))
	for link, to := range map[string]string{"proc": "/bin", "sys": "nowhere", "run": "/var/run", "tmp": "/none/tmp", "etc/hostname": "/late/hostname"} {
		err = errors.Join(err, os.Symlink(to, filepath.Join(tree, link)))
	}
	for _, dir := range []string{"etc/hosts", "etc/resolv.conf"} {
		err = errors.Join(err, os.Mkdir(filepath.Join(tree, dir), 0o755))
	}
	for _, pipe := range []string{"etc/passwd", "etc/group"} {
		err = errors.Join(err, unix.Mkfifo(filepath.Join(tree, pipe), 0o644))
	}
	write(t, filepath.Join(tree, "dev"), "")
	write(t, filepath.Join(tree, "sbin/init"), "#!/usr/bin/python9\n")
	if err = errors.Join(err, os.Chmod(filepath.Join(tree, "sbin/init"), 0o755)); err != nil {
		t.Fatal(err)
	}
	vm := bootBare(t, bareConfig{root: ext4(t, "odd", tree)})
	s := vm.connect()
	if r := s.Ready(); !r.RootReady || r.InitSystem != "none" {
		t.Fatalf("ready = %+v", r)
	}
	vm.call(s, guest.Request{Kind: guest.KindConfigure, Configure: &guest.Configure{
		Hostname: "calm-otter", UnixNanos: time.Now().UnixNano(), User: "1234", Dirs: []string{"/etc/hosts/data", "/etc/hostname/below"},
		Net: &guest.NetConf{Address: "192.168.127.2/24", Gateway: "192.168.127.1", DNS: []string{"192.168.127.1"}},
	}})
	for line, want := range map[string]string{
		"grep -E '^(Uid|Gid)' /proc/self/status; pwd; hostname; cat /etc/hostname":                                    "Uid:\t1234\t1234\t1234\t1234\nGid:\t0\t0\t0\t0\n/\ncalm-otter\ncalm-otter",
		"for d in proc sys dev run; do grep -q \" /$d \" /proc/mounts || echo $d; test -L /$d && echo $d; done; true": "",
		"stat -c %a /tmp; ls -d /etc/hosts/data; ls /bin | grep -c busybox":                                           "1777\n/etc/hosts/data\n1",
	} {
		if got := vm.sh(s, line); got != want {
			t.Errorf("%s: %q, want %q", line, got, want)
		}
	}
	vm.off(s)
}

// Busybox is the init of an image that tells it what to start, and ends the machine.
func TestImageWithBusyboxInit(t *testing.T) {
	tree := t.TempDir()
	busybox(t, tree)
	write(t, filepath.Join(tree, "etc/inittab"), "::sysinit:/bin/setup\n::shutdown:/bin/sync\n")
	write(t, filepath.Join(tree, "bin/setup"), "#!/bin/sh\necho started > /run/started\n")
	err := errors.Join(os.Mkdir(filepath.Join(tree, "sbin"), 0o755), os.Symlink("/bin/busybox", filepath.Join(tree, "sbin/init")),
		os.Chmod(filepath.Join(tree, "bin/setup"), 0o755))
	if err != nil {
		t.Fatal(err)
	}
	vm := bootBare(t, bareConfig{root: ext4(t, "busybox-init", tree)})
	s := vm.connect()
	if r := s.Ready(); !r.RootReady || r.InitSystem != "other" {
		t.Fatalf("ready = %+v", r)
	}
	vm.call(s, guest.Request{Kind: guest.KindConfigure, Configure: &guest.Configure{Hostname: "calm-otter"}})
	if got := vm.sh(s, "until test -s /run/started; do :; done; cat /run/started; readlink /proc/1/exe"); got != "started\n/bin/busybox" {
		t.Errorf("process 1: %q", got)
	}
	vm.off(s)
}
