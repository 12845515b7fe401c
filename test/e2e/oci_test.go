//go:build e2e

package e2e_test

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"banger/internal/daemon/imagemgr/ocitest"
)

// layer packs entries as they are.
func layer(t *testing.T, entries ...tar.Header) []byte {
	t.Helper()
	return ocitest.Pack(t, tarOf(t, entries...))
}

// tarOf writes entries as they are. What a file holds is its Linkname.
func tarOf(t *testing.T, entries ...tar.Header) []byte {
	t.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, h := range entries {
		content := []byte(h.Linkname)
		if h.Typeflag != tar.TypeReg {
			content = nil
		} else if h.Linkname = ""; strings.HasSuffix(h.Name, "busybox") {
			var err error
			if content, err = os.ReadFile(tool(t, "busybox")); err != nil {
				t.Fatal(err)
			}
		}
		h.Size, h.Format = int64(len(content)), tar.FormatPAX
		if h.ModTime.IsZero() {
			h.ModTime = time.Unix(1_700_000_000, 123_456_789)
		}
		if err := tw.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// An image of layers runs as its author built it: one command, from a layout to the
// answer of its entrypoint.
func TestImageOfLayers(t *testing.T) {
	w := s.main
	long := strings.Repeat("long-", 40) + "name"
	below := layer(t,
		tar.Header{Name: "bin/", Typeflag: tar.TypeDir, Mode: 0o755},
		tar.Header{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755},
		tar.Header{Name: "bin/sh", Typeflag: tar.TypeLink, Mode: 0o755, Linkname: "bin/busybox"},
		tar.Header{Name: "etc/", Typeflag: tar.TypeDir, Mode: 0o755},
		tar.Header{Name: "etc/passwd", Typeflag: tar.TypeReg, Mode: 0o644, Linkname: "root:x:0:0::/:/bin/sh\nweb:x:33:44::/srv:/bin/sh\n"},
		tar.Header{Name: "srv/", Typeflag: tar.TypeDir, Mode: 0o2750, Uid: 33, Gid: 44},
		tar.Header{Name: "srv/old", Typeflag: tar.TypeReg, Mode: 0o644, Linkname: "hidden"},
		tar.Header{Name: "srv/kept", Typeflag: tar.TypeReg, Mode: 0o4711, Uid: 33, Gid: 44, Linkname: "kept"},
		tar.Header{Name: "srv/full/", Typeflag: tar.TypeDir, Mode: 0o755},
		tar.Header{Name: "srv/full/a", Typeflag: tar.TypeReg, Mode: 0o644, Linkname: "a"},
	)
	above := layer(t,
		tar.Header{Name: "srv/.wh.old", Typeflag: tar.TypeReg},
		tar.Header{Name: "srv/full/.wh..wh..opq", Typeflag: tar.TypeReg},
		tar.Header{Name: "srv/full/b", Typeflag: tar.TypeReg, Mode: 0o600, Uid: 33, Gid: 70_000, Linkname: "b"},
		tar.Header{Name: "srv/twin", Typeflag: tar.TypeLink, Mode: 0o4711, Uid: 33, Gid: 44, Linkname: "srv/kept"},
		tar.Header{Name: "srv/" + long, Typeflag: tar.TypeSymlink, Linkname: "/bin/busybox"},
		tar.Header{Name: "srv/pipe", Typeflag: tar.TypeFifo, Mode: 0o620},
		tar.Header{Name: "srv/zero", Typeflag: tar.TypeChar, Mode: 0o666, Devmajor: 1, Devminor: 5},
	)
	image := ocitest.Make(t, ocitest.Image{Layers: [][]byte{below, above}, Config: v1.Config{
		User: "web", WorkingDir: "/srv", Env: []string{"FROM=image", "PATH=/bin"}, Entrypoint: []string{"/bin/busybox"}, Cmd: []string{"env"},
		Volumes: map[string]struct{}{"/data": {}},
	}}, nil)
	dir := t.TempDir()
	ocitest.WriteLayout(t, dir, map[string]ocitest.Made{"v1": image})
	ref := "oci:" + filepath.Join(dir) + ":v1"
	t.Cleanup(func() { w.run(t, "image", "rm", ref) })

	if got := w.ok(t, "vm", "run", "--rm", "--image", ref); !strings.Contains(got, "FROM=image") || !strings.Contains(got, "HOME=/srv") {
		t.Errorf("its command printed %q", got)
	}
	// It is there now; the command is given to the entrypoint.
	if got := w.ok(t, "vm", "run", "--rm", "--image", ref, "--", "id"); got != "uid=33(web) gid=44" {
		t.Errorf("its entrypoint printed %q", got)
	}
	const look = `cd /srv; stat -c '%n %a %u:%g %h' . kept twin full full/b pipe; ls full; stat -c '%t:%T' zero; ls; readlink long*; stat -c %y kept; cat twin; ls -d /data`
	want := strings.Join([]string{
		". 2750 33:44 3", "kept 4711 33:44 2", "twin 4711 33:44 2", "full 755 0:0 2", "full/b 600 33:70000 1", "pipe 620 0:0 1",
		"b", "1:5", "full", "kept", long, "pipe", "twin", "zero", "/bin/busybox", "2023-11-14 22:13:20.123456789 +0000", "kept/data",
	}, "\n")
	if got := w.ok(t, "vm", "run", "--rm", "--user", "root", "--image", ref, "--entrypoint", "", "--", "sh", "-c", look); got != want {
		t.Errorf("the guest sees\n%s\nwant\n%s", got, want)
	}
}
