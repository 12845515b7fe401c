package systemd

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/errdefs"
	"banger/internal/paths"
)

func TestNotifier(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if err := Notifier()(Ready); err != nil {
		t.Errorf("without systemd: %v", err)
	}
	for _, name := range []string{filepath.Join(t.TempDir(), "n"), "@banger-test-" + filepath.Base(t.TempDir()) + t.Name()} {
		l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		t.Setenv("NOTIFY_SOCKET", name)
		notify := Notifier()
		if left, ok := os.LookupEnv("NOTIFY_SOCKET"); ok {
			t.Errorf("children would find %q", left)
		}
		for _, state := range []string{Ready, Stopping} {
			if err := notify(state); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 100)
			n, err := l.Read(buf)
			if err != nil || string(buf[:n]) != state {
				t.Errorf("systemd heard %q, %v", buf[:n], err)
			}
		}
		_ = l.Close()
		if err := notify(Ready); !errors.Is(err, errdefs.ErrUnavailable) {
			t.Errorf("nobody listens: %v", err)
		}
	}
}

// playSystemctl puts a program in the place of systemctl that does what the script says,
// and returns the file that holds the arguments it was called with.
func playSystemctl(t *testing.T, script string) (calls string) {
	t.Helper()
	dir := t.TempDir()
	calls = filepath.Join(dir, "calls")
	text := "#!/bin/sh\necho \"$*\" >> '" + calls + "'\n" + script + "\n"
	if err := os.WriteFile(filepath.Join(dir, "systemctl"), []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return calls
}

func TestVerbs(t *testing.T) {
	calls := playSystemctl(t, "[ $2 != show ] || echo 4711")
	ctx := t.Context()
	for _, err := range []error{
		Reload(ctx), Enable(ctx, Daemon), Start(ctx, Daemon), Restart(ctx, Daemon), Disable(ctx, Daemon),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	if pid, err := MainPID(ctx, Daemon); err != nil || pid != 4711 {
		t.Errorf("main pid %d, %v", pid, err)
	}
	got, err := os.ReadFile(calls)
	if err != nil {
		t.Fatal(err)
	}
	const want = "daemon-reload\nenable --quiet bangerd.service\nstart bangerd.service\nrestart bangerd.service\n" +
		"disable --quiet --now bangerd.service\nshow --property MainPID --value bangerd.service\n"
	if text := strings.ReplaceAll(string(got), "--no-ask-password ", ""); text != want {
		t.Errorf("it was told\n%s\nwant\n%s", text, want)
	}
}

func TestFailures(t *testing.T) {
	playSystemctl(t, "echo 'Job for x failed.' >&2; exit 3")
	err := Start(t.Context(), Daemon)
	if !errors.Is(err, errdefs.ErrUnavailable) || !strings.Contains(err.Error(), "Job for x failed.") || !strings.Contains(errdefs.HintOf(err), "journalctl") {
		t.Errorf("%v (%s)", err, errdefs.HintOf(err))
	}
	playSystemctl(t, "echo all fine")
	if pid, err := MainPID(t.Context(), Daemon); err == nil {
		t.Errorf("pid %d", pid)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Start(ctx, Daemon); errdefs.ClassOf(err) != errdefs.ClassCanceled {
		t.Errorf("canceled: %v", err)
	}
}

// A daemon that is not the system's is never systemd's.
func TestRunsDaemon(t *testing.T) {
	l, err := paths.At(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if RunsDaemon(l) {
		t.Error("a daemon with its own directory is systemd's")
	}
}
