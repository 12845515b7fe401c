//go:build e2e

package e2e_test

import (
	"encoding/base64"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"banger/internal/daemon/imagemgr/ocitest"
)

// Why a guest has what an image has not.
const (
	named    = "the agent names the machine in files there"
	modules  = "the kernel's are mounted below it"
	booted   = "the agent makes what the image lacks and every system has"
	linkSets = "the entry of a hard link sets owner, mode and time, as with containerd; umoci leaves them"
	noEntry  = "it has no time: umoci takes the hour of unpacking, and we 0"
)

// everywhere are those differences that each image has. The release is any.
var everywhere = map[string]string{
	"etc/hostname": named, "etc/hosts": named, "lib/modules": modules, "lib/modules/*": modules,
	"lost+found": "each ext4 has it, and tools for repair want it",
	"workspace":  "the walker came by it", "workspace/walk": "the walker",
}

// Images that others have built are, in a guest, what others unpack: every inode. How a
// guest comes to differ from that stands beside each image, and nothing else may.
func TestInodesOfImages(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("umoci and buildah keep owners and devices only as root")
	}
	ocitest.Need(t, "umoci", "skopeo", "buildah", "tar")
	w := s.main
	d := ocitest.StartRegistry(t)
	login(t, w, d.Host)
	walker := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	place(t, self, filepath.Join(walker, "walk"))
	for _, c := range []struct {
		name  string
		build func(t *testing.T, d *ocitest.Registry) (ref, layout string) // what is pulled, and the same for umoci: DIR:TAG
		// Why a guest has something else than umoci's tree, by path.
		differs map[string]string
		sparse  []string // files whose holes are to be there; umoci fills them
	}{
		{"written", writtenImage, map[string]string{
			"etc": named, "lib": modules,
			"attrs/many": "trusted.* is not the image's to set",
			"links/fifo": linkSets, "links/fifotoo": linkSets, "links/other": linkSets,
			"times/2446": "umoci's end in 2262",
			"without":    noEntry,
			"without/a":  noEntry,
		}, []string{"sparse/all", "sparse/end", "sparse/middle"}},
		{"repacked", repackedImage, map[string]string{
			"lib": modules, "etc": named, "proc": booted, "run": booted, "sys": booted, "tmp": booted,
		}, []string{"var/sparse"}},
		{"buildah", buildahImage, map[string]string{
			"lib": modules, "etc": named, "tmp": booted, "data": "a volume of the image's config",
		}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			ref, layout := c.build(t, d)
			name := "e2e-" + c.name
			t.Cleanup(func() { w.run(t, "image", "rm", name) })
			w.ok(t, "image", "pull", "--insecure", "--name", name, ref)
			bundle := filepath.Join(t.TempDir(), "bundle")
			ocitest.Run(t, "umoci", "unpack", "--image", layout, bundle)
			want, err := inodesBelow(filepath.Join(bundle, "rootfs"))
			if err != nil {
				t.Fatal(err)
			}
			// Not by `vm run`, which leaves a record of what it has put in.
			w.ok(t, "vm", "create", "--name", name, "--net", "none", "--user", "root", "--image", name)
			defer w.ok(t, "vm", "delete", "--force", name)
			w.ok(t, "cp", walker, name+":/workspace")
			out := w.ok(t, "exec", name, "--", "/workspace/walk", walkArg)
			got, err := parseInodes(out)
			if err != nil {
				t.Fatal(err)
			}
			for _, path := range c.sparse {
				if !strings.Contains(got[path], sparseMark) {
					t.Errorf("%s takes the space of its holes: %s", path, got[path])
				}
			}
			diff := got.against(want)
			maps.Copy(c.differs, everywhere)
			for pattern, why := range c.differs {
				found := 0
				for path := range diff {
					if ok, err := filepath.Match(pattern, path); ok && err == nil {
						delete(diff, path)
						found++
					}
				}
				if found != 1 {
					t.Errorf("%d times %q differs, though it should once: %s", found, pattern, why)
				}
			}
			for _, path := range slices.Sorted(maps.Keys(diff)) {
				t.Errorf("%q:%s", path, diff[path])
			}
			t.Logf("%d inodes are compared", len(got))
		})
	}
}

// against says, by path, how inodes of a guest differ from umoci's.
func (got inodes) against(want inodes) map[string]string {
	diff := map[string]string{}
	for path, u := range want {
		if g := got[path]; strings.Replace(g, sparseMark, "", 1) != strings.Replace(u, sparseMark, "", 1) {
			diff[path] = fmt.Sprintf("\n   guest %.400s\n   umoci %.400s", g, u)
		}
	}
	for path, g := range got {
		if want[path] == "" {
			diff[path] = fmt.Sprintf("\n   only in the guest: %.400s", g)
		}
	}
	return diff
}

// login lets the daemon of a world use the registry, for as long as the test runs.
func login(t *testing.T, w *world, host string) {
	t.Helper()
	home := ""
	for _, kv := range w.env {
		if v, ok := strings.CutPrefix(kv, "HOME="); ok {
			home = v
		}
	}
	dir := filepath.Join(home, ".docker")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	auth := base64.StdEncoding.EncodeToString([]byte("me:secret"))
	if err := os.WriteFile(filepath.Join(dir, "config.json"), fmt.Appendf(nil, `{"auths":{%q:{"auth":%q}}}`, host, auth), 0o600); err != nil {
		t.Fatal(err)
	}
}
