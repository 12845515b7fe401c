// Package bustest gives tests a message bus of their own.
package bustest

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"banger/internal/sysexec"
)

// New starts a message bus for the test and returns its socket. The test is skipped
// where there is no dbus-daemon.
func New(t testing.TB) string {
	t.Helper()
	path, err := sysexec.Look("dbus-daemon")
	if err != nil {
		t.Skip("no dbus-daemon here (package dbus-daemon)")
	}
	dir := t.TempDir()
	socket, conf := filepath.Join(dir, "bus"), filepath.Join(dir, "bus.conf")
	text := `<busconfig><type>session</type><listen>unix:path=` + socket + `</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy></busconfig>`
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	// It forks once it listens.
	out, err := sysexec.Output(context.Background(), sysexec.Cmd{
		Path: path, Args: []string{"--config-file=" + conf, "--fork", "--print-pid=1", "--nopidfile", "--nosyslog"},
	})
	pid, perr := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil || perr != nil {
		t.Fatalf("dbus-daemon said %q: %v", out, err)
	}
	t.Cleanup(func() { _ = unix.Kill(pid, unix.SIGKILL) })
	return socket
}
