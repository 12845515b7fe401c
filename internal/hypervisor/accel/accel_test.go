package accel

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The test binary is also the child, as bangerd is, and a few misbehaving ones.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "kvm-probe":
			os.Exit(ChildMain(os.Args[2:]))
		case "say": // prints args[2], then does as args[3] tells
			fmt.Println(os.Args[2])
			switch os.Args[3] {
			case "spin":
				for n := uint64(1); ; n++ {
					runtime.KeepAlive(hostLoop(n))
				}
			case "hang":
				_, _ = os.NewFile(3, "none").Read(nil)
				select {}
			}
			os.Exit(0)
		case "mute":
			os.Exit(3)
		}
	}
	os.Exit(m.Run())
}

func self(t *testing.T, args ...string) []string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return append([]string{exe}, args...)
}

// probe checks what holds for every probe: an answer within a second, and no
// process left.
func probe(t *testing.T, o Options) Verdict {
	t.Helper()
	start := time.Now()
	v, err := Probe(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if d := time.Since(start); d > time.Second {
		t.Errorf("answer took %s", d)
	}
	if v.Reason == "" {
		t.Error("verdict has no reason")
	}
	if v.Kind != KindWorks && v.Hint == "" {
		t.Errorf("verdict %s has no hint", v.Kind)
	}
	return v
}

func TestProbeThisHost(t *testing.T) {
	v := probe(t, Options{Command: self(t, "kvm-probe")})
	t.Logf("%+v", v)
	if _, err := os.Stat(Device); err != nil {
		if v.Kind != KindAbsent {
			t.Fatalf("verdict %s without a device", v.Kind)
		}
		return
	}
	if v.Rounds > 0 && v.HostNanos == 0 {
		t.Error("measured the guest but not the host")
	}
	if v.Kind == KindWorks && v.GuestNanos > 50*time.Millisecond {
		t.Errorf("a guest that needs %s works?", v.GuestNanos)
	}
}

func TestAbsent(t *testing.T) {
	v := probe(t, Options{Command: self(t, "kvm-probe"), Device: filepath.Join(t.TempDir(), "kvm")})
	if v.Kind != KindAbsent || !strings.Contains(v.Hint, "modprobe") {
		t.Fatalf("got %+v", v)
	}
}

func TestNotAKVMDevice(t *testing.T) {
	v := probe(t, Options{Command: self(t, "kvm-probe"), Device: "/dev/null"})
	if v.Kind != KindEmulated || !strings.Contains(v.Reason, "cannot make") {
		t.Fatalf("got %+v", v)
	}
}

// A user who may not open the device gets told the group.
func TestNoPermission(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to become another user")
	}
	dir := t.TempDir()
	device := filepath.Join(dir, "kvm")
	exe, err := os.ReadFile(self(t)[0])
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "probe")
	for _, err := range []error{
		os.WriteFile(bin, exe, 0o755), os.WriteFile(device, nil, 0o660),
		os.Chown(device, 0, 1), os.Chmod(device, 0o660), os.Chmod(dir, 0o755), os.Chmod(filepath.Dir(dir), 0o755),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	done := make(chan Verdict)
	go func() {
		defer close(done)
		// Only this thread becomes nobody; it is never given back.
		runtime.LockOSThread()
		for _, id := range []uintptr{unix.SYS_SETGROUPS, unix.SYS_SETRESGID, unix.SYS_SETRESUID} {
			a, b, c := uintptr(65534), uintptr(65534), uintptr(65534)
			if id == unix.SYS_SETGROUPS {
				a, b, c = 0, 0, 0
			}
			if _, _, errno := unix.RawSyscall(id, a, b, c); errno != 0 {
				t.Errorf("become nobody: %v", errno)
				return
			}
		}
		v, err := Probe(context.Background(), Options{Command: []string{bin, "kvm-probe"}, Device: device})
		if err != nil {
			t.Error(err)
		}
		done <- v
	}()
	v := <-done
	if v.Kind != KindNoPermission || !strings.Contains(v.Reason, `"daemon"`) || !strings.Contains(v.Hint, "usermod -aG daemon") {
		t.Fatalf("got %+v", v)
	}
}

// Children that never come back are given up in time and do not stay.
func TestChildNeverEnds(t *testing.T) {
	device := "/dev/null"
	enter, _ := json.Marshal(report{Stage: stageEnter})
	for _, c := range []struct{ does, reason string }{
		{"spin", "did not end within"}, // proves something, unless the host let it have no CPU time
		{"hang", "too busy"},
	} {
		t.Run(c.does, func(t *testing.T) {
			cache := filepath.Join(t.TempDir(), "accel.json")
			v := probe(t, Options{Command: self(t, "say", string(enter), c.does), Device: device, CacheFile: cache})
			if v.Kind != KindEmulated || !strings.Contains(v.Reason, c.reason) {
				t.Fatalf("got %+v", v)
			}
			if _, err := os.Stat(cache); (err == nil) == strings.Contains(v.Reason, "too busy") {
				t.Errorf("cached: %v, with %q", err == nil, v.Reason)
			}
			if pids := children(t); len(pids) > 0 {
				t.Errorf("children %v are left", pids)
			}
		})
	}
}

// children lists the live children of this process.
func children(t *testing.T) (pids []string) {
	t.Helper()
	tasks, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil || len(tasks) == 0 {
		t.Skip("kernel without /proc/self/task/*/children")
	}
	for _, f := range tasks {
		b, _ := os.ReadFile(f)
		for _, pid := range strings.Fields(string(b)) {
			st, _ := os.ReadFile("/proc/" + pid + "/stat")
			if i := strings.LastIndexByte(string(st), ')'); i > 0 && st[i+2] != 'Z' && st[i+2] != 'X' {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

func TestCancel(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Probe(ctx, Options{Command: self(t, "say", "{}", "hang"), Device: "/dev/null"}); err == nil {
		t.Fatal("no error after cancel")
	}
	if pids := children(t); len(pids) > 0 {
		t.Errorf("children %v are left", pids)
	}
}

func TestMuteChild(t *testing.T) {
	if v, err := Probe(t.Context(), Options{Command: self(t, "mute"), Device: "/dev/null"}); err == nil {
		t.Fatalf("got %+v, want an error", v)
	}
}

func TestJudge(t *testing.T) {
	for _, c := range []struct {
		name   string
		r      report
		kind   Kind
		reason string
	}{
		{"fast", report{Stage: stageDone, Rounds: rounds, GuestNanos: 60e3, HostNanos: 50e3}, KindWorks, "own speed"},
		{"nested", report{Stage: stageDone, Rounds: rounds, GuestNanos: 2e6, HostNanos: 30e3}, KindWorks, "own speed"},
		{"emulated", report{Stage: stageDone, Rounds: rounds, GuestNanos: 270e6, HostNanos: 50e3}, KindEmulated, "does not run guests"},
		{"no device", report{Stage: stageOpen, Errno: int(unix.ENODEV)}, KindAbsent, "no such device"},
		{"other hypervisor", report{Stage: stageMake, Errno: int(unix.EBUSY)}, KindEmulated, "another hypervisor"},
		{"entry fails", report{Stage: stageEnter, Exit: 9}, KindEmulated, "exit reason 9"},
		{"miscounts", report{Stage: stageEnter, Wrong: true}, KindEmulated, "miscounts"},
	} {
		t.Run(c.name, func(t *testing.T) {
			v, conclusive := judge(Device, c.r, true, 0)
			if v.Kind != c.kind || !strings.Contains(v.Reason, c.reason) || !conclusive {
				t.Fatalf("got %+v, conclusive %v", v, conclusive)
			}
		})
	}
}

func TestCache(t *testing.T) {
	dir := t.TempDir()
	o := Options{Command: self(t, "kvm-probe"), Device: "/dev/null", CacheFile: filepath.Join(dir, "accel.json")}
	first := probe(t, o)
	if first.Cached {
		t.Fatal("first answer came from a cache")
	}
	o.Command = []string{"/nonexistent"} // a second child would fail
	second := probe(t, o)
	if !second.Cached || second.Kind != first.Kind || second.Reason != first.Reason {
		t.Fatalf("got %+v after %+v", second, first)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*.json.*")); len(left) > 0 {
		t.Errorf("left %v", left)
	}
	// udev touches the device whenever a VM comes or goes.
	device := filepath.Join(dir, "kvm")
	if err := os.WriteFile(device, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	before, err := hostKey(device)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(device, time.Time{}, time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if after, err := hostKey(device); err != nil || after != before {
		t.Errorf("the key is %s, was %s: %v", after, before, err)
	}
	// What was measured holds until the next boot; what was not is doubted some day.
	for _, c := range []struct {
		v    Verdict
		kept bool
	}{{Verdict{Kind: KindWorks, Rounds: 9}, true}, {Verdict{Kind: KindEmulated, Rounds: 9}, true}, {Verdict{Kind: KindAbsent}, true}, {Verdict{Kind: KindEmulated}, false}} {
		old := filepath.Join(dir, "old.json")
		if err := errors.Join(writeCache(old, "key", c.v), os.Chtimes(old, time.Time{}, time.Now().Add(-time.Hour))); err != nil {
			t.Fatal(err)
		}
		if _, ok := readCache(old, "key"); ok != c.kept {
			t.Errorf("after an hour %+v is believed: %v", c.v, ok)
		}
	}
	// Another device, another boot, or a broken file: no answer from the cache.
	if key, err := hostKey("/dev/zero"); err != nil {
		t.Fatal(err)
	} else if _, ok := readCache(o.CacheFile, key); ok {
		t.Error("the cache answers for another device")
	}
	if err := os.WriteFile(o.CacheFile, []byte("{"+strconv.Itoa(1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Probe(t.Context(), o); err == nil {
		t.Error("a broken cache file gave an answer")
	}
}
