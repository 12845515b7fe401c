package usernet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"banger/internal/errdefs"
	"banger/internal/sysexec"
)

// detachedClient returns a client whose helper is a process of its own.
func detachedClient(t testing.TB, dir string, args ...string) *Client {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "c.sock")
	c := New(Deps{Socket: socket, LogFile: filepath.Join(dir, "log"), Log: testLog(t),
		Command: append([]string{exe, "helper", socket}, args...)})
	t.Cleanup(func() {
		_ = c.Close()
		if log, err := os.ReadFile(c.deps.LogFile); err == nil && t.Failed() {
			t.Logf("the helper's log:\n%s", log)
		}
		if p := helperProcess(socket); p != nil {
			_ = p.Kill(context.Background())
		}
	})
	return c
}

// helperProcess finds the process behind a control socket; nil when there is none.
func helperProcess(socket string) *sysexec.Proc {
	conn, err := dialSocket(context.Background(), socket)
	if err != nil {
		return nil
	}
	defer func() { _ = conn.Close() }()
	cred, err := peerOf(conn)
	if err != nil {
		return nil
	}
	start, err := sysexec.StartTime(int(cred.Pid))
	if err != nil {
		return nil
	}
	p, err := sysexec.Find(int(cred.Pid), start)
	if err != nil {
		return nil
	}
	return p
}

func waitEnd(t testing.TB, p *sysexec.Proc) {
	t.Helper()
	if p == nil {
		return
	}
	select {
	case <-p.Done():
	case <-time.After(deadline):
		t.Fatal("the helper does not end")
	}
}

func echoServer(t testing.TB) netip.AddrPort {
	return listenTCP(t, func(c *net.TCPConn) { _, _ = io.Copy(c, c) })
}

func roundTrip(c io.ReadWriter, text string) error {
	if _, err := io.WriteString(c, text); err != nil {
		return err
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if string(got) != text {
		return fmt.Errorf("got %q, want %q", got, text)
	}
	return nil
}

func TestHelperLife(t *testing.T) {
	echo := echoServer(t)
	dir := shortDir(t)
	c := detachedClient(t, dir, "allow-all")
	ctx := testContext(t)

	// Nothing is started for nothing.
	for range 2 {
		if err := c.Detach(ctx, "vm1"); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Restore(ctx, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(c.deps.Socket); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("a helper was started: %v", err)
	}

	v := bootVMM(t, filepath.Join(dir, "net.sock"))
	for range 2 {
		if err := c.Attach(ctx, "vm1", v.socket); err != nil {
			t.Fatal(err)
		}
	}
	v.arrived()
	if st, err := os.Lstat(c.deps.Socket); err != nil || st.Mode() != os.ModeSocket|0o600 {
		t.Fatalf("control socket: %v, %v", st.Mode(), err)
	}
	if err := roundTrip(v.mustDialTCP(echo), "one"); err != nil {
		t.Fatal(err)
	}
	p := helperProcess(c.deps.Socket)
	for range 2 {
		if err := c.Detach(ctx, "vm1"); err != nil {
			t.Fatal(err)
		}
	}
	waitEnd(t, p)
	if _, err := os.Lstat(c.deps.Socket); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("control socket is left: %v", err)
	}
	if len(v.arrivals) != 0 {
		t.Fatal("attaching twice made two connections")
	}

	// It comes back when needed, and goes when the VM ends, nobody detaching it.
	if err := c.Attach(ctx, "vm1", v.socket); err != nil {
		t.Fatal(err)
	}
	v.arrived()
	p = helperProcess(c.deps.Socket)
	v.kill()
	waitEnd(t, p)
}

func TestConcurrentAttachesStartOneHelper(t *testing.T) {
	dir := shortDir(t)
	// Two clients stand for two daemons: even they must not get two helpers.
	clients := []*Client{detachedClient(t, dir, "allow-all"), detachedClient(t, dir, "allow-all")}
	ctx := testContext(t)
	var wg sync.WaitGroup
	for i := range 8 {
		v := bootVMM(t, filepath.Join(dir, fmt.Sprintf("net%d.sock", i)))
		wg.Go(func() {
			if err := clients[i%2].Attach(ctx, fmt.Sprintf("vm%d", i), v.socket); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	log, err := os.ReadFile(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(log), "msg=serving"); n != 1 {
		t.Fatalf("%d helpers were started:\n%s", n, log)
	}
}

func TestKilledHelperIsReplaced(t *testing.T) {
	echo := echoServer(t)
	dir := shortDir(t)
	c := detachedClient(t, dir, "allow-all")
	ctx := testContext(t)
	vms := []*vmm{bootVMM(t, filepath.Join(dir, "a.sock")), bootVMM(t, filepath.Join(dir, "b.sock"))}
	for i, v := range vms {
		if err := c.Attach(ctx, fmt.Sprintf("vm%d", i), v.socket); err != nil {
			t.Fatal(err)
		}
		v.arrived()
	}
	old := vms[0].mustDialTCP(echo)
	if err := roundTrip(old, "one"); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second is replaced with a pause
		p := helperProcess(c.deps.Socket)
		if err := p.Kill(ctx); err != nil {
			t.Fatal(err)
		}
		for _, v := range vms {
			v.arrived()
			if err := roundTrip(v.mustDialTCP(echo), "two"); err != nil {
				t.Fatal(err)
			}
		}
	}
	// What was connected by way of the dead one is reset, not left hanging.
	if err := roundTrip(old, "three"); err == nil || !strings.Contains(err.Error(), "reset") {
		t.Fatalf("old connection: %v, want a reset", err)
	}
}

func TestRestore(t *testing.T) {
	echo := echoServer(t)
	dir := shortDir(t)
	first := detachedClient(t, dir, "allow-all")
	ctx := testContext(t)
	var vms []*vmm
	for i := range 3 {
		vms = append(vms, bootVMM(t, filepath.Join(dir, fmt.Sprintf("net%d.sock", i))))
	}
	for i, v := range vms[:2] {
		if err := first.Attach(ctx, fmt.Sprintf("vm%d", i), v.socket); err != nil {
			t.Fatal(err)
		}
		v.arrived()
	}
	kept := vms[0].mustDialTCP(echo)
	if err := roundTrip(kept, "one"); err != nil {
		t.Fatal(err)
	}
	p := helperProcess(first.deps.Socket)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}

	// A new daemon finds vm0 and vm2 running, and knows nothing of vm1.
	second := detachedClient(t, dir, "allow-all")
	if err := second.Restore(ctx, map[string]string{"vm0": vms[0].socket, "vm2": vms[2].socket}); err != nil {
		t.Fatal(err)
	}
	vms[2].arrived()
	if err := roundTrip(kept, "two"); err != nil {
		t.Fatalf("a connection did not outlive the daemon: %v", err)
	}
	if q := helperProcess(second.deps.Socket); q == nil || q.PID != p.PID {
		t.Fatal("the helper was replaced")
	}
	if err := vms[1].detached(); err != nil {
		t.Fatal(err)
	}
	// And it watches over what it found.
	if err := p.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	vms[0].arrived()
	vms[2].arrived()

	err := second.Restore(ctx, map[string]string{"vm0": vms[0].socket, "gone": filepath.Join(dir, "none.sock")})
	if !errors.Is(err, errdefs.ErrNotFound) {
		t.Fatalf("restore with a VM that is gone: %v, want not_found", err)
	}
	if err := roundTrip(vms[0].mustDialTCP(echo), "three"); err != nil {
		t.Fatal(err)
	}
}

// A daemon that finds VMs running and cannot start a helper for them gives them
// their network as soon as there is one: by itself, or when another VM needs it.
func TestRestoreWithoutHelper(t *testing.T) {
	for name, other := range map[string]bool{"by itself": false, "with another VM": true} {
		t.Run(name, func(t *testing.T) {
			dir := shortDir(t)
			c := detachedClient(t, dir, "allow-all")
			exe := c.deps.Command[0]
			c.deps.Command[0] = filepath.Join(dir, "helper")
			ctx := testContext(t)
			if other {
				c.pause = 10 * deadline // by itself it would be too late
			}
			v := bootVMM(t, filepath.Join(dir, "a.sock"))
			if err := c.Restore(ctx, map[string]string{"vm0": v.socket, "gone": filepath.Join(dir, "none.sock")}); err == nil {
				t.Fatal("restored without a helper")
			}
			if err := os.Symlink(exe, c.deps.Command[0]); err != nil {
				t.Fatal(err)
			}
			if other {
				w := bootVMM(t, filepath.Join(dir, "b.sock"))
				if err := c.Attach(ctx, "vm1", w.socket); err != nil {
					t.Fatal(err)
				}
				w.arrived()
			}
			v.arrived()
			if err := roundTrip(v.mustDialTCP(echoServer(t)), "one"); err != nil {
				t.Fatal(err)
			}
			// It ends with its VMs as ever.
			p := helperProcess(c.deps.Socket)
			for _, id := range []string{"vm0", "vm1"} {
				if err := c.Detach(ctx, id); err != nil {
					t.Fatal(err)
				}
			}
			waitEnd(t, p)
		})
	}
}

// detached waits until nobody is connected to the VM.
func (v *vmm) detached() error {
	v.mu.Lock()
	conn := v.conn
	v.mu.Unlock()
	_ = conn.SetWriteDeadline(time.Now().Add(deadline))
	// Empty frames are valid and ignored; they show whether somebody reads.
	for {
		if _, err := conn.Write(make([]byte, lengthSize)); errors.Is(err, os.ErrDeadlineExceeded) {
			return errors.New("still connected")
		} else if err != nil {
			return nil
		}
	}
}

func TestAttachErrors(t *testing.T) {
	dir := shortDir(t)
	c := detachedClient(t, dir, "allow-all")
	ctx := testContext(t)
	if err := c.Attach(ctx, "vm1", filepath.Join(dir, "none.sock")); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("no socket: %v, want not_found", err)
	}
	waitEnd(t, helperProcess(c.deps.Socket)) // and it does not stay for that

	// A socket that comes a little later is waited for.
	late := make(chan error, 1)
	go func() { late <- c.Attach(ctx, "late", filepath.Join(dir, "late.sock")) }()
	bootVMM(t, filepath.Join(dir, "late.sock")).arrived()
	if err := <-late; err != nil {
		t.Error(err)
	}
	for _, tc := range []struct{ id, socket string }{
		{"", "/x"}, {"a/b", "/x"}, {"a b", "/x"}, {strings.Repeat("a", 129), "/x"},
		{"a", ""}, {"a", "x"}, {"a", "/x/../y"}, {"a", "/x\x00y"}, {"a", "/" + strings.Repeat("x", 5000)},
	} {
		if err := c.Attach(ctx, tc.id, tc.socket); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%.20q %.20q: %v, want invalid_argument", tc.id, tc.socket, err)
		}
	}
	long := New(Deps{Socket: "/" + strings.Repeat("x", 200), Log: testLog(t)})
	if err := long.Attach(ctx, "vm1", "/x"); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("long control socket: %v, want invalid_argument", err)
	}

	bad := New(Deps{Socket: filepath.Join(dir, "d.sock"), LogFile: filepath.Join(dir, "log"),
		Command: []string{"/bin/false"}, Log: testLog(t)})
	if err := bad.Attach(ctx, "vm1", "/x"); !errors.Is(err, errdefs.ErrUnavailable) || errdefs.HintOf(err) == "" {
		t.Errorf("helper that ends at once: %v, want unavailable with a hint", err)
	}
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	slow := New(Deps{Socket: filepath.Join(dir, "d.sock"), LogFile: filepath.Join(dir, "log"),
		Command: []string{"/bin/sh", "-c", "read x <" + fifo}, Log: testLog(t)})
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	defer func() { // lets the shell go
		if f, err := os.OpenFile(fifo, os.O_WRONLY, 0); err == nil {
			_ = f.Close()
		}
	}()
	if err := slow.Attach(short, "vm1", "/x"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("helper that never gets ready: %v, want the deadline", err)
	}
}

func TestStaleSocket(t *testing.T) {
	dir := shortDir(t)
	c := detachedClient(t, dir, "allow-all")
	v := bootVMM(t, filepath.Join(dir, "net.sock"))
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: c.deps.Socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	_ = l.Close()
	if err := c.Attach(testContext(t), "vm1", v.socket); err != nil {
		t.Fatal(err)
	}

	other := detachedClient(t, shortDir(t))
	if err := os.WriteFile(other.deps.Socket, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := other.Attach(testContext(t), "vm1", v.socket); err == nil {
		t.Fatal("a helper took the place of a file that is no socket")
	}
	if b, _ := os.ReadFile(other.deps.Socket); string(b) != "precious" {
		t.Fatal("the file is gone")
	}
}

// A helper left by another version is replaced.
func TestOtherVersion(t *testing.T) {
	dir := shortDir(t)
	c := detachedClient(t, dir, "allow-all")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: c.deps.Socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan []string, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		var ops []string
		in := lines(conn)
		for in.Scan() {
			var q request
			_ = json.Unmarshal(in.Bytes(), &q)
			ops = append(ops, q.Op)
			_ = writeLine(conn, reply{ID: q.ID, Version: protocolVersion + 1})
			if q.Op == opExit {
				_ = l.Close()
				_ = conn.Close()
			}
		}
		asked <- ops
	}()
	v := bootVMM(t, filepath.Join(dir, "net.sock"))
	if err := c.Attach(testContext(t), "vm1", v.socket); err != nil {
		t.Fatal(err)
	}
	v.arrived()
	if ops := <-asked; fmt.Sprint(ops) != "[hello exit]" {
		t.Fatalf("the old helper was asked %v", ops)
	}
}

func TestControlSocketSurvivesNonsense(t *testing.T) {
	c, _ := startHelper(t, HelperConfig{Policy: allowAll, Grace: time.Minute})
	for _, nonsense := range []string{
		"\n", "{}\n", "[]\n", "{\"id\":1,\n", "\x00\xff\n", strings.Repeat("x", maxLine+2),
		`{"id":-1,"op":"list"}` + "\n",
	} {
		conn, err := net.Dial("unix", c.deps.Socket)
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(deadline))
		_, _ = io.WriteString(conn, nonsense)
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%.20q: %v, want the connection closed", nonsense, err)
		}
		_ = conn.Close()
	}
	conn, err := net.Dial("unix", c.deps.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_, _ = io.WriteString(conn, `{"id":7,"op":"format"}`+"\n"+`{"id":8,"op":"attach","vm":"../x","socket":"/y"}`+"\n")
	in := lines(conn)
	for range 2 { // in whatever order
		var r reply
		if !in.Scan() || json.Unmarshal(in.Bytes(), &r) != nil || r.ID != 7 && r.ID != 8 || r.Class != errdefs.ClassInvalidArgument {
			t.Fatalf("answer %q", in.Text())
		}
	}
	v := bootVMM(t, filepath.Join(shortDir(t), "net.sock"))
	if err := c.Attach(testContext(t), "vm1", v.socket); err != nil {
		t.Fatal(err)
	}
}
