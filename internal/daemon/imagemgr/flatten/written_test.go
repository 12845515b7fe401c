package flatten_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"banger/internal/daemon/ext4"
	"banger/internal/daemon/imagemgr/flatten"
)

// What the rules allow becomes a filesystem of which e2fsck has nothing to say.
func TestWritten(t *testing.T) {
	if _, err := exec.LookPath("e2fsck"); err != nil {
		t.Skip("no e2fsck: ", err)
	}
	for _, r := range append(slices.Clone(rules), rule{name: "a nasty image", layers: nasty}) {
		if r.want.class != nil {
			continue
		}
		t.Run(r.name, func(t *testing.T) {
			var tars [][]byte
			for _, l := range r.layers {
				tars = append(tars, tarOf(t, l...))
			}
			path := filepath.Join(t.TempDir(), "rootfs.ext4")
			f, err := os.Create(path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			w, err := ext4.New(f, ext4.Options{Size: 32 << 20})
			if err != nil {
				t.Fatal(err)
			}
			root, _, err := flatten.Flatten(t.Context(), layersOf(tars...), w, flatten.Limits{}, nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := w.Finish(t.Context(), root); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.Command("e2fsck", "-fn", path).CombinedOutput(); err != nil {
				t.Errorf("e2fsck: %v\n%s", err, out)
			}
		})
	}
}
