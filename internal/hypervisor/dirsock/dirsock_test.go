package dirsock_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"banger/internal/errdefs"
	"banger/internal/hypervisor/dirsock"
)

func TestLongDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("long-", 40), "a b")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := dirsock.Dial(t.Context(), dir, "x.sock"); !dirsock.NoListener(err) || strings.Contains(err.Error(), "/proc/self") {
		t.Fatalf("dial without a socket: %v", err)
	}
	// A stale socket of an earlier process is in the way, and is replaced.
	if f, err := dirsock.Listen(dir, "x.sock"); err != nil {
		t.Fatal(err)
	} else if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := dirsock.Dial(t.Context(), dir, "x.sock"); !dirsock.NoListener(err) {
		t.Fatalf("dial of a stale socket: %v", err)
	}
	f, err := dirsock.Listen(dir, "x.sock")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if st, err := os.Stat(filepath.Join(dir, "x.sock")); err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("socket: %v %v", st, err)
	}
	c, err := dirsock.Dial(t.Context(), dir, "x.sock")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if pid, err := dirsock.PeerPID(c); err != nil || pid != os.Getpid() {
		t.Errorf("peer %d, %v; want %d", pid, err, os.Getpid())
	}
	if c, err := dirsock.DialPID(t.Context(), dir, "x.sock", os.Getppid()); !errors.Is(err, dirsock.ErrStranger) {
		t.Errorf("dial of another process: %v, %v", c, err)
	}
	own, err := dirsock.DialPID(t.Context(), dir, "x.sock", os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	l, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	peer, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(peer, "hello"); err != nil {
		t.Fatal(err)
	}
	_ = peer.Close()
	if b, err := io.ReadAll(c); err != nil || string(b) != "hello" {
		t.Errorf("read %q, %v", b, err)
	}
	if err := dirsock.Remove(dir, "x.sock", "none.sock"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "x.sock")); !errors.Is(err, os.ErrNotExist) {
		t.Error("the socket is still there")
	}
}

// Who serves a socket in a directory and does not work there is not taken for a VMM.
func TestFindOfAStranger(t *testing.T) {
	dir := t.TempDir()
	greet := func(context.Context, *net.UnixConn) error { return nil }
	if _, _, err := dirsock.Find(t.Context(), dir, "x.sock", greet); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("nobody: %v", err)
	}
	f, err := dirsock.Listen(dir, "x.sock")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if pid, _, err := dirsock.Find(t.Context(), dir, "x.sock", greet); errdefs.ClassOf(err) != errdefs.ClassInternal {
		t.Errorf("found %d, %v", pid, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	silent := func(context.Context, *net.UnixConn) error { cancel(); return errors.New("no answer") }
	if pid, _, err := dirsock.Find(ctx, dir, "x.sock", silent); !errors.Is(err, context.Canceled) {
		t.Errorf("found %d, %v", pid, err)
	}
}

// A full queue makes a caller wait, not fail; and not longer than it wants to.
func TestFullQueue(t *testing.T) {
	dir := t.TempDir()
	f, err := dirsock.Listen(dir, "x.sock")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for range 17 { // the queue and one
		c, err := dirsock.Dial(t.Context(), dir, "x.sock")
		if err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := dirsock.Dial(ctx, dir, "x.sock"); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("dial of a full queue: %v", err)
	}
	dialed := make(chan error)
	go func() {
		c, err := dirsock.Dial(context.Background(), dir, "x.sock")
		if err == nil {
			_ = c.Close()
		}
		dialed <- err
	}()
	l, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if c, err := l.Accept(); err != nil {
		t.Fatal(err)
	} else {
		_ = c.Close()
	}
	if err := <-dialed; err != nil {
		t.Fatal(err)
	}
}
