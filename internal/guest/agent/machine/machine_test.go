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

	"golang.org/x/sys/unix"

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

// Whatever an image has in the place of the files that say who the machine is, nothing
// waits and nothing else is touched.
func TestNamesInOddImages(t *testing.T) {
	m := New(slog.New(slog.DiscardHandler), proc.NewSpawner(), boot.State{Init: "none"}, nil)
	names := []string{"hostname", "hosts", "resolv.conf"}
	want := map[string]string{
		"hostname": "otter\n", "resolv.conf": "nameserver 192.168.127.1\n",
		"hosts": "127.0.0.1 localhost # this machine\n127.0.1.1 otter # this machine\n",
	}
	each := func(etc string, do func(path string) error) error {
		err := os.MkdirAll(etc, 0o755)
		for _, name := range names {
			err = errors.Join(err, do(filepath.Join(etc, name)))
		}
		return err
	}
	for name, c := range map[string]struct {
		prepare func(root string) error
		written bool
	}{
		"no etc": {func(string) error { return nil }, true},
		"links that dangle": {func(root string) error {
			return each(filepath.Join(root, "etc"), func(p string) error { return os.Symlink("../run/late/"+filepath.Base(p), p) })
		}, true},
		"links to files": {func(root string) error {
			return each(filepath.Join(root, "etc"), func(p string) error {
				return errors.Join(os.WriteFile(p+".real", nil, 0o644), os.Symlink(filepath.Base(p)+".real", p))
			})
		}, true},
		"something where the new file goes": {func(root string) error {
			return each(filepath.Join(root, "etc"), func(p string) error { return os.Symlink("/dev/full", p+".banger-new") })
		}, true},
		"directories": {func(root string) error {
			return each(filepath.Join(root, "etc"), func(p string) error { return os.MkdirAll(p+"/full", 0o755) })
		}, false},
		"pipes": {func(root string) error {
			return each(filepath.Join(root, "etc"), func(p string) error { return unix.Mkfifo(p, 0o644) })
		}, false},
		"links to pipes": {func(root string) error {
			return each(filepath.Join(root, "etc"), func(p string) error {
				return errors.Join(unix.Mkfifo(p+".real", 0o644), os.Symlink(filepath.Base(p)+".real", p))
			})
		}, false},
		"loops": {func(root string) error {
			return each(filepath.Join(root, "etc"), func(p string) error { return os.Symlink(filepath.Base(p), p) })
		}, false},
		"etc is a file": {func(root string) error { return os.WriteFile(filepath.Join(root, "etc"), nil, 0o644) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			if err := c.prepare(root); err != nil {
				t.Fatal(err)
			}
			m.writeNames(filepath.Join(root, "etc"), "otter")
			err := m.setDNS(root, ifconf.Card{Name: "eth0"}, []netip.Addr{netip.MustParseAddr("192.168.127.1")}, "")
			if (err == nil) != c.written {
				t.Errorf("name servers: %v", err)
			}
			for file, text := range want {
				got, err := readFile(filepath.Join(root, "etc", file))
				if c.written && string(got) != text {
					t.Errorf("%s: %q %v", file, got, err)
				}
			}
		})
	}
}

func TestMakeDirs(t *testing.T) {
	root := t.TempDir()
	m := New(slog.New(slog.DiscardHandler), proc.NewSpawner(), boot.State{}, nil)
	file := filepath.Join(root, "file")
	if err := errors.Join(os.WriteFile(file, []byte("kept"), 0o600), os.Mkdir(filepath.Join(root, "there"), 0o700)); err != nil {
		t.Fatal(err)
	}
	m.makeDirs([]string{file, file + "/below", filepath.Join(root, "there"), filepath.Join(root, "var/lib/data")})
	if b, err := os.ReadFile(file); string(b) != "kept" {
		t.Errorf("a file became %q %v", b, err)
	}
	for dir, mode := range map[string]os.FileMode{"there": 0o700, "var/lib/data": 0o755} {
		if st, err := os.Stat(filepath.Join(root, dir)); err != nil || !st.IsDir() || st.Mode().Perm() != mode {
			t.Errorf("%s: %v %v", dir, st, err)
		}
	}
}
