// Package disktest gives tests a disk that is full, or nearly so.
package disktest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Small makes a file system of size bytes, and a function that leaves so many of
// them free. It goes with the test. The test is skipped where it cannot be mounted.
func Small(t testing.TB, size int64) (dir string, leave func(free int64)) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount a small file system")
	}
	dir = t.TempDir()
	if err := unix.Mount("small", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		t.Skipf("mount: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	// What fills it has no name: a test may look at all that lies there.
	filler, err := os.Create(filepath.Join(dir, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = filler.Close() }) // before it is unmounted
	if err := os.Remove(filler.Name()); err != nil {
		t.Fatal(err)
	}
	return dir, func(free int64) {
		t.Helper()
		if err := filler.Truncate(0); err != nil {
			t.Fatal(err)
		}
		var fs unix.Statfs_t
		if err := unix.Statfs(dir, &fs); err != nil {
			t.Fatal(err)
		}
		if n := int64(fs.Bfree)*fs.Bsize - free; n > 0 {
			err := unix.Fallocate(int(filler.Fd()), 0, 0, n)
			for errors.Is(err, unix.EINTR) { // a signal of the scheduler's came in between
				err = unix.Fallocate(int(filler.Fd()), 0, 0, n)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
}
