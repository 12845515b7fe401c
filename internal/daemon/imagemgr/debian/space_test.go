package debian

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/disktest"
	"banger/internal/errdefs"
	"banger/internal/sysexec"
)

// A root filesystem that does not fit is an error that says so, however much of
// it did fit: mke2fs writes a sparse file, whose size promises nothing.
func TestRootImageNoSpace(t *testing.T) {
	if _, err := sysexec.Look("mke2fs"); err != nil {
		t.Skip(err)
	}
	const mib = 1 << 20
	fit := 0
	for _, size := range []int{6, 7, 8, 9, 10, 12, 16, 24, 48, 80} { // MiB; the tree takes 4 of them
		dir, _ := disktest.Small(t, int64(size)*mib)
		s, err := newSandbox(t.Context(), filepath.Join(dir, buildDir))
		if err != nil {
			t.Fatal(err)
		}
		tree := filepath.Join(s.dir, "root")
		if err := os.Mkdir(tree, 0o755); err != nil {
			t.Fatal(err)
		}
		for n := range 16 {
			if err := os.WriteFile(filepath.Join(tree, fmt.Sprint(n)), []byte(strings.Repeat("x", mib/4)), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		err = rootImage(t.Context(), s, "root", "rootfs", 1<<30)
		if err == nil {
			fit++
			if out, err := sysexec.Output(t.Context(), sysexec.Cmd{Path: "e2fsck", Args: []string{"-fn", filepath.Join(s.dir, "rootfs")}}); err != nil {
				t.Errorf("in %d MiB: %v: %s", size, err, out)
			}
			continue
		}
		if errdefs.ClassOf(err) != errdefs.ClassExhausted || errdefs.HintOf(err) == "" {
			t.Errorf("in %d MiB: %v (%s)", size, err, errdefs.ClassOf(err))
		}
	}
	if fit == 0 || fit == 10 {
		t.Errorf("it fits in %d of the sizes", fit)
	}
}
