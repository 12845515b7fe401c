//go:build e2e

package e2e_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"banger/internal/errdefs"
	"banger/internal/guest"
	"banger/internal/guest/agent/tree"
)

// off waits for the VM to end after an orderly shutdown.
func (vm *bareVM) off(s *guest.Session) {
	vm.t.Helper()
	vm.call(s, guest.Request{Kind: guest.KindShutdown})
	start := time.Now()
	select {
	case <-vm.done:
		vm.t.Logf("off after %v", time.Since(start).Round(time.Millisecond))
	case <-vm.context(90 * time.Second).Done():
		vm.t.Error("the VM goes on")
	}
}

func TestAgentWithoutInit(t *testing.T) {
	root := bareRoot(t)
	vm := bootBare(t, bareConfig{root: root, modules: true})
	s := vm.connect()
	t.Logf("ready after %v (guest uptime %d ms)", time.Since(vm.started).Round(time.Millisecond), s.Ready().UptimeMillis)
	if r := s.Ready(); !r.RootReady || r.InitSystem != "none" || r.Release == "" || r.Error != "" {
		t.Fatalf("ready = %+v", r)
	}
	vm.call(s, guest.Request{Kind: guest.KindConfigure, Configure: &guest.Configure{
		Hostname: "calm-otter", UnixNanos: time.Now().UnixNano(), User: "dev", Env: []string{"FROM=image"},
		Net: &guest.NetConf{Address: "192.168.127.2/24", Gateway: "192.168.127.1", DNS: []string{"192.168.127.1"}, MAC: "52:54:00:00:00:09", MTU: 1400},
	}})
	for line, want := range map[string]string{
		"id -u; id -G; echo $HOME $FROM":                                              "54321\n54321 10\n/home/dev image",
		"hostname; cat /etc/resolv.conf":                                              "calm-otter\nnameserver 192.168.127.1",
		"ip -o -4 addr show dev eth0 | head -c 60 | grep -c 192.168.127.2/24":         "1",
		"ip route | head -1":                                                          "default via 192.168.127.1 dev eth0 ",
		"ip link show eth0 | grep -c -e 52:54:00:00:00:09 -e 'UP.*mtu 1400'":          "2",
		"ip -o -4 addr show dev lo | grep -c 127.0.0.1":                               "1",
		"ls -d /lib/modules/*/kernel; ls /modules /init 2>&1 | grep -c 'No such'":     "/lib/modules/" + s.Ready().Release + "/kernel\n2",
		"cat /proc/self/oom_score_adj; grep -c 'open files *16384' /proc/self/limits": "0\n1",
		"test -w /dev/shm && test -e /dev/pts/ptmx && echo -n x >/dev/stderr":         "x",
		"touch /etc/x 2>/dev/null || echo refused":                                    "refused",
	} {
		if got := vm.sh(s, line); got != strings.TrimSpace(want) {
			t.Errorf("%s: %q, want %q", line, got, want)
		}
	}
	if now := vm.sh(s, "date +%s"); now[:len(now)-2] != fmt.Sprint(time.Now().Unix())[:len(now)-2] {
		t.Errorf("the guest's clock says %s", now)
	}
	// The file system was made with 64 MB and has grown to its disk.
	if size := vm.sh(s, "df -m / | tail -1 | (read a b c; echo $b)"); len(size) != 3 || size < "250" {
		t.Errorf("the root has %s MB", size)
	}
	t.Run("errors", func(t *testing.T) { vmErrors(t, vm, s) })
	t.Run("orphans", func(t *testing.T) { vmOrphans(t, vm, s) })
	t.Run("terminal", func(t *testing.T) { vmTerminal(t, vm, s) })
	t.Run("streams", func(t *testing.T) { vmStreams(t, vm, s) })
	t.Run("copy", func(t *testing.T) { vmCopy(t, vm, s) })
	_ = s.Close()
	t.Run("reconnect", func(t *testing.T) { vmReconnect(t, vm) })

	s = vm.connect()
	// What was written just before the end, with something that ignores SIGTERM
	// running, is there afterwards.
	if st, out, err := vm.exec(s, guest.Exec{User: "root", Args: []string{"sh", "-c",
		"(trap '' TERM; sleep 1000) >/dev/null 2>&1 & dd if=/dev/zero of=/kept bs=1M count=20 2>/dev/null; echo last >/last"}}, nil); err != nil || st.Code != 0 {
		t.Fatal(st, out, err)
	}
	vm.off(s)
	again := bootBare(t, bareConfig{root: root})
	s = again.connect()
	if got := again.sh(s, "cat /last; dd if=/kept bs=1M 2>/dev/null | sha256sum | head -c 8; hostname"); !strings.HasPrefix(got, "last\n"+zeroSum(20 << 20)[:8]) {
		t.Errorf("after the restart: %q", got)
	}
}

func zeroSum(n int) string {
	h := sha256.New()
	_, _ = h.Write(make([]byte, n))
	return hex.EncodeToString(h.Sum(nil))
}

func vmErrors(t *testing.T, vm *bareVM, s *guest.Session) {
	for name, c := range map[string]struct {
		exec guest.Exec
		want error
	}{
		"command": {guest.Exec{Args: []string{"make"}}, errdefs.ErrNotFound},
		"user":    {guest.Exec{Args: []string{"true"}, User: "eve"}, errdefs.ErrInvalidArgument},
		"workdir": {guest.Exec{Args: []string{"true"}, Workdir: "/nope"}, errdefs.ErrInvalidArgument},
	} {
		if _, _, err := vm.exec(s, c.exec, nil); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// vmOrphans: process 1 reaps what loses its parent, and no exit status is lost.
func vmOrphans(t *testing.T, vm *bareVM, s *guest.Session) {
	vm.sh(s, "for i in 1 2 3 4 5 6 7 8; do (sleep 0.0$i & exit 0) & done; wait")
	for i := range 20 {
		st, _, err := vm.exec(s, guest.Exec{Args: []string{"sh", "-c", fmt.Sprintf("(true & true &) ; exit %d", i)}}, nil)
		if err != nil || st.Code != i {
			t.Fatalf("exit %d: %+v %v", i, st, err)
		}
	}
	vm.sh(s, "while ps -o stat | grep -q Z; do :; done") // until none is left
}

func vmTerminal(t *testing.T, vm *bareVM, s *guest.Session) {
	ctx := vm.context(time.Minute)
	conn, err := s.Open(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	r, stdin := io.Pipe()
	defer stdin.Close()
	resize := make(chan [2]uint16, 1)
	w := writerFunc(func(p []byte) (int, error) {
		n, err := out.Write(p)
		if strings.HasSuffix(out.String(), "24 80\r\n") {
			resize <- [2]uint16{50, 100}
		}
		return n, err
	})
	e := guest.Exec{TTY: true, Stdin: true, Rows: 24, Cols: 80, Args: []string{"sh", "-c", "trap 'stty size; exit 3' WINCH; stty size; sleep 1000 & wait"}}
	st, err := guest.RunExec(ctx, conn, guest.Request{Kind: guest.KindExec, Exec: &e}, guest.ExecIO{Stdin: r, Stdout: w, Resize: resize})
	if err != nil || st.Code != 3 || !strings.HasSuffix(out.String(), "50 100\r\n") {
		t.Errorf("%+v %v %q", st, err, out.String())
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func vmStreams(t *testing.T, vm *bareVM, s *guest.Session) {
	const size = 20 << 20
	data := make([]byte, size)
	for i := 0; i < size; i += 8 {
		v := rand.Uint64()
		for k := range 8 {
			data[i+k] = byte(v >> (8 * k))
		}
	}
	st, out, err := vm.exec(s, guest.Exec{Args: []string{"cat"}}, bytes.NewReader(data))
	if err != nil || st.Code != 0 || out != string(data) {
		t.Errorf("%+v %v, %d bytes came back", st, err, len(out))
	}
}

func vmCopy(t *testing.T, vm *bareVM, s *guest.Session) {
	ctx := vm.context(time.Minute)
	src := filepath.Join(t.TempDir(), "repo")
	for i := range 300 {
		p := filepath.Join(src, fmt.Sprint(i%7), fmt.Sprint(i))
		_ = os.MkdirAll(filepath.Dir(p), 0o755)
		err := os.WriteFile(p, bytes.Repeat([]byte{byte(i)}, i*97), 0o600)
		if err = errors.Join(err, os.Chmod(p, 0o600|os.FileMode(i&0o55))); err != nil {
			t.Fatal(err)
		}
	}
	_ = os.Symlink("0/7", filepath.Join(src, "link"))
	conn, err := s.Open(ctx)
	if err != nil {
		t.Fatal(err)
	}
	req := guest.Request{Kind: guest.KindCopyIn, CopyIn: &guest.CopyIn{Dest: "/workspace/deep", User: "dev", Mkdir: true}}
	if err := guest.SendTar(ctx, conn, req, func(w io.Writer) error { return tree.Out(src, w) }); err != nil {
		t.Fatal(err)
	}
	if got := vm.sh(s, "cd /workspace/deep/repo; ls -ld . link 0/7 | (while read m l u g rest; do echo $m $u $g; done)"); got != "drwxr-xr-x dev dev\n-rw----r-x dev dev\nlrwxrwxrwx dev dev" {
		t.Errorf("in the guest: %q", got)
	}
	var back bytes.Buffer
	if conn, err = s.Open(ctx); err != nil {
		t.Fatal(err)
	}
	if err := guest.RecvTar(ctx, conn, guest.Request{Kind: guest.KindCopyOut, CopyOut: &guest.CopyOut{Path: "/workspace/deep/repo"}}, &back); err != nil {
		t.Fatal(err)
	}
	var mine bytes.Buffer
	if err := tree.Out(src, &mine); err != nil {
		t.Fatal(err)
	}
	if want, got := tarList(t, mine.Bytes()), tarList(t, back.Bytes()); want != got {
		t.Errorf("what came back differs:\n%.500s\n%.500s", got, want)
	}
}

// vmReconnect: a host that vanishes in the middle of a frame, and one that is
// there again before anybody noticed.
func vmReconnect(t *testing.T, vm *bareVM) {
	for round := range 6 {
		conn := vm.dial()
		s, err := guest.Connect(vm.context(time.Minute), conn)
		if err != nil {
			t.Fatal(err)
		}
		// A command that says when it is hung up on, to whoever reads that then or later.
		pipe := fmt.Sprintf("/tmp/hup%d", round)
		stream, err := s.Open(vm.context(time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		ready := make(chan struct{}, 1)
		ended := make(chan error, 1)
		go func() {
			e := guest.Exec{Args: []string{"sh", "-c", "mkfifo " + pipe + "; trap '(echo hup >" + pipe + "); exit' HUP; echo ready; sleep 1000 & wait"}}
			_, err := guest.RunExec(context.Background(), stream, guest.Request{Kind: guest.KindExec, Exec: &e}, guest.ExecIO{Stdout: writerFunc(func(p []byte) (int, error) {
				ready <- struct{}{}
				return len(p), nil
			})})
			ended <- err
		}()
		<-ready
		if round%2 == 1 {
			// Half of a data frame of the multiplexer, for a stream that does not exist.
			_, _ = conn.Write([]byte{0, 0, 0, 0, 0, 0, 0, 99, 0, 3, 0, 0, 'x', 'y'})
		}
		_ = conn.Close()
		if err := <-ended; !errors.Is(err, errdefs.ErrUnavailable) {
			t.Errorf("the command of a lost connection: %v", err)
		}
		start := time.Now()
		next, err := guest.Connect(vm.context(time.Minute), vm.dial())
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("again after %v", time.Since(start).Round(time.Millisecond))
		if got := vm.sh(next, "cat "+pipe); got != "hup" {
			t.Errorf("the command says %q", got)
		}
		_ = next.Close()
	}
}

func TestAgentWithSystemd(t *testing.T) {
	vm := bootBare(t, bareConfig{root: defaultRootfs(t), readOnly: true, modules: true})
	s := vm.connect()
	t.Logf("ready after %v (guest uptime %d ms)", time.Since(vm.started).Round(time.Millisecond), s.Ready().UptimeMillis)
	if r := s.Ready(); !r.RootReady || r.InitSystem != "systemd" {
		t.Fatalf("ready = %+v", r)
	}
	vm.call(s, guest.Request{Kind: guest.KindConfigure, Configure: &guest.Configure{
		Hostname: "calm-otter", UnixNanos: time.Now().UnixNano(),
		Net: &guest.NetConf{Address: "192.168.127.2/24", Gateway: "192.168.127.1", DNS: []string{"192.168.127.1"}, MAC: "52:54:00:00:00:09"},
	}})
	t.Logf("configured after %v", time.Since(vm.started).Round(time.Millisecond))
	// Commands run while systemd starts.
	if st, out, err := vm.exec(s, guest.Exec{Args: []string{"tty"}, TTY: true, Rows: 1, Cols: 1}, nil); err != nil || st.Code != 0 || !strings.HasPrefix(out, "/dev/pts/") {
		t.Errorf("a terminal early in the boot: %+v %q %v", st, out, err)
	}
	// What they leave in /tmp stays there, whatever the init does to it at its start.
	vm.sh(s, "echo early > /tmp/early")
	c := vm.call(s, guest.Request{Kind: guest.KindWaitSystem})
	t.Logf("system %q after %v", c.State, time.Since(vm.started).Round(time.Millisecond))
	if c.State != "running" {
		t.Errorf("state = %q: %s", c.State, vm.sh(s, "systemctl --failed --no-pager"))
	}
	for line, want := range map[string]string{
		"hostname; hostnamectl hostname":                     "calm-otter\ncalm-otter",
		"ip -o -4 addr show dev eth0 | grep -o 'inet [^ ]*'": "inet 192.168.127.2/24",
		"ip route show default":                              "default via 192.168.127.1 dev eth0 proto static",
		"cat /proc/self/cgroup":                              "0::/banger",
		"sudo -n id -u":                                      "0",
		"systemctl is-active networking || true":             "inactive",
		"cat /proc/1/comm; pgrep -c -f ^@banger-agent":       "systemd\n1",
		"getent hosts calm-otter | grep -o calm-otter":       "calm-otter",
		"cat /etc/resolv.conf":                               "nameserver 192.168.127.1",
		"systemctl --failed --no-legend | wc -l":             "0",
		"cat /tmp/early":                                     "early",
		"nice; grep -o 'nice.*' /proc/self/autogroup":        "-10\nnice -10",
		"stat -c %a /tmp /tmp/.X11-unix":                     "1777\n1777",
		"systemctl is-active systemd-tmpfiles-setup":         "active",
	} {
		if got := vm.sh(s, line); got != want {
			t.Errorf("%s: %q, want %q", line, got, want)
		}
	}
	vm.off(s)
}

// TestAgentWithoutRoot: the host is told why, not left waiting.
func TestAgentWithoutRoot(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad.img")
	if err := os.WriteFile(bad, make([]byte, 4<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	vm := bootBare(t, bareConfig{root: bad})
	s := vm.connect()
	if r := s.Ready(); r.RootReady || !strings.Contains(r.Error, "ext4") {
		t.Errorf("ready = %+v", r)
	}
	_, _, err := vm.exec(s, guest.Exec{Args: []string{"true"}}, nil)
	if !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("exec: %v", err)
	}
	if b, _ := os.ReadFile(vm.console()); !bytes.Contains(b, []byte("no root file system")) {
		t.Errorf("the console says nothing: %s", b)
	}
	vm.off(s)
}
