package serve

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"banger/internal/guest"
)

// A command that never ends does not outlive the host that had it measured.
func TestBenchEndsWithItsHost(t *testing.T) {
	w := newWorld(t)
	conn := w.dial()
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	spawn := &guest.BenchSpawn{Args: []string{"sh", "-c", "echo >" + fifo + "; exec sleep 1000"}, Count: 2}
	if err := guest.WriteRequest(w.context(), conn, guest.Request{Kind: guest.KindBenchSpawn, BenchSpawn: spawn}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.ReadFile(fifo); err != nil { // it runs
		t.Fatal(err)
	}
	_ = conn.Close()
	w.serving.Wait()
}
