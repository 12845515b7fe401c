package dirsock_test

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

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
