package daemon

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"banger/internal/daemon/imagemgr"
	"banger/internal/doctor"
	"banger/internal/sysexec"
)

// doctor returns the result of one check.
func (h *host) doctor(name string) doctor.Result {
	h.t.Helper()
	for _, r := range Doctor(context.Background(), h.opts) {
		if r.Name == name {
			return r
		}
	}
	h.t.Fatalf("no check %q", name)
	return doctor.Result{}
}

func TestDoctorWithAndWithoutDaemon(t *testing.T) {
	h := newHost(t)
	if r := h.doctor("default image"); r.Status != doctor.StatusWarn || r.Fix == "" {
		t.Errorf("without a state directory: %+v", r)
	}
	if _, err := os.Stat(h.opts.Layout.State); !errors.Is(err, os.ErrNotExist) {
		t.Error("doctor made the state directory")
	}
	h.artifacts()
	if r := h.doctor("default image"); r.Status != doctor.StatusPass {
		t.Errorf("without a daemon: %+v", r)
	}
	h.serve()
	for _, name := range []string{"default image", "default kernel", "configuration", "state database"} {
		if r := h.doctor(name); r.Status != doctor.StatusPass {
			t.Errorf("with a daemon: %+v", r)
		}
	}
}

// On a host where everything is wrong each check says what to do.
func TestDoctorOfABrokenHost(t *testing.T) {
	h := newHost(t)
	if err := os.MkdirAll(h.opts.Layout.State, 0o700); err != nil {
		t.Fatal(err)
	}
	for file, content := range map[string]string{
		h.opts.Layout.Database(): strings.Repeat("this is no database. ", 1000),
		h.opts.ConfigFile:        "nonsense: true\n",
	} {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	h.opts.AgentPath, h.opts.Self = "", []string{"/nonexistent/bangerd"}
	t.Setenv("PATH", t.TempDir())
	failed := map[string]doctor.Result{}
	for _, r := range Doctor(context.Background(), h.opts) {
		if r.Status != doctor.StatusPass && r.Fix == "" {
			t.Errorf("no remedy: %+v", r)
		}
		if r.Status == doctor.StatusFail {
			failed[r.Name] = r
		}
	}
	for _, name := range []string{"configuration", "agent", "accelerator", "qemu", "image tools", "default kernel", "default image"} {
		if _, ok := failed[name]; !ok {
			t.Errorf("%s did not fail", name)
		}
	}
	if r := failed["default image"]; !strings.Contains(r.Fix, "banger daemon stop; banger daemon start") {
		t.Errorf("with a database that is none: %+v", r)
	}
	for _, tool := range imagemgr.Tools() {
		// Some lie where PATH need not lead.
		if _, err := sysexec.Look(tool.Program); err != nil && !strings.Contains(failed["image tools"].Detail, tool.Program) {
			t.Errorf("nothing is said of %s: %+v", tool.Program, failed["image tools"])
		}
	}
}

// What the bridge needs is asked of hosts that are to have one.
func TestDoctorOfTheBridge(t *testing.T) {
	h := newHost(t)
	asked := func() bool {
		for _, r := range Doctor(context.Background(), h.opts) {
			if r.Name == "network bridge" {
				return true
			}
		}
		return false
	}
	if asked() {
		t.Error("nobody wants a bridge, and it is looked for")
	}
	if err := os.WriteFile(h.opts.ConfigFile, []byte("vm: {net: bridge}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	root := os.Geteuid() == 0
	if asked() != root {
		t.Errorf("vm.net is bridge; asked about it: %v, root: %v", !root, root)
	}
	if r := h.doctor("configuration"); (r.Status == doctor.StatusPass) != root {
		t.Errorf("%+v", r)
	}
}
