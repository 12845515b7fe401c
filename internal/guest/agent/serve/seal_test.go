package serve_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"banger/internal/guest/agent/serve"
)

func TestSealMount(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can mount")
	}
	dir := t.TempDir()
	if err := serve.SealMount(dir, false); err != nil {
		t.Errorf("what was never sealed: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	err := serve.SealMount(dir, true)
	if errors.Is(err, unix.EPERM) {
		t.Skip("root may not mount here")
	}
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o644); !errors.Is(err, unix.EROFS) {
		t.Errorf("sealed: %v", err)
	}
	if err := serve.SealMount(dir, false); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Errorf("not sealed any more: %v", err)
	}
	if err := errors.Join(serve.SealMount(dir, true), serve.SealMount(dir, true)); err != nil {
		t.Errorf("twice: %v", err)
	}
	if err := os.Remove(file); !errors.Is(err, unix.EROFS) {
		t.Errorf("sealed again: %v", err)
	}
}
