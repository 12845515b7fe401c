package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"banger/internal/api/bangerv1"
	"banger/internal/config"
	"banger/internal/errdefs"
	"banger/internal/paths"
)

// run runs banger on files and returns its exit code and what it printed.
func run(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	dir := t.TempDir()
	var files [3]*os.File
	for i, name := range []string{"in", "out", "err"} {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files[i] = f
	}
	code = Main(args, files[0], files[1], files[2])
	read := func(f *os.File) string {
		b, err := os.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	return code, read(files[1]), read(files[2])
}

// walk visits every command of banger's own.
func walk(c *cobra.Command, visit func(*cobra.Command)) {
	visit(c)
	for _, sub := range c.Commands() {
		walk(sub, visit)
	}
}

func TestEveryCommandIsDocumentedAndCompleted(t *testing.T) {
	root := newRootCmd(newApp(os.Stdin, os.Stdout, os.Stderr))
	leaves := 0
	walk(root, func(c *cobra.Command) {
		if c.Short == "" || strings.HasSuffix(c.Short, ".") {
			t.Errorf("%s: short help %q", c.CommandPath(), c.Short)
		}
		if c.HasSubCommands() {
			return
		}
		leaves++
		if !strings.HasPrefix(c.Example, "  banger ") && !strings.Contains(c.Example, "banger") {
			t.Errorf("%s has no examples", c.CommandPath())
		}
		if c.ValidArgsFunction == nil {
			t.Errorf("%s completes file names", c.CommandPath())
		}
		for line := range strings.Lines(c.Long) {
			if len(strings.TrimSuffix(line, "\n")) > 95 && !strings.Contains(line, " ") {
				t.Errorf("%s: a line of its help is too long: %q", c.CommandPath(), line)
			}
		}
	})
	if leaves < 30 {
		t.Errorf("only %d commands", leaves)
	}
	for _, name := range []string{"run", "exec", "shell", "cp", "logs"} {
		short, _, err := root.Find([]string{name})
		long, _, err2 := root.Find([]string{"vm", name})
		if err != nil || err2 != nil || short.Use != long.Use {
			t.Errorf("banger %s and banger vm %s differ", name, name)
		}
	}
}

func TestUsageErrors(t *testing.T) {
	for _, args := range [][]string{
		{"nonsense"}, {"vm", "nonsense"}, {"vm", "list", "--nonsense"}, {"vm", "start"}, {"exec", "x"}, {"cp", "a"},
		{"run", "-d", "--rm"}, {"run"}, {"vm", "rename", "x"}, {"vm", "start", "--wait", "x", "y"},
	} {
		code, out, errText := run(t, args...)
		lines := strings.Split(strings.TrimSuffix(errText, "\n"), "\n")
		if code != 2 || out != "" || len(lines) != 2 || !strings.HasPrefix(lines[0], "error: ") || !strings.HasPrefix(lines[1], "try: ") {
			t.Errorf("banger %v: code %d, stdout %q, stderr %q", args, code, out, errText)
		}
	}
}

func TestReport(t *testing.T) {
	withOp := errdefs.NotFound("no vm").WithHint("look\naround")
	withOp.Op = "op-1"
	for _, tc := range []struct {
		err  error
		code int
		want string
	}{
		{nil, 0, ""},
		{errors.New("plain"), 1, "error: plain\n"},
		{withOp, 1, "error: no vm (op-1)\ntry: look\n     around\n"},
		{&exitError{7, nil}, 7, ""},
		{ownFailure(errors.New("mine")), 125, "error: mine\n"},
		{ownFailure(&exitError{124, nil}), 124, ""},
		{manyErrors{errors.New("one"), withOp}, 1, "error: one\nerror: no vm (op-1)\ntry: look\n     around\n"},
		{interrupted(fmt.Errorf("wait: %w", errInterrupted)), 130, ""},
		{errors.New("evil \x1b[2J\x07name"), 1, "error: evil [2Jname\n"},
	} {
		f, err := os.Create(filepath.Join(t.TempDir(), "err"))
		if err != nil {
			t.Fatal(err)
		}
		a := newApp(f, f, f)
		if got := a.report(tc.err); got != tc.code {
			t.Errorf("%v: code %d, want %d", tc.err, got, tc.code)
		}
		if b, err := os.ReadFile(f.Name()); err != nil || string(b) != tc.want {
			t.Errorf("%v: printed %q, want %q", tc.err, b, tc.want)
		}
		_ = f.Close()
	}
}

func TestParseSizeFlags(t *testing.T) {
	for _, tc := range []struct {
		text string
		bare int64
		want int64 // 0: refused
	}{
		{"512", 1 << 20, 512 << 20}, {"2G", 1 << 20, 2 << 30}, {"1.5G", 1 << 20, 3 << 29}, {"1048576K", 1 << 20, 1 << 30},
		{"16G", 0, 16 << 30}, {"16", 0, 0}, {"0", 0, 0}, {"0", 1 << 20, 0}, {"-1", 1 << 20, 0}, {"-1G", 0, 0},
		{"", 1 << 20, 0}, {"x", 1 << 20, 0}, {"1K", 0, 0}, {"99999999999999999999", 1 << 20, 0}, {"9999999999T", 0, 0},
	} {
		got, err := parseSize("memory", tc.text, tc.bare)
		if got != tc.want || (err != nil) != (tc.want == 0) {
			t.Errorf("parseSize(%q, %d) = %d, %v", tc.text, tc.bare, got, err)
		}
		if err != nil && (!errors.Is(err, errdefs.ErrInvalidArgument) || errdefs.HintOf(err) == "") {
			t.Errorf("parseSize(%q): %v has no hint", tc.text, err)
		}
	}
}

func TestReadEnv(t *testing.T) {
	t.Setenv("SET_HERE", "x=y")
	file := filepath.Join(t.TempDir(), "env")
	if err := os.WriteFile(file, []byte("# comment\n\nA=1\nSET_HERE\nNOT_SET_HERE\n B=2 = 3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := readEnv([]string{"A=flag", "EMPTY=", "NOT_SET_HERE"}, []string{file})
	if want := []string{"A=1", "SET_HERE=x=y", "B=2 = 3", "A=flag", "EMPTY="}; err != nil || !slices.Equal(got, want) {
		t.Errorf("readEnv: %q, %v", got, err)
	}
	for _, bad := range []string{"", "=x", "A B=1"} {
		if _, err := readEnv([]string{bad}, nil); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := readEnv(nil, []string{file + "x"}); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("missing file: %v", err)
	}
	if _, err := readEnv(nil, []string{filepath.Dir(file)}); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("directory: %v", err)
	}
}

func TestEndsOfACopy(t *testing.T) {
	for text, want := range map[string]end{
		"box:/tmp": {"box", "/tmp"}, "box:rel": {"box", "rel"}, "box:": {"box", ""}, "/a:b": {"", "/a:b"}, "./a:b": {"", "./a:b"},
		"plain": {"", "plain"}, "-": {"", "-"}, ":x": {"", ":x"}, "a.b:c": {"", "a.b:c"}, "box:/a:b": {"box", "/a:b"},
	} {
		if got := parseEnd(text); got != want {
			t.Errorf("parseEnd(%q) = %+v, want %+v", text, got, want)
		}
	}
	for text, want := range map[string]struct {
		path     string
		contents bool
	}{
		"dir": {"dir", false}, "dir/": {"dir/", false}, "dir/.": {"dir", true}, ".": {".", true}, "/.": {"/", true},
		"./": {"./", false}, "a/..": {"a/..", false}, "dir/./": {"dir", true},
	} {
		if path, contents := contentsOf(text); path != want.path || contents != want.contents {
			t.Errorf("contentsOf(%q) = %q, %v", text, path, contents)
		}
	}
	for text, want := range map[string]string{"/a/b": "b", "/a/b/": "b", "/": "root", "..": "root", "a": "a"} {
		if got := guestBase(text); got != want {
			t.Errorf("guestBase(%q) = %q, want %q", text, got, want)
		}
	}
}

func TestPlainWriter(t *testing.T) {
	for in, want := range map[string]string{
		"plain\ttext\r\n":                  "plain\ttext\n",
		"\x1b[31mred\x1b[0m":               "red",
		"\x1b]0;title\x07after":            "after",
		"\x1b]0;title\x1b\\after":          "after",
		"\x1bPdcs\x1b\\x\x1b(By":           "xy",
		"\x1b[2J\x1b[1;1Hmove\x08\x07":     "move",
		"caf\xc3\xa9 \xc2\x9b31m \xc2\xa3": "caf\xc3\xa9 31m \xc2\xa3",
	} {
		for _, step := range []int{1, 1000} { // sequences may be cut anywhere
			var out bytes.Buffer
			w := &plainWriter{w: &out}
			for b := []byte(in); len(b) > 0; {
				n := min(step, len(b))
				if _, err := w.Write(b[:n]); err != nil {
					t.Fatal(err)
				}
				b = b[n:]
			}
			if out.String() != want {
				t.Errorf("%q by %d: %q, want %q", in, step, out.String(), want)
			}
		}
	}
}

func TestResolve(t *testing.T) {
	vms := []*bangerv1.VM{{Id: "abc111", Name: "one"}, {Id: "abc222", Name: "two"}, {Id: "fff333", Name: "abc"}}
	for ref, want := range map[string]string{
		"one": "abc111", "abc222": "abc222", "abc1": "abc111", "f": "fff333", "abc": "fff333", "ab": "ab", "zzz": "zzz", "": "",
	} {
		if got := resolve(vms, ref); got != want {
			t.Errorf("resolve(%q) = %q, want %q", ref, got, want)
		}
	}
}

func TestHumanText(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1 KiB", 1536: "1.5 KiB", 2 << 30: "2 GiB", 100 << 20: "100 MiB", 5 << 50: "5120 TiB"} {
		if got := humanBytes(n); got != want {
			t.Errorf("humanBytes(%d) = %q, want %q", n, got, want)
		}
	}
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for ago, want := range map[time.Duration]string{
		-time.Second: "now", 0: "now", 5 * time.Second: "5s ago", 90 * time.Minute: "1h ago", 47 * time.Hour: "47h ago", 100 * time.Hour: "4d ago",
	} {
		if got := humanAge(now.Add(-ago), now); got != want {
			t.Errorf("humanAge(%v) = %q, want %q", ago, got, want)
		}
	}
	if got := humanAge(time.Time{}, now); got != "-" {
		t.Errorf("humanAge(zero) = %q", got)
	}
	for want, in := range map[string][3]any{
		"12 of 80 packages": {12, 80, "packages"}, "3 MiB of 20 MiB (15%)": {3 << 20, 20 << 20, "bytes"}, "7 files": {7, 0, "files"}, "": {0, 0, "bytes"},
	} {
		if got := progressText(int64(in[0].(int)), int64(in[1].(int)), in[2].(string)); got != want {
			t.Errorf("progressText(%v) = %q, want %q", in, got, want)
		}
	}
}

// The names in --json are a promise.
func TestJSONNames(t *testing.T) {
	for _, tc := range []struct {
		view  any
		names []string
	}{
		{viewVM(&bangerv1.VM{}), []string{
			"id", "name", "state", "busy", "paused", "image", "image_id", "kernel", "kernel_id", "cpus", "memory_mib", "disk_bytes", "disk_bytes_per_second", "disk_ops_per_second", "disk_used_bytes",
			"net", "network", "no_nat", "expose_host", "addresses", "dns_name", "ports", "user", "workdir", "auto_remove", "driver", "driver_why", "disk_method", "disk_why", "accel", "machine", "cpu_model", "vmm_version", "pid", "boot_id", "dir",
			"last_error", "created_at", "started_at", "image_config",
		}},
		{portView{VM: "web"}, []string{"vm", "address", "host_port", "guest_port", "problem"}},
		{viewImage(&bangerv1.Image{}), []string{
			"id", "name", "managed", "path", "size_bytes", "used_bytes", "kernel", "digest", "source", "user", "workdir", "env",
			"entrypoint", "cmd", "used_by", "created_at", "stop_signal", "exposed_ports", "volumes", "labels", "layers",
		}},
		{layerView{}, []string{"digest", "size_bytes"}},
		{viewCache(&bangerv1.ImageCache{}), []string{"dir", "limit_bytes", "unfinished_bytes", "blobs"}},
		{blobView{}, []string{"digest", "size_bytes", "used_at", "in_use", "references"}},
		{viewKernel(&bangerv1.Kernel{}), []string{
			"id", "name", "release", "vmlinux", "bzimage", "modules", "source", "used_bytes", "used_by", "created_at",
		}},
		{viewNetwork(&bangerv1.Network{}), []string{"name", "vms"}},
		{viewMembers(&bangerv1.Network{}, nil), []string{"name", "members"}},
		{memberView{}, []string{"id", "name", "state", "dns_name", "addresses", "ports"}},
		{daemonView{}, []string{
			"running", "socket", "pid", "version", "commit", "protocol", "state_dir", "config_file", "started_at", "busy",
		}},
		{configView{}, []string{"file", "exists", "config", "sources"}},
		{waitView{}, []string{"id", "name", "state", "last_error"}},
	} {
		var out bytes.Buffer
		var fields map[string]any
		if err := printJSON(&out, tc.view); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(out.Bytes(), &fields); err != nil {
			t.Fatal(err)
		}
		slices.Sort(tc.names)
		if got := slices.Sorted(maps.Keys(fields)); !slices.Equal(got, tc.names) {
			t.Errorf("%T has the names %q, promised are %q", tc.view, got, tc.names)
		}
	}
}

func TestConfigAsJSON(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.yaml")
	t.Setenv(paths.EnvConfig, file)
	if err := os.WriteFile(file, []byte("vm:\n  cpus: 3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var got configView
	code, out, errText := run(t, "config", "show", "--json")
	if err := json.Unmarshal([]byte(out), &got); err != nil || code != 0 {
		t.Fatalf("code %d, %v; printed %q, stderr %q", code, err, out, errText)
	}
	vm, _ := got.Config["vm"].(map[string]any)
	if !got.Exists || got.File != file || vm["cpus"] != 3.0 || got.Sources["vm.cpus"] != config.SourceFile || got.Sources["vm.image"] != config.SourceDefault {
		t.Errorf("%+v", got)
	}
}

func TestAbsoluteImage(t *testing.T) {
	t.Chdir("/tmp")
	for ref, want := range map[string]string{
		"alpine:3": "alpine:3", "oci:a": "oci:/tmp/a", "oci:./a:b": "oci:/tmp/a:b", "oci-archive:../a.tar:b:c": "oci-archive:/a.tar:b:c",
		"docker-archive:/a.tar:x/y:z": "docker-archive:/a.tar:x/y:z", "tar:a:b": "tar:/tmp/a:b", "tar:": "tar:", "docker-daemon:a": "docker-daemon:a",
		"oci/a:1": "oci/a:1", "": "",
	} {
		if got, err := absoluteImage(ref); err != nil || got != want {
			t.Errorf("%q becomes %q, %v; want %q", ref, got, err, want)
		}
	}
}
