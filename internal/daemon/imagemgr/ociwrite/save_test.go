package ociwrite_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"banger/internal/daemon/ext4"
	"banger/internal/daemon/imagemgr/blobs"
	"banger/internal/daemon/imagemgr/flatten"
	"banger/internal/daemon/imagemgr/oci"
	"banger/internal/daemon/imagemgr/ociwrite"
	"banger/internal/errdefs"
	"banger/internal/model"
)

// makeDisk writes a filesystem; fill adds to its root.
func makeDisk(t testing.TB, fill func(write func(content string) ext4.Data, root *ext4.Inode)) *ext4.FS {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	const size = 256 << 20
	w, err := ext4.New(f, ext4.Options{Size: size})
	if err != nil {
		t.Fatal(err)
	}
	root := dir()
	fill(func(content string) ext4.Data {
		d, err := w.Write(t.Context(), strings.NewReader(content), int64(len(content)))
		if err != nil {
			t.Fatal(err)
		}
		return d
	}, root)
	if err := w.Finish(t.Context(), root); err != nil {
		t.Fatal(err)
	}
	fsys, err := ext4.Open(f, size)
	if err != nil {
		t.Fatal(err)
	}
	return fsys
}

func dir(children ...ext4.Node) *ext4.Inode {
	return &ext4.Inode{Mode: unix.S_IFDIR | 0o755, MTime: ext4.Time{Sec: 1_600_000_000, Nsec: 1}, Children: children}
}

func file(d ext4.Data) *ext4.Inode {
	return &ext4.Inode{Mode: unix.S_IFREG | 0o640, MTime: ext4.Time{Sec: 1_600_000_001, Nsec: 999_999_999}, Data: d}
}

const (
	capability = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	acl        = "\x02\x00\x00\x00" + "\x01\x00\x06\x00\xff\xff\xff\xff" + "\x02\x00\x07\x00\xe8\x03\x00\x00" + "\x04\x00\x04\x00\xff\xff\xff\xff" +
		"\x10\x00\x04\x00\xff\xff\xff\xff" + "\x20\x00\x00\x00\xff\xff\xff\xff"
)

// rich has what a tar of OCI's can say, and a socket.
func rich(t testing.TB) *ext4.FS {
	return makeDisk(t, func(write func(string) ext4.Data, root *ext4.Inode) {
		hard := file(write("shared"))
		special := file(write(strings.Repeat("suid", 5000)))
		special.Mode = unix.S_IFREG | 0o6755
		special.Xattrs = []ext4.Xattr{{Name: "security.capability", Value: capability}}
		listed := file(write("acl"))
		listed.Xattrs = []ext4.Xattr{{Name: "system.posix_acl_access", Value: acl}, {Name: "user.note", Value: "\x00\xff\n"}}
		inherited := dir()
		inherited.Xattrs = []ext4.Xattr{{Name: "system.posix_acl_default", Value: acl}}
		owned := file(ext4.Data{})
		owned.UID, owned.GID = 3_000_000_000, 70_000
		old := file(write("old"))
		old.MTime = ext4.Time{Sec: -1_000_000_000}
		sticky := dir()
		sticky.Mode = unix.S_IFDIR | 0o1777
		node := func(mode uint32, major, minor uint32) *ext4.Inode {
			return &ext4.Inode{Mode: mode, Rdev: ext4.Device{Major: major, Minor: minor}, MTime: ext4.Time{Sec: 5, Nsec: 6}}
		}
		link := func(target string) *ext4.Inode {
			return &ext4.Inode{Mode: unix.S_IFLNK | 0o777, Target: target, MTime: ext4.Time{Sec: 7, Nsec: 8}}
		}
		deep := dir(ext4.Node{Name: "end", Inode: file(write("deep"))})
		for range 30 {
			deep = dir(ext4.Node{Name: strings.Repeat("d", 60), Inode: deep})
		}
		root.Children = []ext4.Node{
			{Name: "a", Inode: hard}, {Name: "z", Inode: dir(ext4.Node{Name: "link", Inode: hard})},
			{Name: "bin", Inode: dir(ext4.Node{Name: "su", Inode: special}, ext4.Node{Name: "acl", Inode: listed}, ext4.Node{Name: "inherited", Inode: inherited})},
			{Name: "owned", Inode: owned}, {Name: "old", Inode: old}, {Name: "tmp", Inode: sticky},
			{Name: "holes", Inode: file(write(strings.Repeat("\x00", 1<<20) + "x" + strings.Repeat("\x00", 99_999)))},
			{Name: "big", Inode: file(write(strings.Repeat("0123456789abcdef", 1<<17)))},
			{Name: "null", Inode: node(unix.S_IFCHR|0o666, 1, 3)}, {Name: "disk", Inode: node(unix.S_IFBLK|0o660, 259, 70_000)},
			{Name: "fifo", Inode: node(unix.S_IFIFO|0o620, 0, 0)}, {Name: "socket", Inode: node(unix.S_IFSOCK|0o700, 0, 0)},
			{Name: "short", Inode: link("bin/su")}, {Name: "long", Inode: link(strings.Repeat("../", 500) + "caf\xe9")},
			{Name: "latin \xe4\n", Inode: file(write("latin"))}, {Name: strings.Repeat("n", 255), Inode: file(write("long name"))},
			{Name: "deep", Inode: deep},
		}
	})
}

// fact is what is known of a name, as text.
func fact(mode, uid, gid uint32, rdev ext4.Device, mtime ext4.Time, target string, xattrs map[string]string, content []byte) string {
	if k := mode & unix.S_IFMT; k != unix.S_IFCHR && k != unix.S_IFBLK {
		rdev = ext4.Device{}
	}
	return fmt.Sprintf("%o %d:%d dev %v at %d.%09d -> %.200q attrs %q content %d %.6x", mode, uid, gid, rdev, mtime.Sec, mtime.Nsec,
		target, fmt.Sprint(xattrs), len(content), sha256.Sum256(content))
}

// factsOf are those of all names but the root and sockets; a further name of an inode has
// its first one's.
func factsOf(t testing.TB, fsys *ext4.FS) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := fsys.Walk(t.Context(), func(e *ext4.Entry) error {
		if e.Path == "" || e.Path == "lost+found" || e.Mode&unix.S_IFMT == unix.S_IFSOCK {
			return nil
		}
		var content bytes.Buffer
		if e.Mode&unix.S_IFMT == unix.S_IFREG {
			if err := e.WriteContent(t.Context(), &content); err != nil {
				return err
			}
		}
		xs := map[string]string{}
		for _, x := range e.Xattrs {
			xs[x.Name] = x.Value
		}
		all[e.Path] = fact(e.Mode, e.UID, e.GID, e.Rdev, e.MTime, e.Target, xs, content.Bytes())
		if e.Link != "" {
			all[e.Path] += " = " + e.Link
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func compare(t testing.TB, have, want map[string]string) {
	t.Helper()
	for _, p := range slices.Sorted(maps.Keys(want)) {
		if have[p] != want[p] {
			t.Errorf("%.100q is\n%.700s, want\n%.700s", p, have[p], want[p])
		}
	}
	for p := range have {
		if want[p] == "" {
			t.Errorf("%.100q is not there", p)
		}
	}
}

var (
	amd64  = oci.Platform{OS: "linux", Architecture: "amd64"}
	config = model.ImageConfig{
		User: "5:6", Workdir: "/w", Env: []string{"A=b"}, Entrypoint: []string{"/bin/su"}, Cmd: []string{"-c", "x"}, StopSignal: "SIGINT",
		ExposedPorts: []string{"80/tcp", "53/udp"}, Volumes: []string{"/data"}, Labels: map[string]string{"l": "v"},
	}
)

func options() ociwrite.Options { return ociwrite.Options{Config: config, Platform: amd64} }

func parse(t testing.TB, s string) oci.Reference {
	t.Helper()
	r, err := oci.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// pull pulls an image as banger does, and returns the filesystem that comes of it.
func pull(t testing.TB, ref oci.Reference) (*oci.Image, *ext4.FS) {
	t.Helper()
	cache, err := blobs.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cache.Close() })
	img, err := oci.Resolve(t.Context(), ref, oci.Options{Cache: cache, Platform: amd64})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = img.Close() })
	f, err := os.Create(filepath.Join(t.TempDir(), "pulled"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	const size = 256 << 20
	w, err := ext4.New(f, ext4.Options{Size: size})
	if err != nil {
		t.Fatal(err)
	}
	var layers []flatten.Layer
	for _, l := range img.Layers {
		layers = append(layers, flatten.Layer{
			Name: l.Digest.Short(), MediaType: l.MediaType, DiffID: string(l.DiffID),
			Open: func(ctx context.Context) (io.ReadCloser, error) { return img.Open(ctx, cache, l) },
		})
	}
	root, _, err := flatten.Flatten(t.Context(), layers, w, flatten.Limits{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Finish(t.Context(), root); err != nil {
		t.Fatal(err)
	}
	fsys, err := ext4.Open(f, size)
	if err != nil {
		t.Fatal(err)
	}
	return img, fsys
}

func run(t testing.TB, name string, args ...string) []byte {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skip(err)
	}
	var stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, stderr.String())
	}
	return out
}

// kinds are all the ways to save an image: the reference, and how skopeo writes it.
var kinds = []struct {
	name, to, skopeo string
	compression      ociwrite.Compression
}{
	{"layout", "oci:%s:v1", "oci:%s:v1", ""},
	{"layout, zstd", "oci:%s:v1", "oci:%s:v1", ociwrite.Zstd},
	{"layout, plain", "oci:%s", "oci:%s", ociwrite.None},
	{"archive", "oci-archive:%s:v1", "oci-archive:%s:v1", ociwrite.Gzip},
	{"docker", "docker-archive:%s:some/name:v1", "docker-archive:%s:docker.io/some/name:v1", ""},
	{"docker without a name", "docker-archive:%s", "docker-archive:%s", ""},
}

func TestSaveAndPull(t *testing.T) {
	fsys := rich(t)
	want := factsOf(t, fsys)
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			parent := t.TempDir()
			to := filepath.Join(parent, "image")
			o := options()
			o.Compression = k.compression
			var last int64
			o.Progress = func(n int64) { last = n }
			ref := parse(t, fmt.Sprintf(k.to, to))
			saved, err := ociwrite.Save(t.Context(), fsys, ref, o)
			if err != nil {
				t.Fatal(err)
			}
			if saved.Sockets != 1 || last != saved.Size {
				t.Errorf("%+v, told of %d", saved, last)
			}
			left, err := os.ReadDir(parent)
			if err != nil || len(left) != 1 {
				t.Errorf("%v is left, %v", left, err)
			}
			img, pulled := pull(t, ref)
			compare(t, factsOf(t, pulled), want)
			c := img.Config
			if c.Config.User != "5:6" || c.Config.WorkingDir != "/w" || fmt.Sprintf("%v %v %v %s", c.Config.Env, c.Config.Entrypoint, c.Config.Cmd, c.Config.StopSignal) !=
				"[A=b] [/bin/su] [-c x] SIGINT" || len(c.Config.ExposedPorts) != 2 || len(c.Config.Volumes) != 1 || c.Config.Labels["l"] != "v" || c.Architecture != "amd64" {
				t.Errorf("%+v", c)
			}
			var judge struct {
				Digest, Architecture string
				Layers               []string
				Env                  []string
			}
			from := fmt.Sprintf(k.skopeo, to)
			if err := json.Unmarshal(run(t, "skopeo", "inspect", from), &judge); err != nil {
				t.Fatal(err)
			}
			if len(judge.Layers) != 1 || judge.Architecture != "amd64" || len(judge.Env) != 1 ||
				ref.Kind != oci.DockerArchive && judge.Digest != saved.Manifest.Digest.String() {
				t.Errorf("skopeo says %+v of %+v", judge, saved)
			}
			run(t, "skopeo", "--insecure-policy", "copy", from, "dir:"+t.TempDir())
		})
	}
}

func TestUmociUnpacks(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("umoci keeps owners and devices only as root")
	}
	fsys := rich(t)
	to := filepath.Join(t.TempDir(), "image")
	if _, err := ociwrite.Save(t.Context(), fsys, parse(t, "oci:"+to+":v1"), options()); err != nil {
		t.Fatal(err)
	}
	bundle := filepath.Join(t.TempDir(), "bundle")
	run(t, "umoci", "unpack", "--image", to+":v1", bundle)
	root := filepath.Join(bundle, "rootfs")
	have, first := map[string]string{}, map[uint64]string{}
	var paths []string
	if err := filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error { paths = append(paths, p); return err }); err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(paths, func(a, b string) int { return slices.Compare(strings.Split(a, "/"), strings.Split(b, "/")) })
	for _, p := range paths[1:] {
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			t.Fatal(err)
		}
		target, content := "", []byte(nil)
		var err error
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFLNK:
			target, err = os.Readlink(p)
		case unix.S_IFREG:
			content, err = os.ReadFile(p)
		}
		if err != nil {
			t.Fatal(err)
		}
		rel := strings.TrimPrefix(p, root+"/")
		have[rel] = fact(st.Mode, st.Uid, st.Gid, ext4.Device{Major: unix.Major(st.Rdev), Minor: unix.Minor(st.Rdev)},
			ext4.Time{Sec: st.Mtim.Sec, Nsec: uint32(st.Mtim.Nsec)}, target, attrsOf(t, p), content)
		if f := first[st.Ino]; f != "" && st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			have[rel] += " = " + f
		} else {
			first[st.Ino] = rel
		}
	}
	compare(t, have, factsOf(t, fsys))
}

func attrsOf(t testing.TB, p string) map[string]string {
	t.Helper()
	list, value, xs := make([]byte, 64<<10), make([]byte, 64<<10), map[string]string{}
	n, err := unix.Llistxattr(p, list)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range strings.FieldsFunc(string(list[:n]), func(r rune) bool { return r == 0 }) {
		n, err := unix.Lgetxattr(p, a, value)
		if err != nil {
			t.Fatal(err)
		}
		xs[a] = string(value[:n])
	}
	return xs
}

// registry is as much of one as it takes to push and pull one image.
func registry() http.Handler {
	var mu sync.Mutex
	stored, upload := map[string][]byte{}, []byte(nil)
	mux := http.NewServeMux()
	handle := func(pattern string, status int, do func(w http.ResponseWriter, r *http.Request, body []byte)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			body, _ := io.ReadAll(r.Body)
			if status == http.StatusAccepted {
				w.Header().Set("Location", "/v2/some/name/blobs/uploads/1")
			}
			if r.Method != http.MethodGet {
				w.WriteHeader(status)
			}
			do(w, r, body)
		})
	}
	handle("GET /v2/{$}", 200, func(http.ResponseWriter, *http.Request, []byte) {})
	handle("POST /v2/some/name/blobs/uploads/{$}", 202, func(http.ResponseWriter, *http.Request, []byte) { upload = nil })
	handle("PATCH /v2/some/name/blobs/uploads/1", 202, func(_ http.ResponseWriter, _ *http.Request, b []byte) { upload = append(upload, b...) })
	handle("PUT /v2/some/name/blobs/uploads/1", 201, func(_ http.ResponseWriter, r *http.Request, _ []byte) { stored[r.URL.Query().Get("digest")] = upload })
	handle("PUT /v2/some/name/manifests/{name}", 201, func(_ http.ResponseWriter, r *http.Request, b []byte) { stored[r.PathValue("name")] = b })
	handle("HEAD /v2/some/name/{kind}/{name}", 404, func(http.ResponseWriter, *http.Request, []byte) {})
	handle("GET /v2/some/name/{kind}/{name}", 200, func(w http.ResponseWriter, r *http.Request, _ []byte) { _, _ = w.Write(stored[r.PathValue("name")]) })
	return mux
}

func TestPush(t *testing.T) {
	server := httptest.NewServer(registry())
	defer server.Close()
	fsys := rich(t)
	i, err := ociwrite.Build(t.Context(), fsys, t.TempDir(), options())
	if err != nil {
		t.Fatal(err)
	}
	u, err := i.Upload()
	if err != nil {
		t.Fatal(err)
	}
	ref := parse(t, strings.TrimPrefix(server.URL, "http://")+"/some/name:v1")
	if digest, err := oci.Push(t.Context(), ref, u, oci.Options{}, nil); err != nil || string(digest) != i.Manifest.Digest.String() {
		t.Fatal(digest, err)
	}
	_, pulled := pull(t, ref)
	compare(t, factsOf(t, pulled), factsOf(t, fsys))
	if err := i.Archive(t.Context(), io.Discard, oci.DockerArchive, ""); !errors.Is(err, errdefs.ErrInternal) {
		t.Errorf("a compressed layer for Docker: %v", err)
	}
}

func TestSaveIsTheSame(t *testing.T) {
	fsys := rich(t)
	for _, c := range []ociwrite.Compression{ociwrite.Gzip, ociwrite.Zstd, ociwrite.None} {
		var all []string
		for range 2 {
			o := options()
			o.Compression = c
			i, err := ociwrite.Build(t.Context(), fsys, t.TempDir(), o)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, i.Manifest.Digest.String())
		}
		if all[0] != all[1] {
			t.Errorf("%s: %v", c, all)
		}
	}
}

// members are the names in a layer's tar, links with their targets.
func members(t testing.TB, fsys *ext4.FS, o ociwrite.Options) []string {
	t.Helper()
	o.Compression = ociwrite.None
	i, err := ociwrite.Build(t.Context(), fsys, t.TempDir(), o)
	if err != nil {
		t.Fatal(err)
	}
	f, err := i.Open(i.DiffID)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var all []string
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeLink {
			h.Name += "=" + h.Linkname
		}
		all = append(all, h.Name)
	}
}

func TestSaveLeavesOut(t *testing.T) {
	fsys := makeDisk(t, func(write func(string) ext4.Data, root *ext4.Inode) {
		hard := file(write("x"))
		root.Children = []ext4.Node{{Name: "a", Inode: dir(ext4.Node{Name: "1", Inode: hard}, ext4.Node{Name: "2", Inode: hard})},
			{Name: "a-b", Inode: hard}, {Name: "b", Inode: hard}, {Name: "c", Inode: hard}}
	})
	o := options()
	if got := fmt.Sprint(members(t, fsys, o)); got != "[a/ a/1 a/2=a/1 a-b=a/1 b=a/1 c=a/1]" {
		t.Error(got)
	}
	o.Skip = func(path string) bool { return path == "a" || path == "a-b" }
	if got := fmt.Sprint(members(t, fsys, o)); got != "[b c=b]" {
		t.Error(got)
	}
	found := makeDisk(t, func(write func(string) ext4.Data, root *ext4.Inode) {
		root.Children = []ext4.Node{{Name: "lost+found", Inode: dir(ext4.Node{Name: "#1", Inode: file(write("x"))})}}
	})
	if got := fmt.Sprint(members(t, found, options())); got != "[lost+found/ lost+found/#1]" {
		t.Error(got)
	}
}

func TestSaveRefuses(t *testing.T) {
	one := func(name string, in func(write func(string) ext4.Data) *ext4.Inode) *ext4.FS {
		return makeDisk(t, func(write func(string) ext4.Data, root *ext4.Inode) {
			root.Children = []ext4.Node{{Name: name, Inode: in(write)}}
		})
	}
	plain := one("a", func(write func(string) ext4.Data) *ext4.Inode { return file(write(strings.Repeat("x", 9000))) })
	there := t.TempDir()
	small := options()
	small.Limits.Bytes = 9000
	few := options()
	few.Limits.Entries = 1
	for name, c := range map[string]struct {
		fsys  *ext4.FS
		to    string
		o     ociwrite.Options
		class error
		says  string
	}{
		"a whiteout": {one(".wh.a", func(func(string) ext4.Data) *ext4.Inode { return file(ext4.Data{}) }), "", options(), errdefs.ErrUnsupported, "/.wh.a"},
		"an attribute": {one("b", func(func(string) ext4.Data) *ext4.Inode {
			f := file(ext4.Data{})
			f.Xattrs = []ext4.Xattr{{Name: "user.a=b", Value: "c"}}
			return f
		}), "", options(), errdefs.ErrUnsupported, "user.a=b"},
		"a large file":      {plain, "", small, errdefs.ErrExhausted, `"/a"`},
		"many files":        {rich(t), "", few, errdefs.ErrExhausted, "more than 1 files"},
		"what is there":     {plain, "oci:" + there, options(), errdefs.ErrAlreadyExists, there},
		"a registry":        {plain, "registry.invalid/a", options(), errdefs.ErrInvalidArgument, "cannot be saved"},
		"no such directory": {plain, "oci-archive:" + there + "/no/file", options(), errdefs.ErrNotFound, "no such"},
		"another packer":    {plain, "", ociwrite.Options{Compression: "xz"}, errdefs.ErrInvalidArgument, "xz"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			to := c.to
			if to == "" {
				to = "oci-archive:" + dir + "/file"
			}
			_, err := ociwrite.Save(t.Context(), c.fsys, parse(t, to), c.o)
			if errdefs.ClassOf(err) != c.class.(*errdefs.Error).Class || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v", err)
			}
			if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
				t.Errorf("%v is left, %v", left, err)
			}
		})
	}
}

// An archive that is there stays whole until the new one is.
func TestSaveReplaces(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	ref := parse(t, "oci-archive:"+path)
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := ociwrite.Save(t.Context(), rich(t), ref, options()); !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("without being asked to: %v", err)
	}
	o := options()
	o.Target.Replace, o.Progress = true, func(int64) { cancel() }
	if _, err := ociwrite.Save(ctx, rich(t), ref, o); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if old, err := os.ReadFile(path); err != nil || string(old) != "old" {
		t.Errorf("%q %v", old, err)
	}
	o.Progress = nil
	if _, err := ociwrite.Save(t.Context(), rich(t), ref, o); err != nil {
		t.Fatal(err)
	}
	pull(t, ref)
}

// What comes to be there while an image is written stays.
func TestSaveIsOvertaken(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	o := options()
	o.Progress = func(int64) {
		if err := os.WriteFile(path, []byte("theirs"), 0o600); err != nil {
			t.Error(err)
		}
	}
	if _, err := ociwrite.Save(t.Context(), rich(t), parse(t, "oci-archive:"+path), o); !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("%v", err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "theirs" {
		t.Errorf("%q, %v", b, err)
	}
	if all, err := os.ReadDir(filepath.Dir(path)); err != nil || len(all) != 1 {
		t.Errorf("left %v, %v", all, err)
	}
}
