package initramfs_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"banger/internal/daemon/imagemgr/initramfs"
	"banger/internal/errdefs"
	"banger/internal/paths"
)

// world makes an agent and a directory of early modules.
func world(t *testing.T) (dir, early, agent string) {
	t.Helper()
	dir = t.TempDir()
	early, agent = filepath.Join(dir, "early"), filepath.Join(dir, "agent")
	put(t, agent, "an agent of an odd length")
	put(t, filepath.Join(early, "a.ko"), "AAA")
	put(t, filepath.Join(early, "b.ko"), "")
	put(t, filepath.Join(early, "late.ko"), strings.Repeat("L", 70_000))
	put(t, filepath.Join(early, paths.EarlyOrderFile), "b.ko\na.ko\n")
	put(t, filepath.Join(early, paths.LateOrderFile), "late.ko\n")
	return filepath.Join(dir, "initramfs"), early, agent
}

func put(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestArchiveIsWhatCpioReads(t *testing.T) {
	cpio, err := exec.LookPath("cpio")
	if err != nil {
		t.Skip(err)
	}
	dir, early, agent := world(t)
	path, err := initramfs.New(dir).Ensure(t.Context(), early, agent)
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(cpio, "-itv", "--quiet", "--numeric-uid-gid")
	cmd.Stdin = bytes.NewReader(data)
	list, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, list)
	}
	var names []string
	for line := range strings.Lines(string(list)) {
		f := strings.Fields(line)
		names = append(names, f[0]+" "+f[len(f)-1])
		if f[2] != "0" || f[3] != "0" {
			t.Errorf("not root's: %s", line)
		}
	}
	want := []string{
		"drwxr-xr-x dev", "drwxr-xr-x proc", "drwxr-xr-x sys", "drwxr-xr-x run", "drwxr-xr-x newroot", "drwxr-xr-x modules",
		"crw------- dev/console", "crw-rw-rw- dev/null", "-rwxr-xr-x init", "-rw-r--r-- modules/order", "-rw-r--r-- modules/b.ko",
		"-rw-r--r-- modules/a.ko", "-rw-r--r-- modules/order-late", "-rw-r--r-- modules/late.ko",
	}
	if strings.Join(names, "\n") != strings.Join(want, "\n") {
		t.Errorf("got:\n%s\nwant:\n%s", strings.Join(names, "\n"), strings.Join(want, "\n"))
	}
	out := t.TempDir()
	cmd = exec.Command(cpio, "-id", "--quiet", "init", "modules/*")
	cmd.Dir, cmd.Stdin = out, bytes.NewReader(data)
	if said, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	for name, from := range map[string]string{"init": agent, "modules/late.ko": filepath.Join(early, "late.ko"), "modules/b.ko": filepath.Join(early, "b.ko")} {
		got, err := os.ReadFile(filepath.Join(out, name))
		want, _ := os.ReadFile(from)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %v, %d bytes instead of %d", name, err, len(got), len(want))
		}
	}
}

func TestEnsureIsByContent(t *testing.T) {
	dir, early, agent := world(t)
	b := initramfs.New(dir)
	first, err := b.Ensure(t.Context(), early, agent)
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(first)
	if err != nil {
		t.Fatal(err)
	}
	again, err := initramfs.New(dir).Ensure(t.Context(), early, agent) // as another daemon would
	if err != nil || again != first {
		t.Fatalf("second time %s, %v; first %s", again, err, first)
	}
	if after, err := os.Stat(first); err != nil || !os.SameFile(before, after) || !after.ModTime().Equal(before.ModTime()) {
		t.Error("it was written again")
	}
	put(t, agent, "an agent of an ODD length") // same size, in place
	changed, err := b.Ensure(t.Context(), early, agent)
	if err != nil || changed == first {
		t.Fatalf("a new agent gives %s, %v", changed, err)
	}
	if cur, err := b.Current(early, agent); err != nil || cur != changed {
		t.Errorf("current is %s, %v", cur, err)
	}
	put(t, filepath.Join(dir, paths.StagingPrefix+"crashed"), "half")
	if err := b.Prune(t.Context(), []string{changed}); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 || left[0].Name() != filepath.Base(changed) {
		t.Errorf("pruning left %v, %v", left, err)
	}
}

func TestConcurrentCallersShareOneFile(t *testing.T) {
	dir, early, agent := world(t)
	b := initramfs.New(dir)
	var wg sync.WaitGroup
	paths := make([]string, 16)
	for n := range paths {
		wg.Go(func() {
			var err error
			if paths[n], err = b.Ensure(t.Context(), early, agent); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, p := range paths {
		if p != paths[0] {
			t.Errorf("%s and %s", p, paths[0])
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left %v, %v", left, err)
	}
}

func TestRefusals(t *testing.T) {
	dir, early, agent := world(t)
	b := initramfs.New(dir)
	put(t, filepath.Join(early, paths.EarlyOrderFile), "../agent\n")
	if _, err := b.Ensure(t.Context(), early, agent); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("a path as a module: %v", err)
	}
	put(t, filepath.Join(early, paths.EarlyOrderFile), "gone.ko\n")
	if _, err := b.Ensure(t.Context(), early, agent); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("a module that is gone: %v", err)
	}
	if err := os.Remove(filepath.Join(early, paths.EarlyOrderFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Ensure(t.Context(), early, agent); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("no order: %v", err)
	}
	if _, err := b.Ensure(t.Context(), "", agent); err != nil {
		t.Errorf("a kernel without modules: %v", err)
	}
	if _, err := b.Ensure(t.Context(), "", filepath.Join(dir, "no agent")); err == nil {
		t.Error("no agent, no error")
	}
}
