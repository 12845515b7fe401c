package usernet

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"banger/internal/sysexec"
)

// status reads a number from /proc/<pid>/status.
func status(t testing.TB, path, field string, base int) int64 {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(b), "\n") {
		if rest, ok := strings.CutPrefix(line, field+":"); ok {
			n, err := strconv.ParseInt(strings.Fields(rest)[0], base, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("no %s in %s", field, path)
	return 0
}

// The helper's memory, in MiB: at rest, with VMs, and after they moved data. What it
// takes in all is a matter of bench: here the race detector and the tests are in it.
func TestHelperMemory(t *testing.T) {
	const most = 24 // that a VM which moved data adds; 10 is usual
	dir := shortDir(t)
	c := detachedClient(t, dir, "allow-all")
	ctx := testContext(t)
	s, err := c.acquire(ctx, true)
	if err != nil {
		t.Fatal(err)
	}
	defer c.release()
	_ = s
	p := helperProcess(c.deps.Socket)
	rss := func() float64 {
		return float64(status(t, fmt.Sprintf("/proc/%d/status", p.PID), "VmRSS", 10)) / 1024
	}
	anon := func() float64 {
		return float64(status(t, fmt.Sprintf("/proc/%d/status", p.PID), "RssAnon", 10)) / 1024
	}
	atRest := anon()
	t.Logf("0 VMs: %.1f MiB (%.1f private)", rss(), atRest)
	sink := listenTCP(t, func(c *net.TCPConn) { _, _ = io.Copy(onlyWriter{io.Discard}, c) })
	for i := range 10 {
		v := bootVMM(t, filepath.Join(dir, fmt.Sprintf("n%d", i)))
		if err := c.Attach(ctx, fmt.Sprintf("vm%d", i), v.socket); err != nil {
			t.Fatal(err)
		}
		v.arrived()
		if i == 0 || i == 9 {
			t.Logf("%d VMs: %.1f MiB (%.1f private)", i+1, rss(), anon())
		}
		if i == 0 {
			conn := v.mustDialTCP(sink)
			for range 200 {
				if _, err := conn.Write(make([]byte, 1<<20)); err != nil {
					t.Fatal(err)
				}
			}
			_ = conn.Close()
			t.Logf("1 VM after 200 MB: %.1f MiB (%.1f private)", rss(), anon())
			if added := anon() - atRest; added > most {
				t.Errorf("one VM adds %.1f MiB to the helper, more than %d", added, most)
			}
		}
	}
}

// qemu runs a QEMU without a machine: two stream sockets wired to each other,
// net.sock for the helper and guest.sock for the guest of the test.
func qemu(t *testing.T, dir string) *sysexec.Proc {
	t.Helper()
	path, err := sysexec.Look("qemu-system-x86_64")
	if err != nil {
		t.Skip("needs QEMU")
	}
	log, err := os.Create(filepath.Join(dir, "qemu.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	p, err := sysexec.StartDetached(sysexec.Detached{Path: path, Dir: dir, Stdout: w, Stderr: log, Args: []string{
		"-nodefaults", "-display", "none", "-machine", "none", "-accel", "tcg", "-qmp", "stdio",
		"-netdev", "stream,id=net0,server=on,addr.type=unix,addr.path=net.sock",
		"-netdev", "stream,id=guest,server=on,addr.type=unix,addr.path=guest.sock",
		"-netdev", "hubport,id=h0,hubid=0,netdev=net0", "-netdev", "hubport,id=h1,hubid=0,netdev=guest",
	}})
	_ = w.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Kill(context.Background()) })
	// The greeting comes when the command line has been worked off.
	_ = r.SetReadDeadline(time.Now().Add(deadline))
	if _, err := r.Read(make([]byte, 1024)); err != nil {
		out, _ := os.ReadFile(log.Name())
		t.Fatalf("qemu does not start: %v\n%s", err, out)
	}
	return p
}

// A real QEMU between guest and helper: it takes a new helper after the old one
// was killed, and its end ends the attachment.
func TestQEMU(t *testing.T) {
	dir := shortDir(t)
	echo := echoServer(t)
	c := detachedClient(t, dir, "allow-all")
	ctx := testContext(t)
	socket := filepath.Join(dir, "net.sock")
	guestOf := func() *vmm {
		// QEMU opens its sockets on the side, and may not be done with it.
		conn, _, err := (&attachment{vm: "guest", socket: filepath.Join(dir, "guest.sock")}).dialPatiently(ctx, deadline)
		if err != nil {
			t.Fatal(err)
		}
		v := &vmm{t: t, conn: conn, arrivals: make(chan struct{}, 10)}
		v.bootOn(&oneConn{conn: conn})
		return v
	}

	q := qemu(t, dir)
	v := guestOf()
	if err := c.Attach(ctx, "vm1", socket); err != nil {
		t.Fatal(err)
	}
	if err := roundTrip(v.mustDialTCP(echo), "one"); err != nil {
		t.Fatal(err)
	}
	big := v.mustDialTCP(echo)
	go func() {
		_, _ = big.Write(make([]byte, 16<<20))
		_ = big.CloseWrite()
	}()
	if n, err := io.Copy(io.Discard, big); n != 16<<20 || err != nil {
		t.Fatalf("16 MiB came back as %d bytes, %v", n, err)
	}
	old := helperProcess(c.deps.Socket)
	if err := old.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	if err := roundTrip(v.mustDialTCP(echo), "two"); err != nil {
		t.Fatal(err)
	}
	p := helperProcess(c.deps.Socket)
	if p == nil || p.PID == old.PID {
		t.Fatal("the helper was not replaced")
	}

	// The VM is restarted under the same name: whether or not the helper has
	// noticed the end of the first, it serves the second.
	if err := q.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"net.sock", "guest.sock"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	q = qemu(t, dir)
	v = guestOf()
	if err := c.Attach(ctx, "vm1", socket); err != nil {
		t.Fatal(err)
	}
	if err := roundTrip(v.mustDialTCP(echo), "three"); err != nil {
		t.Fatal(err)
	}

	p = helperProcess(c.deps.Socket)
	if err := q.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	waitEnd(t, p)
}

// oneConn is a listener with one connection.
type oneConn struct {
	conn net.Conn
}

func (l *oneConn) Accept() (net.Conn, error) {
	if l.conn == nil {
		return nil, net.ErrClosed
	}
	c := l.conn
	l.conn = nil
	return c, nil
}
func (l *oneConn) Close() error   { return nil }
func (l *oneConn) Addr() net.Addr { return nil }
