package machine

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"banger/internal/guest/agent/boot"
	"banger/internal/guest/agent/ifconf"
	"banger/internal/guest/agent/proc"
)

func TestAddHost(t *testing.T) {
	for _, c := range []struct{ old, want string }{
		{"", "127.0.0.1 localhost # this machine\n127.0.1.1 otter # this machine\n"},
		{"127.0.0.1\tlocalhost\n::1 localhost", "127.0.0.1\tlocalhost\n::1 localhost\n127.0.1.1 otter # this machine\n"},
		{"127.0.0.1 localhost\n127.0.1.1 before # this machine\n1.2.3.4 x\n", "127.0.0.1 localhost\n1.2.3.4 x\n127.0.1.1 otter # this machine\n"},
	} {
		got := string(addHost([]byte(c.old), "otter"))
		if got != c.want {
			t.Errorf("%q: %q", c.old, got)
		}
		if again := string(addHost([]byte(got), "otter")); again != got {
			t.Errorf("%q: not stable: %q", c.old, again)
		}
	}
}

func TestReplaceFileKeepsSymlinks(t *testing.T) {
	dir := t.TempDir()
	_ = os.WriteFile(filepath.Join(dir, "target"), []byte("old"), 0o600)
	_ = os.Symlink("target", filepath.Join(dir, "link"))
	if err := replaceFile(filepath.Join(dir, "link"), []byte("new")); err != nil {
		t.Fatal(err)
	}
	if to, err := os.Readlink(filepath.Join(dir, "link")); err != nil || to != "target" {
		t.Errorf("link: %q %v", to, err)
	}
	if b, _ := os.ReadFile(filepath.Join(dir, "target")); string(b) != "new" {
		t.Errorf("target = %q", b)
	}
	if err := replaceFile(filepath.Join(dir, "fresh"), []byte("x")); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*banger-new")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestSetDNS(t *testing.T) {
	servers := []netip.Addr{netip.MustParseAddr("192.168.127.1"), netip.MustParseAddr("fd00::1")}
	want := "search vm\nnameserver 192.168.127.1\nnameserver fd00::1\n"
	m := New(slog.New(slog.DiscardHandler), proc.NewSpawner(), boot.State{Init: "none"}, nil)
	for name, prepare := range map[string]func(root string) string{
		"missing": func(string) string { return "etc/resolv.conf" },
		"file": func(root string) string {
			_ = os.WriteFile(filepath.Join(root, "etc/resolv.conf"), []byte("nameserver 9.9.9.9\n"), 0o644)
			return "etc/resolv.conf"
		},
		"dangling relative": func(root string) string {
			_ = os.Symlink("../run/systemd/resolve/stub-resolv.conf", filepath.Join(root, "etc/resolv.conf"))
			return "run/systemd/resolve/stub-resolv.conf"
		},
		"dangling absolute": func(root string) string {
			_ = os.Symlink("/run/resolvconf/resolv.conf", filepath.Join(root, "etc/resolv.conf"))
			return "run/resolvconf/resolv.conf"
		},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			_ = os.Mkdir(filepath.Join(root, "etc"), 0o755)
			file := prepare(root)
			before, _ := os.Readlink(filepath.Join(root, "etc/resolv.conf"))
			if err := m.setDNS(root, ifconf.Card{Name: "eth0"}, servers, "vm"); err != nil {
				t.Fatal(err)
			}
			if b, err := os.ReadFile(filepath.Join(root, file)); err != nil || string(b) != want {
				t.Errorf("%s = %q %v", file, b, err)
			}
			if after, _ := os.Readlink(filepath.Join(root, "etc/resolv.conf")); after != before {
				t.Errorf("the link became %q", after)
			}
			b, _ := os.ReadFile(filepath.Join(root, "run/systemd/resolved.conf.d/00-banger.conf"))
			if !strings.Contains(string(b), "DNS=192.168.127.1 fd00::1\nDomains=~. vm\n") {
				t.Errorf("drop-in = %q", b)
			}
		})
	}
}

func TestStatusTakes(t *testing.T) {
	const status = "Name:\tsystemd\nSigPnd:\t0000000000000000\nSigBlk:\t7be3c0fe28014a03\nSigIgn:\t0000000000001000\nSigCgt:\t00000001000006ec\n"
	if !statusTakes(status, int(powerOffOrder.systemd)) {
		t.Error("systemd's mask has the signal")
	}
	if statusTakes("SigBlk:\t0000000000000000\nSigCgt:\t0000000000000000\n", int(powerOffOrder.systemd)) || statusTakes("", 1) {
		t.Error("nobody takes it")
	}
	if statusTakes(status, 13) {
		t.Error("an ignored signal is not taken")
	}
}

func TestWaitFile(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "made")
	over := make(chan error, 1)
	go func() { over <- waitFile(t.Context(), dir, "private") }()
	// The directory appears when the watch is about to be set.
	for !exists(dir) {
		select {
		case err := <-over:
			t.Fatalf("ended early: %v", err)
		default:
		}
	}
	_ = os.WriteFile(filepath.Join(dir, "other"), nil, 0o644)
	_ = os.WriteFile(filepath.Join(dir, "private"), nil, 0o644)
	if err := <-over; err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := waitFile(ctx, dir, "never"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error = %v", err)
	}
}
