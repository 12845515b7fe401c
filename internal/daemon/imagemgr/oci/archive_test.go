package oci_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/klauspost/compress/zstd"

	"banger/internal/daemon/imagemgr/blobs"
	"banger/internal/daemon/imagemgr/oci"
	"banger/internal/daemon/imagemgr/ocitest"
	"banger/internal/errdefs"
)

func options(t testing.TB) oci.Options {
	t.Helper()
	return oci.Options{Cache: openCache(t, t.TempDir()), Platform: amd64, Sockets: []string{"/nonexistent"}}
}

// checkLocal reads all layers where they lie and from the cache; both are what was made,
// unpacked if unpacked says so.
func checkLocal(t *testing.T, img *oci.Image, o oci.Options, m *made, unpacked bool) {
	t.Helper()
	if len(img.Layers) != len(m.layers) || !bytes.Equal(img.RawConfig, m.config) {
		t.Fatalf("%+v", img)
	}
	for i, l := range img.Layers {
		rc, err := img.Open(t.Context(), nil, l)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(rc)
		if err := errors.Join(err, rc.Close()); err != nil {
			t.Fatal(err)
		}
		want := m.layers[i]
		if unpacked {
			want = gunzip(t, want)
		}
		if !bytes.Equal(got, want) || blobs.Of(gunzip(t, m.layers[i])) != l.DiffID {
			t.Errorf("layer %d has %d bytes, want %d", i, len(got), len(want))
		}
	}
	if err := img.Fetch(t.Context(), o.Cache, 0, func(oci.Progress) {}); err != nil {
		t.Fatal(err)
	}
	for _, l := range img.Layers {
		if n, err := o.Cache.Stat(l.Digest); err != nil || n != l.Size {
			t.Errorf("%d, %v", n, err)
		}
	}
	nothingWrong(t, o.Cache)
}

func gunzip(t testing.TB, data []byte) []byte {
	t.Helper()
	z, err := gzipReader(data)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return plain
}

// TestKindsBySkopeo reads what skopeo writes.
func TestKindsBySkopeo(t *testing.T) {
	ocitest.Need(t, "skopeo")
	m, other := makeImage(t, amd64, 100, 200_000, 50, 70_000), makeImage(t, arm64, 101, 10)
	from := "oci:" + writeLayout(t, map[string]*made{"1": m}) + ":1"
	dir := t.TempDir()
	for _, to := range []string{"oci:" + dir + "/layout:here", "oci-archive:" + dir + "/oci.tar:here", "docker-archive:" + dir + "/docker.tar:some/name:here"} {
		ocitest.Run(t, "skopeo", "--insecure-policy", "copy", from, to)
		for _, ref := range []string{to, strings.TrimSuffix(strings.TrimSuffix(to, ":here"), ":some/name")} {
			o := options(t)
			img := resolve(t, ref, o)
			docker := strings.HasPrefix(to, "docker")
			if !docker && img.Digest != blobs.Of(m.manifest) {
				t.Errorf("%s: %s", ref, img.Digest)
			}
			if img.Config.Config.Env[0] != "PATH=/bin" {
				t.Errorf("%s: %+v", ref, img.Config)
			}
			checkLocal(t, img, o, m, docker)
			again := resolve(t, ref, o)
			if again.Digest != img.Digest {
				t.Errorf("%s is %s and %s", ref, img.Digest, again.Digest)
			}
		}
	}
	// Compressed as a whole, as many keep them.
	for _, kind := range []string{"oci", "docker"} {
		data, err := os.ReadFile(dir + "/" + kind + ".tar")
		if err != nil {
			t.Fatal(err)
		}
		writeFile(t, dir+"/"+kind+".tgz", gz(t, data))
		o := options(t)
		checkLocal(t, resolve(t, kind+"-archive:"+dir+"/"+kind+".tgz", o), o, m, kind == "docker")
	}
	// Several images in one layout, and names that are not there.
	ocitest.Run(t, "skopeo", "--insecure-policy", "copy", "--override-arch=arm64", "oci:"+writeLayout(t, map[string]*made{"1": other})+":1", "oci:"+dir+"/layout:there")
	for ref, class := range map[string]errdefs.Class{
		"oci:" + dir + "/layout":                    errdefs.ClassInvalidArgument,
		"oci:" + dir + "/layout:nowhere":            errdefs.ClassNotFound,
		"oci:" + dir + "/layout:there":              errdefs.ClassNotFound, // for another platform
		"oci-archive:" + dir + "/oci.tar:x":         errdefs.ClassNotFound,
		"oci-archive:" + dir + "/docker.tar":        errdefs.ClassNotFound,
		"docker-archive:" + dir + "/docker.tar:x":   errdefs.ClassNotFound,
		"docker-archive:" + dir + "/oci.tar":        errdefs.ClassNotFound,
		"docker-archive:" + dir + "/none.tar":       errdefs.ClassNotFound,
		"docker-archive:" + dir:                     errdefs.ClassInvalidArgument,
		"oci:" + dir + "/docker.tar":                errdefs.ClassNotFound,
		"oci:" + dir + "/none":                      errdefs.ClassNotFound,
		"oci:" + dir:                                errdefs.ClassNotFound,
		"tar:" + dir + "/none":                      errdefs.ClassNotFound,
		"tar:" + dir + "/layout/oci-layout":         errdefs.ClassInvalidArgument,
		"oci-archive:" + dir + "/layout/index.json": errdefs.ClassInvalidArgument,
	} {
		if _, err := oci.Resolve(t.Context(), parse(t, ref), options(t)); errdefs.ClassOf(err) != class {
			t.Errorf("%s: %v (%s)", ref, err, errdefs.ClassOf(err))
		}
	}
}

// TestIndexOfALayout: a layout without names has one image for each platform.
func TestIndexOfALayout(t *testing.T) {
	m := makeImage(t, amd64, 102, 1000)
	o := options(t)
	checkLocal(t, resolve(t, "oci:"+writeLayout(t, map[string]*made{"": m}), o), o, m, false)
	long := strings.Repeat("n", 100_000)
	_, err := oci.Resolve(t.Context(), parse(t, "oci:"+writeLayout(t, map[string]*made{"a": m, "b": m, long: m})), o)
	if !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), `"a"`) || len(err.Error()) > 1000 {
		t.Errorf("%.2000v", err)
	}
	img := resolve(t, "oci:"+writeLayout(t, map[string]*made{"": m}), o)
	o.Platform = arm64
	if _, err := oci.Resolve(t.Context(), img.Ref, o); !errors.Is(err, errdefs.ErrNotFound) || !strings.Contains(err.Error(), "linux/amd64") {
		t.Errorf("%v", err)
	}
}

// member is one of an archive.
type member struct {
	name, link string
	kind       byte
	data       []byte
}

func tarOf(t testing.TB, members ...member) []byte {
	t.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, m := range members {
		if m.kind == 0 {
			m.kind = tar.TypeReg
		}
		if err := tw.WriteHeader(&tar.Header{Name: m.name, Linkname: m.link, Typeflag: m.kind, Size: int64(len(m.data)), Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write(m.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// TestDockerArchives as several versions of Docker and its like write them: layers that
// are links to others, layers that are compressed, several images.
func TestDockerArchives(t *testing.T) {
	m := makeImage(t, amd64, 103, 5000, 5000)
	plain := [][]byte{gunzip(t, m.layers[0]), gunzip(t, m.layers[1])}
	manifest := func(images ...map[string]any) member { return member{name: "./manifest.json", data: toJSON(t, images)} }
	image := func(layers ...string) map[string]any {
		return map[string]any{"Config": "config.json", "RepoTags": []string{"docker.io/library/debian:12", "x:1"}, "Layers": layers}
	}
	config := member{name: "config.json", data: m.config}
	file := filepath.Join(t.TempDir(), "a.tar")
	hashed := "blobs/sha256/" + blobs.Of(m.layers[1]).Hex()
	for _, c := range map[string]struct {
		members  []member
		unpacked bool
	}{
		"links": {[]member{
			config, {name: "b/layer.tar", kind: tar.TypeSymlink, link: "../a/layer.tar"}, {name: "a/layer.tar", data: plain[0]},
			{name: "c.tar", data: plain[1]}, {name: "d.tar", kind: tar.TypeLink, link: "c.tar"}, manifest(image("b/layer.tar", "d.tar")),
		}, true},
		"compressed": {[]member{config, {name: "1.tar.gz", data: m.layers[0]}, {name: hashed, data: m.layers[1]}, manifest(image("1.tar.gz", hashed))}, false},
	} {
		writeFile(t, file, tarOf(t, c.members...))
		for _, suffix := range []string{"", ":debian:12", ":docker.io/library/x:1"} {
			o := options(t)
			checkLocal(t, resolve(t, "docker-archive:"+file+suffix, o), o, m, c.unpacked)
		}
	}
	good := []member{config, {name: "1", data: plain[0]}, {name: "2", data: plain[1]}}
	secret := writeFile(t, filepath.Join(t.TempDir(), "secret"), []byte("x"))
	for name, c := range map[string]struct {
		data  []byte
		class errdefs.Class
		says  string
	}{
		"no image":   {tarOf(t, append(good, manifest())...), errdefs.ClassNotFound, "no image"},
		"two images": {tarOf(t, append(good, manifest(image("1", "2"), image("1", "2")))...), errdefs.ClassInvalidArgument, "debian:12"},
		"long names": {tarOf(t, append(good, manifest(image("1", "2"), image("1", "2"), map[string]any{"RepoTags": []string{strings.Repeat("n", 10_000) + ".io/x"}}))...),
			errdefs.ClassInvalidArgument, "debian:12"},
		"no such layer":  {tarOf(t, append(good, manifest(image("1", "3")))...), errdefs.ClassNotFound, `"3"`},
		"escaping layer": {tarOf(t, append(good, manifest(image("1", "../.."+secret)))...), errdefs.ClassNotFound, "secret"},
		"absolute layer": {tarOf(t, append(good, manifest(image("1", secret)))...), errdefs.ClassNotFound, "secret"},
		"escaping link":  {tarOf(t, append(good, member{name: "3", kind: tar.TypeSymlink, link: secret}, manifest(image("1", "3")))...), errdefs.ClassNotFound, `"3"`},
		"circle":         {tarOf(t, append(good, member{name: "3", kind: tar.TypeSymlink, link: "4"}, member{name: "4", kind: tar.TypeSymlink, link: "3"}, manifest(image("1", "3")))...), errdefs.ClassNotFound, `"3"`},
		"outside":        {tarOf(t, append(good, member{name: "../x"}, manifest(image("1", "2")))...), errdefs.ClassInvalidArgument, `"../x"`},
		"layers missing": {tarOf(t, append(good, manifest(image("1")))...), errdefs.ClassInvalidArgument, "1 layers"},
		"a directory":    {tarOf(t, append(good, member{name: "3/", kind: tar.TypeDir}, manifest(image("1", "3")))...), errdefs.ClassNotFound, `"3"`},
		"long name":      {tarOf(t, append(good, member{name: strings.Repeat("n", 5000)}, manifest(image("1", "2")))...), errdefs.ClassInvalidArgument, "4096 bytes"},
		"long link":      {tarOf(t, append(good, member{name: "3", kind: tar.TypeSymlink, link: strings.Repeat("n", 5000)}, manifest(image("1", "2")))...), errdefs.ClassInvalidArgument, "4096 bytes"},
		"a crowd":        {tarOf(t, append(good, member{name: "manifest.json", data: []byte("[" + strings.Repeat("{},", 210_000) + "{}]")})...), errdefs.ClassInvalidArgument, "200000 values"},
		"not JSON":       {tarOf(t, member{name: "manifest.json", data: []byte("{")}), errdefs.ClassInvalidArgument, "manifest.json"},
		"cut":            {tarOf(t, append(good, manifest(image("1", "2")))...)[:6000], errdefs.ClassInvalidArgument, "archive"},
		"empty":          {nil, errdefs.ClassNotFound, "manifest.json"},
		"many layers":    {tarOf(t, append(good, manifest(image(strings.Split(strings.Repeat("1 ", 1001), " ")...)))...), errdefs.ClassInvalidArgument, "1002 layers"},
		"packed, cut":    {gz(t, tarOf(t, append(good, manifest(image("1", "2")))...))[:3000], errdefs.ClassInvalidArgument, "cut off"},
	} {
		writeFile(t, file, c.data)
		_, err := oci.Resolve(t.Context(), parse(t, "docker-archive:"+file), options(t))
		if errdefs.ClassOf(err) != c.class || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v (%s)", name, err, errdefs.ClassOf(err))
		}
		if err != nil && len(err.Error()) > 1000 {
			t.Errorf("%s: an error of %d bytes", name, len(err.Error()))
		}
	}
	// Content that is not what the config says is noticed when it is read.
	writeFile(t, file, tarOf(t, append(good, manifest(image("2", "1")))...))
	o := options(t)
	img := resolve(t, "docker-archive:"+file, o)
	if err := img.Fetch(t.Context(), o.Cache, 0, nil); !errors.Is(err, blobs.ErrDigest) || errdefs.ClassOf(err) != errdefs.ClassInvalidArgument {
		t.Errorf("%v", err)
	}
	rc, err := img.Open(t.Context(), nil, img.Layers[0])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(rc); !errors.Is(err, blobs.ErrDigest) {
		t.Errorf("%v", err)
	}
	o.Limits.Bytes = 1000
	if _, err := oci.Resolve(t.Context(), parse(t, "docker-archive:"+file), o); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("%v", err)
	}
	writeFile(t, file, gz(t, make([]byte, 1<<20)))
	if _, err := oci.Resolve(t.Context(), parse(t, "docker-archive:"+file), o); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("a bomb: %v", err)
	}
}

// lapsing is a context that ends once it has been asked often enough.
type lapsing struct {
	context.Context
	left int
}

func (l *lapsing) Err() error {
	if l.left--; l.left < 0 {
		return context.DeadlineExceeded
	}
	return nil
}

// TestHeadersWithoutEnd are not read to it when nobody waits any more.
func TestHeadersWithoutEnd(t *testing.T) {
	var one bytes.Buffer
	tw := tar.NewWriter(&one)
	if err := tw.WriteHeader(&tar.Header{Name: "x", Format: tar.FormatPAX, PAXRecords: map[string]string{"A.b": "c"}}); err != nil {
		t.Fatal(err)
	}
	extended := one.Bytes()[:1024] // the header and records that come before the member's own
	file := writeFile(t, filepath.Join(t.TempDir(), "a.tar"), bytes.Repeat(extended, 1000))
	ctx := &lapsing{t.Context(), 500}
	if _, err := oci.Resolve(ctx, parse(t, "docker-archive:"+file), options(t)); err == nil || ctx.left >= 0 {
		t.Errorf("%v, with %d questions left", err, ctx.left)
	}
}

// TestLayoutsStayInside their directory.
func TestLayoutsStayInside(t *testing.T) {
	m := makeImage(t, amd64, 104, 3000)
	for name, spoil := range map[string]func(dir, blob string) error{
		"link to a file outside": func(dir, blob string) error {
			other := writeFile(t, filepath.Join(t.TempDir(), "x"), m.layers[0])
			return errors.Join(os.Remove(blob), os.Symlink(other, blob))
		},
		"fifo":      func(dir, blob string) error { return errors.Join(os.Remove(blob), syscall.Mkfifo(blob, 0o600)) },
		"directory": func(dir, blob string) error { return errors.Join(os.Remove(blob), os.Mkdir(blob, 0o700)) },
		"not there": func(dir, blob string) error { return os.Remove(blob) },
		"shorter":   func(dir, blob string) error { return os.Truncate(blob, 100) },
		"other":     func(dir, blob string) error { return os.WriteFile(blob, make([]byte, len(m.layers[0])), 0o600) },
	} {
		dir := writeLayout(t, map[string]*made{"1": m})
		o := options(t)
		img := resolve(t, "oci:"+dir+":1", o)
		if err := spoil(dir, filepath.Join(dir, "blobs/sha256", img.Layers[0].Digest.Hex())); err != nil {
			t.Fatal(err)
		}
		if err := img.Fetch(t.Context(), o.Cache, 0, nil); errdefs.ClassOf(err) != errdefs.ClassInvalidArgument && errdefs.ClassOf(err) != errdefs.ClassNotFound {
			t.Errorf("%s: %v (%s)", name, err, errdefs.ClassOf(err))
		}
		rc, err := img.Open(t.Context(), nil, img.Layers[0])
		if err == nil {
			_, err = io.ReadAll(rc)
			_ = rc.Close()
		}
		if err == nil {
			t.Errorf("%s: read", name)
		}
	}
	// A link inside is one like any other.
	dir := writeLayout(t, map[string]*made{"1": m})
	blob := filepath.Join(dir, "blobs/sha256", blobs.Of(m.layers[0]).Hex())
	if err := errors.Join(os.Rename(blob, filepath.Join(dir, "x")), os.Symlink("../../x", blob)); err != nil {
		t.Fatal(err)
	}
	o := options(t)
	checkLocal(t, resolve(t, "oci:"+dir+":1", o), o, m, false)
}

func TestRootTar(t *testing.T) {
	plain := layerTar(t, 105, 300_000)
	var zst bytes.Buffer
	z, err := zstd.NewWriter(&zst)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := z.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"plain": bytes.Clone(plain), "gzip": gz(t, plain), "zstd": zst.Bytes(), "gzip, padded": append(gz(t, plain), make([]byte, 1024)...)} {
		file := writeFile(t, filepath.Join(t.TempDir(), "root"), data)
		o := options(t)
		if name == "gzip, padded" {
			if _, err := oci.Resolve(t.Context(), parse(t, "tar:"+file), o); !errors.Is(err, errdefs.ErrInvalidArgument) {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		img := resolve(t, "tar:"+file, o)
		if len(img.Layers) != 1 || img.Layers[0].Digest != blobs.Of(data) || img.Layers[0].DiffID != blobs.Of(plain) || img.Layers[0].Size != int64(len(data)) || img.Config.Architecture != "amd64" {
			t.Errorf("%s: %+v", name, img)
		}
		if err := img.Fetch(t.Context(), o.Cache, 0, nil); err != nil {
			t.Error(err)
		}
		if got, err := o.Cache.ReadAll(blobs.Of(data), 1<<20); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s: %v", name, err)
		}
		// A file that changes meanwhile is noticed.
		data[100]++
		writeFile(t, file, data)
		rc, err := img.Open(t.Context(), nil, img.Layers[0])
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(rc); !errors.Is(err, blobs.ErrDigest) {
			t.Errorf("%s: %v", name, err)
		}
		o.Limits.Bytes = 1000
		if _, err := oci.Resolve(t.Context(), parse(t, "tar:"+file), o); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestDockerDaemon asks a stand-in for Docker's daemon.
func TestDockerDaemon(t *testing.T) {
	m := makeImage(t, amd64, 106, 40_000, 10)
	archive := tarOf(t, member{name: "c", data: m.config}, member{name: "1", data: gunzip(t, m.layers[0])}, member{name: "2", data: gunzip(t, m.layers[1])},
		member{name: "manifest.json", data: toJSON(t, []map[string]any{{"Config": "c", "Layers": []string{"1", "2"}}})})
	socket := filepath.Join(t.TempDir(), "docker.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var asked []string
	server := &httptest.Server{Listener: l, Config: &http.Server{ErrorLog: quiet, Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		asked = append(asked, req.URL.EscapedPath())
		switch {
		case strings.Contains(req.URL.Path, "none"):
			w.WriteHeader(http.StatusNotFound)
		case strings.Contains(req.URL.Path, "broken"):
			w.WriteHeader(http.StatusInternalServerError)
			_, _ = io.WriteString(w, `{"message":"no \u001b[31mdisk"}`)
		case strings.Contains(req.URL.Path, "cut"):
			w.Header().Set("Content-Length", fmt.Sprint(len(archive)))
			_, _ = w.Write(archive[:10_000])
		default:
			_, _ = w.Write(archive)
		}
	})}}
	server.Start()
	defer server.Close()
	o := options(t)
	o.Sockets = []string{filepath.Join(t.TempDir(), "absent"), socket}
	for ref, path := range map[string]string{
		"docker-daemon:debian": "/images/debian:latest/get", "docker-daemon:ghcr.io/x/y:1": "/images/ghcr.io/x/y:1/get", "docker-daemon:" + zeros: "/images/" + zeros[7:] + "/get",
	} {
		asked = nil
		checkLocal(t, resolve(t, ref, o), o, m, true)
		if len(asked) != 1 || asked[0] != path {
			t.Errorf("%s: asked for %q", ref, asked)
		}
	}
	for ref, class := range map[string]errdefs.Class{"none": errdefs.ClassNotFound, "broken": errdefs.ClassUnavailable, "cut": errdefs.ClassUnavailable} {
		_, err := oci.Resolve(t.Context(), parse(t, "docker-daemon:"+ref), o)
		if errdefs.ClassOf(err) != class || strings.Contains(err.Error(), "\x1b") {
			t.Errorf("%s: %v (%s)", ref, err, errdefs.ClassOf(err))
		}
	}
	o.Limits.Bytes = 20_000
	if _, err := oci.Resolve(t.Context(), parse(t, "docker-daemon:x"), o); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("an endless image: %v", err)
	}
	o.Sockets = o.Sockets[:1]
	if _, err := oci.Resolve(t.Context(), parse(t, "docker-daemon:x"), o); !errors.Is(err, errdefs.ErrUnavailable) || errdefs.HintOf(err) == "" {
		t.Errorf("nobody there: %v", err)
	}
	env := map[string]string{"DOCKER_HOST": "unix:///d.sock", "XDG_RUNTIME_DIR": "/run/user/7"}
	if got := oci.DefaultSockets(func(k string) string { return env[k] }); got[0] != "/d.sock" || got[3] != "/run/user/7/podman/podman.sock" {
		t.Errorf("%q", got)
	}
}
