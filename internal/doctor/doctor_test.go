package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"banger/internal/errdefs"
	"banger/internal/sysexec"
)

func TestRunKeepsOrderAndBoundsEach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		started := time.Now()
		results := Run(t.Context(), []Check{
			{Name: "slow", Run: func(context.Context) Result {
				<-time.After(3 * time.Second)
				return Pass("late")
			}},
			{Name: "hung", Timeout: 5 * time.Second, Run: func(context.Context) Result {
				<-release // as a read from a dead mount: it does not look at ctx
				return Pass("never")
			}},
			{Name: "polite", Timeout: time.Second, Run: func(ctx context.Context) Result {
				<-ctx.Done()
				return Warn("wait", "gave up")
			}},
			{Name: "quick", Run: func(context.Context) Result { return Fail("mend it", "broken") }},
		})
		if took := time.Since(started); took != 5*time.Second {
			t.Errorf("took %v: the checks did not run together", took)
		}
		close(release)
		var names []string
		for _, r := range results {
			names = append(names, r.Name)
		}
		if got := strings.Join(names, " "); got != "slow hung polite quick" {
			t.Errorf("order: %s", got)
		}
		if r := results[0]; r.Status != StatusPass || r.Detail != "late" {
			t.Errorf("slow: %+v", r)
		}
		if r := results[1]; r.Status != StatusFail || !strings.Contains(r.Detail, "5s") {
			t.Errorf("hung: %+v", r)
		}
		if r := results[2]; r.Status == StatusPass {
			t.Errorf("polite: %+v", r)
		}
		if r := results[3]; r.Status != StatusFail || r.Fix != "mend it" {
			t.Errorf("quick: %+v", r)
		}
	})
}

func TestRunEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r := Run(ctx, []Check{{Name: "c", Run: func(ctx context.Context) Result {
		<-ctx.Done()
		return Fail("try again", "canceled")
	}}})
	if r[0].Status != StatusFail {
		t.Errorf("%+v", r)
	}
}

func TestWorst(t *testing.T) {
	p, w, f := Pass("a"), Warn("try", "b"), Fail("try", "c")
	for want, rs := range map[Status][]Result{
		StatusPass: {p, p}, StatusWarn: {p, w, p}, StatusFail: {f, w, p},
	} {
		if got := Worst(rs); got != want {
			t.Errorf("%v: got %s, want %s", rs, got, want)
		}
	}
	if Worst(nil) != StatusPass {
		t.Error("no results are not a pass")
	}
}

func TestJSON(t *testing.T) {
	r := Run(t.Context(), []Check{{Name: "n", Run: func(context.Context) Result { return Warn("do", "d") }}})
	got, err := json.Marshal(r)
	if err != nil || string(got) != `[{"name":"n","status":"warn","detail":"d","fix":"do"}]` {
		t.Errorf("%s, %v", got, err)
	}
}

func TestTools(t *testing.T) {
	debian, arch := Distro{ID: "debian"}, Distro{ID: "arch", Name: "Arch Linux"}
	sh := Tool{Program: "sh", Package: "dash", Purpose: "run scripts"}
	none := Tool{Program: "no-such-program-here", Package: "nothing", Purpose: "fly"}
	if r := sh.Check(debian).Run(t.Context()); r.Status != StatusPass || !strings.HasSuffix(r.Detail, "/sh") {
		t.Errorf("%+v", r)
	}
	if r := none.Check(debian).Run(t.Context()); r.Status != StatusFail || r.Fix != "sudo apt-get install nothing" || !strings.Contains(r.Detail, "to fly") {
		t.Errorf("%+v", r)
	}
	if r := none.Check(arch).Run(t.Context()); strings.Contains(r.Fix, "apt-get") || !strings.Contains(r.Fix, "Arch Linux") {
		t.Errorf("%+v", r)
	}
	none.Optional = true
	if r := none.Check(debian).Run(t.Context()); r.Status != StatusWarn {
		t.Errorf("%+v", r)
	}
	other := Tool{Program: "no-such-either", Package: "nothing", Purpose: "swim"}
	if r := Tools("all", debian, sh, none, other).Run(t.Context()); r.Status != StatusFail ||
		r.Fix != "sudo apt-get install nothing" || !strings.Contains(r.Detail, "swim") {
		t.Errorf("%+v", r)
	}
	if r := Tools("all", debian, sh).Run(t.Context()); r.Status != StatusPass {
		t.Errorf("%+v", r)
	}
}

func file(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestReadDistro(t *testing.T) {
	d := readDistro(file(t, "os-release", "PRETTY_NAME=\"Linux Mint 22\"\nID=linuxmint\nID_LIKE=\"ubuntu debian\"\nVERSION_ID='22'\n"))
	if d.ID != "linuxmint" || d.Version != "22" || d.Name != "Linux Mint 22" {
		t.Errorf("%+v", d)
	}
	if got := d.Install("x", "y"); got != "sudo apt-get install y" {
		t.Errorf("%q", got)
	}
	if d := readDistro("/no/such/file"); d.ID != "linux" {
		t.Errorf("%+v", d)
	}
}

func TestStateDir(t *testing.T) {
	base := t.TempDir()
	run := func(dir string) Result { return StateDir(dir).Run(t.Context()) }
	if r := run(filepath.Join(base, "a", "b")); r.Status != StatusPass || !strings.Contains(r.Detail, "will be made") {
		t.Errorf("to be made: %+v", r)
	}
	own := filepath.Join(base, "own dir")
	if err := os.Mkdir(own, 0o700); err != nil {
		t.Fatal(err)
	}
	if r := run(own); r.Status != StatusPass {
		t.Errorf("own: %+v", r)
	}
	if err := os.Chmod(own, 0o755); err != nil {
		t.Fatal(err)
	}
	if r := run(own); r.Status != StatusWarn || r.Fix != "chmod 700 '"+own+"'" {
		t.Errorf("open to others: %+v", r)
	}
	if r := run(file(t, "plain", "")); r.Status != StatusFail {
		t.Errorf("a file: %+v", r)
	}
	if r := run("/proc/banger"); os.Geteuid() != 0 && r.Status != StatusFail {
		t.Errorf("not creatable: %+v", r)
	}
	if os.Geteuid() != 0 {
		if r := run("/"); r.Status != StatusFail {
			t.Errorf("root's: %+v", r)
		}
		return
	}
	if err := os.Chown(own, 12345, 12345); err != nil {
		t.Fatal(err)
	}
	if r := run(own); r.Status != StatusFail || !strings.Contains(r.Detail, "12345") {
		t.Errorf("another's: %+v", r)
	}
}

func TestDiskSpace(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "not", "there")
	for want, limits := range map[Status][2]int64{
		StatusPass: {1, 1}, StatusWarn: {1 << 60, 1}, StatusFail: {1 << 61, 1 << 60},
	} {
		if r := DiskSpace(dir, limits[0], limits[1]).Run(t.Context()); r.Status != want {
			t.Errorf("%v: %+v", limits, r)
		}
	}
}

func TestKernelVerdict(t *testing.T) {
	for release, want := range map[string]Status{
		"6.1.0-30-amd64": StatusPass, "5.10.0": StatusPass, "5.9.16": StatusFail, "4.19.0": StatusFail, "10.0": StatusPass, "odd": StatusWarn,
	} {
		if r := kernelVerdict(release, "amd64"); r.Status != want {
			t.Errorf("%s: %+v", release, r)
		}
	}
	if r := kernelVerdict("6.1.0", "arm64"); r.Status != StatusFail {
		t.Errorf("%+v", r)
	}
	if r := Kernel().Run(t.Context()); r.Detail == "" {
		t.Errorf("%+v", r)
	}
}

func TestMemory(t *testing.T) {
	info := file(t, "meminfo", "MemTotal:       8388608 kB\nMemFree: 1 kB\nMemAvailable:    4194304 kB\n")
	if r := memory(info, 2<<30); r.Status != StatusPass || r.Detail != "4.0 GiB of 8.0 GiB available" {
		t.Errorf("%+v", r)
	}
	if r := memory(info, 5<<30); r.Status != StatusWarn {
		t.Errorf("%+v", r)
	}
	if r := memory(file(t, "meminfo", "nothing\n"), 1); r.Status != StatusWarn {
		t.Errorf("%+v", r)
	}
	if r := Memory(1).Run(t.Context()); r.Status != StatusPass {
		t.Errorf("this host: %+v", r)
	}
}

func TestCgroup(t *testing.T) {
	root := t.TempDir()
	put := func(name, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(root, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	v2 := file(t, "cgroup", "0::/user.slice/me\n")
	put("cgroup.controllers", "memory pids\n")
	put("user.slice/me/memory.max", "max\n")
	if r := cgroup(v2, root); r.Status != StatusPass || r.Detail != "v2" {
		t.Errorf("no limit: %+v", r)
	}
	put("user.slice/memory.max", "1073741824\n") // a parent's limit counts
	put("user.slice/me/pids.max", "9999\n")
	if r := cgroup(v2, root); r.Status != StatusWarn || !strings.Contains(r.Detail, "1.0 GiB") || !strings.Contains(r.Detail, "9999") {
		t.Errorf("limited: %+v", r)
	}
	put("memory/box/memory.limit_in_bytes", "9223372036854771712\n")
	put("pids/box/pids.max", "100\n")
	v1 := file(t, "cgroup", "4:memory:/box\n8:pids:/box\n1:name=systemd:/\n")
	if r := cgroup(v1, root); r.Status != StatusWarn || r.Detail != "v1, processes limited to 100" {
		t.Errorf("v1: %+v", r)
	}
	if r := Cgroup().Run(t.Context()); r.Status == StatusFail {
		t.Errorf("this host: %+v", r)
	}
}

func TestResolver(t *testing.T) {
	for text, want := range map[string]Status{
		"# c\nnameserver 127.0.0.53\nnameserver ::1\noptions edns0\n": StatusPass,
		"search lan\n":             StatusWarn,
		"nameserver dns.example\n": StatusWarn,
		"nameserver fe80::1%eth0":  StatusPass,
	} {
		if r := resolver(file(t, "resolv.conf", text)); r.Status != want {
			t.Errorf("%q: %+v", text, r)
		}
	}
	if r := resolver("/no/such/file"); r.Status != StatusWarn || r.Fix == "" {
		t.Errorf("%+v", r)
	}
}

func TestSubIDs(t *testing.T) {
	f := file(t, "subuid", "other:1:99999\nme:100000:1000\nme:200000:65536\n1000:300000:70000\nbad\nme:x:y\n")
	if n := subIDs(f, "me", 77); n != 65536 {
		t.Errorf("by name: %d", n)
	}
	if n := subIDs(f, "nobody", 1000); n != 70000 {
		t.Errorf("by uid: %d", n)
	}
	if n := subIDs(f, "nobody", 5); n != 0 {
		t.Errorf("none: %d", n)
	}
	if r := UserNamespaces(Distro{ID: "debian"}).Run(t.Context()); r.Status == StatusFail || r.Detail == "" {
		t.Errorf("this user: %+v", r)
	}
}

func TestUserNamespaces(t *testing.T) {
	root, uid := t.TempDir(), 77777 // nobody's, as far as /etc/passwd goes
	put := func(name, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(root, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	check := func(helper ...string) Result {
		t.Helper()
		r := userNamespaces(t.Context(), Distro{ID: "ubuntu"}, root, uid, helper)
		if r.Status != StatusPass && r.Fix == "" {
			t.Errorf("no remedy: %+v", r)
		}
		return r
	}
	if r := check("true"); r.Status != StatusWarn || !strings.Contains(r.Fix, "usermod --add-subuids") {
		t.Errorf("no ids: %+v", r)
	}
	put("etc/subuid", "77777:100000:65536\n")
	put("etc/subgid", "77777:100000:65536\n")
	if _, err := sysexec.Look("newuidmap"); err != nil {
		t.Skip(err)
	}
	if r := check("no-such-helper"); r.Status != StatusWarn || r.Fix != "sudo apt-get install no-such-helper" {
		t.Errorf("no helper: %+v", r)
	}
	// Ubuntu: the switch is on, and the helper is let through all the same.
	put("proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1\n")
	if r := check("sh", "-c", `[ "$0" = true ]`); r.Status != StatusPass {
		t.Errorf("the helper may: %+v", r)
	}
	if r := check("sh", "-c", "echo refused >&2; exit 1"); r.Status != StatusWarn || !strings.Contains(r.Fix, "apparmor.d/mmdebstrap") {
		t.Errorf("the helper may not: %+v", r)
	}
	put("proc/sys/user/max_user_namespaces", "0\n")
	if r := check("false"); !strings.Contains(r.Fix, "max_user_namespaces=15000") {
		t.Errorf("none at all: %+v", r)
	}
	if helper[0] != "mmdebstrap" || helper[1] != "--unshare-helper" {
		t.Errorf("the one that builds images is not asked, but %v", helper)
	}
}

// Whatever is wrong, each check says what to do about it.
func TestEveryBadResultHasAFix(t *testing.T) {
	none, empty := "/no/such/file", file(t, "empty", "")
	bad := []Result{
		kernelVerdict("odd", "amd64"), kernelVerdict("4.19.0", "amd64"), kernelVerdict("6.1.0", "arm64"),
		memory(none, 1), memory(empty, 1), memory(file(t, "meminfo", "MemTotal: 2 kB\nMemAvailable: 1 kB\n"), 1<<30),
		cgroup(none, "/"), resolver(none), resolver(empty),
		checkOwn(none), checkOwn(empty),
		StateDir(filepath.Join(empty, "below a file")).Run(t.Context()),
		DiskSpace(filepath.Join(empty, "below a file"), 1, 1).Run(t.Context()),
		DiskSpace("/", 1<<62, 1<<61).Run(t.Context()),
		FailErr("mend it", errors.New("no hint")), FailErr("", errdefs.Invalid("hint").WithHint("mend it")),
		Run(t.Context(), []Check{{Timeout: 1, Run: func(context.Context) Result { select {} }}})[0],
	}
	for n, r := range bad {
		if r.Status == StatusPass || r.Detail == "" || r.Fix == "" {
			t.Errorf("%d: %+v", n, r)
		}
	}
}

func TestQuoteAndHuman(t *testing.T) {
	for in, want := range map[string]string{"/a/b-c_d.e": "/a/b-c_d.e", "/a b": "'/a b'", "it's": `'it'\''s'`} {
		if got := quote(in); got != want {
			t.Errorf("%q: got %s", in, got)
		}
	}
	for in, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1536: "1.5 KiB", 16 << 30: "16 GiB", 3 << 40: "3.0 TiB"} {
		if got := human(in); got != want {
			t.Errorf("%d: got %s", in, got)
		}
	}
}
