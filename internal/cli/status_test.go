package cli

import (
	"io"
	"os"
	"strings"
	"testing"
	"time"
)

// A stage that leaves no line leaves nothing of what was drawn, either: what a command
// prints comes next.
func TestStageDoneClears(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	a := &app{status: newStatus(w, true)}
	a.status.draw("  workspace 5 B")
	a.stageDone("workspace", worthALine/2)
	a.status.draw("  workspace 9 B")
	a.stageDone("workspace", time.Second)
	_ = w.Close()
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	short, long, found := strings.Cut(string(out), "9 B")
	if !found || !strings.HasSuffix(short, "5 B\r\x1b[K\r\x1b[K  workspace ") || !strings.HasPrefix(long, "\r\x1b[K  workspace") {
		t.Errorf("on the terminal: %q", out)
	}
}
