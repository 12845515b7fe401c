package fcproc_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"banger/internal/daemon/fcproc"
	"banger/internal/errdefs"
	"banger/internal/paths"
)

// left lists the processes that work below dir, or did while it was there.
func left(t *testing.T, dir string) (pids []string) {
	t.Helper()
	links, err := filepath.Glob("/proc/[0-9]*/cwd")
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		if cwd, err := os.Readlink(link); err == nil && strings.HasPrefix(cwd, dir+"/") {
			pids = append(pids, link)
		}
	}
	return pids
}

// What goes wrong between us and a VMM that lives on is said at once, and the VMM ended.
func TestStartFailsBesideALiveVMM(t *testing.T) {
	t.Setenv(noJailEnv, "1")
	useFake(t)
	fake := filepath.Join(os.Getenv(fakeEnv), "firecracker")
	wrapper := script(t, fmt.Sprintf("%s \"$@\"\nexit $?\n", fake))
	if err := os.Chmod(filepath.Dir(filepath.Dir(wrapper)), 0o711); err != nil { // the VMM's user runs it
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ binary, cmdline, want, hint string }{
		"an endless answer":        {fake, "fake.babble", "the answer has more than", "another release"},
		"a program that starts it": {wrapper, "", "another process answers", "firecracker.binary"},
	} {
		t.Run(name, func(t *testing.T) {
			spec := testSpec(t, t.TempDir())
			spec.Cmdline = c.cmdline
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			_, err := fcproc.New(fcproc.Deps{Binary: c.binary, NoJailer: true}).Start(ctx, spec)
			if errdefs.ClassOf(err) != errdefs.ClassUnavailable || !strings.Contains(err.Error(), c.want) || !strings.Contains(errdefs.HintOf(err), c.hint) {
				t.Errorf("got %v (class %s, hint %q)", err, errdefs.ClassOf(err), errdefs.HintOf(err))
			}
			if pids := left(t, spec.Dir); len(pids) > 0 {
				t.Errorf("%v are left", pids)
			}
			if _, err := os.Lstat(filepath.Join(spec.Dir, paths.FirecrackerDir)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("its directory is left: %v", err)
			}
		})
	}
}
