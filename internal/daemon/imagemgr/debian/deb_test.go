package debian

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"banger/internal/errdefs"
)

type quiet struct{}

func (quiet) Stage(string)               {}
func (quiet) Detail(string)              {}
func (quiet) Count(int64, int64, string) {}

// debWith is a package of these files: names and content in turn. A content that begins
// with "->" is a symlink's target.
func debWith(t *testing.T, files ...string) []byte {
	t.Helper()
	var tree bytes.Buffer
	z := gzip.NewWriter(&tree)
	w := tar.NewWriter(z)
	for f := range slices.Chunk(files, 2) {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: f[0], Size: int64(len(f[1])), Mode: 0o4777}
		if target, ok := strings.CutPrefix(f[1], "->"); ok {
			h, f[1] = &tar.Header{Typeflag: tar.TypeSymlink, Name: f[0], Linkname: target}, ""
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(f[1])); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	out := []byte("!<arch>\n")
	for _, m := range []struct {
		name string
		data []byte
	}{{"debian-binary", []byte("2.0\n")}, {"control.tar.gz", nil}, {"data.tar.gz", tree.Bytes()}} {
		out = fmt.Appendf(out, "%-16s%-12d%-6d%-6d%-8s%-10d`\n", m.name, 0, 0, 0, "100644", len(m.data))
		out = append(out, m.data...)
		if len(m.data)%2 == 1 {
			out = append(out, '\n')
		}
	}
	return out
}

func filesBelow(t *testing.T, dir string) (all []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, _ := filepath.Rel(dir, path)
			all = append(all, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(all)
	return all
}

func TestUnpackDeb(t *testing.T) {
	for name, prefix := range map[string]string{"as Debian's": "./", "merged": "./usr/", "plain": "", "absolute": "/"} {
		dir := t.TempDir()
		k, err := UnpackDeb(t.Context(), bytes.NewReader(debWith(t,
			"./boot/vmlinuz-6.1.0-9-cloud-amd64", "kernel", "./boot/config-6.1.0-9-cloud-amd64", "config", "./boot/System.map-6.1.0", "map",
			prefix+"lib/modules/6.1.0-9-cloud-amd64/modules.order", "order",
			prefix+"lib/modules/6.1.0-9-cloud-amd64/kernel/fs/ext4/ext4.ko", "module",
			prefix+"lib/modules/6.1.0-9-cloud-amd64/build", "->/etc",
			"./usr/share/doc/x", "doc",
		)), dir, quiet{})
		want := []string{"bzImage", "config", "tree/lib/modules/6.1.0-9-cloud-amd64/kernel/fs/ext4/ext4.ko", "tree/lib/modules/6.1.0-9-cloud-amd64/modules.order"}
		if got := filesBelow(t, dir); err != nil || k.Release != "6.1.0-9-cloud-amd64" || !slices.Equal(got, want) {
			t.Errorf("%s: %+v, %v, %q", name, k, err, got)
		}
	}
}

func TestUnpackDebRefuses(t *testing.T) {
	const boot = "boot/vmlinuz-6.1"
	for name, files := range map[string][]string{
		"no files":              {},
		"no kernel":             {"usr/bin/x", "x"},
		"modules alone":         {"lib/modules/6.1/a.ko", "x"},
		"two kernels":           {boot, "a", "boot/vmlinuz-6.2", "b"},
		"kernel twice":          {boot, "a", boot, "b"},
		"kernel is a link":      {boot, "->/etc/passwd"},
		"modules of two":        {boot, "a", "lib/modules/6.1/a.ko", "x", "lib/modules/6.2/a.ko", "x"},
		"an option for release": {boot, "a", "lib/modules/-b/a.ko", "x"},
		"release with a space":  {boot, "a", "lib/modules/6.1 x/a.ko", "x"},
		"module twice":          {boot, "a", "lib/modules/6.1/a.ko", "x", "lib/modules/6.1/./a.ko", "y"},
		"module twice, packed":  {boot, "a", "lib/modules/6.1/a.ko", "x", "lib/modules/6.1/a.ko.xz", "y"},
		"file is a directory":   {boot, "a", "lib/modules/6.1/a", "x", "lib/modules/6.1/a/b", "y"},
		"damaged module":        {boot, "a", "lib/modules/6.1/a.ko", "\x1f\x8b\x08damaged"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := UnpackDeb(t.Context(), bytes.NewReader(debWith(t, files...)), t.TempDir(), quiet{})
			class := errdefs.ClassOf(err)
			if err == nil || !slices.Contains([]errdefs.Class{errdefs.ClassInvalidArgument, errdefs.ClassUnsupported, errdefs.ClassExhausted}, class) {
				t.Errorf("class %q: %v", class, err)
			}
		})
	}
}

// Names that lead out of the tree lead back into it.
func TestUnpackDebStaysInside(t *testing.T) {
	outer := t.TempDir()
	dir := filepath.Join(outer, "a/b/c")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	_, err := UnpackDeb(t.Context(), bytes.NewReader(debWith(t,
		"boot/vmlinuz-6.1", "a",
		"lib/modules/6.1/x", "->/etc",
		"lib/modules/6.1/../../../../../../escaped", "x",
		"lib/modules/6.1/../6.1/inside", "x",
		"../../lib/modules/6.1/also", "x",
		"boot/config-/../../../../c", "x",
	)), dir, quiet{})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range filesBelow(t, outer) {
		if !strings.HasPrefix(f, "a/b/c/tree/lib/modules/6.1/") && f != "a/b/c/bzImage" {
			t.Errorf("wrote %s", f)
		}
	}
}

func TestUnpackDebIsCanceled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := UnpackDeb(ctx, bytes.NewReader(debWith(t, "boot/vmlinuz-6.1", "a")), t.TempDir(), quiet{}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// A real package, in apt's cache after `apt-get -d install`, or named by the variable.
func TestUnpackRealDeb(t *testing.T) {
	path := os.Getenv("BANGER_TEST_KERNEL_DEB")
	if path == "" {
		found, err := filepath.Glob("/var/cache/apt/archives/linux-image-[0-9]*-cloud-amd64_*.deb")
		if err != nil || len(found) == 0 {
			t.Skip("no package of Debian's cloud kernel is here: apt-get -d install linux-image-cloud-amd64, or BANGER_TEST_KERNEL_DEB")
		}
		path = found[len(found)-1]
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	dir, judge := t.TempDir(), t.TempDir()
	k, err := UnpackDeb(t.Context(), f, dir, quiet{})
	if err != nil {
		t.Fatal(err)
	}
	want, err := unpackKernel(t.Context(), path, judge, quiet{}) // by dpkg
	if err != nil || k.Release != want.Release {
		t.Fatalf("%q and %q, %v", k.Release, want.Release, err)
	}
	ours, theirs := filesBelow(t, dir), filesBelow(t, judge)
	if len(ours) < 100 || !slices.Equal(ours, theirs) {
		t.Fatalf("%d files and %d", len(ours), len(theirs))
	}
	for _, name := range ours {
		a, err1 := os.ReadFile(filepath.Join(dir, name))
		b, err2 := os.ReadFile(filepath.Join(judge, name))
		if err1 != nil || err2 != nil || !bytes.Equal(a, b) {
			t.Errorf("%s differs (%v, %v)", name, err1, err2)
		}
	}
}
