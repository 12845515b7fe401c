package imagemgr

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"connectrpc.com/connect"

	"banger/internal/api/bangerv1"
	"banger/internal/daemon/imagemgr/bundle"
	"banger/internal/daemon/imagemgr/catalog"
	"banger/internal/daemon/imagemgr/ocitest"
	"banger/internal/errdefs"
)

// publisher is somebody who has a catalog, signs it with minisign's own program, and
// serves it with the bundles.
type publisher struct {
	t   *testing.T
	dir string // that is served
	key string // public
	url string

	mu    sync.Mutex
	asked []string // what was asked for
}

func newPublisher(t *testing.T) *publisher {
	t.Helper()
	ocitest.Need(t, "minisign")
	p := &publisher{t: t, dir: t.TempDir()}
	p.newKey()
	files := http.FileServer(http.Dir(p.dir))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		p.asked = append(p.asked, r.URL.Path)
		p.mu.Unlock()
		files.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	p.url = server.URL + "/list.json"
	return p
}

func (p *publisher) newKey() {
	p.t.Helper()
	ocitest.Run(p.t, "minisign", "-G", "-W", "-f", "-p", filepath.Join(p.dir, "key.pub"), "-s", filepath.Join(p.dir, "key"))
	lines := strings.Split(p.read("key.pub"), "\n")
	p.key = lines[1]
}

func (p *publisher) read(name string) string {
	p.t.Helper()
	data, err := os.ReadFile(filepath.Join(p.dir, name))
	if err != nil {
		p.t.Fatal(err)
	}
	return string(data)
}

func (p *publisher) write(name, data string) {
	p.t.Helper()
	if err := os.WriteFile(filepath.Join(p.dir, name), []byte(data), 0o600); err != nil {
		p.t.Fatal(err)
	}
}

// sign publishes a catalog of entries as they are printed.
func (p *publisher) sign(entries ...string) {
	p.t.Helper()
	p.write("list.json", `{"format": 1, "entries": [`+strings.Join(entries, ",\n")+"]}")
	ocitest.Run(p.t, "minisign", "-S", "-s", filepath.Join(p.dir, "key"), "-m", filepath.Join(p.dir, "list.json"))
}

// seen returns what was asked for since the last call.
func (p *publisher) seen() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := p.asked
	p.asked = nil
	return all
}

func (w *world) trusts(p *publisher) {
	w.t.Helper()
	w.s.Sources.Catalogs = []catalog.Source{{URL: p.url, Key: p.key}}
	if err := w.s.openCatalogs(); err != nil {
		w.t.Fatal(err)
	}
}

// kernelEntry packs a kernel and returns its entry.
func (p *publisher) kernelEntry(name string) string {
	p.t.Helper()
	data, m := newSigner(p.t).pack(name, "6.1.9-small", map[string][]byte{bundle.Vmlinux: elfRelease("6.1.9-small")})
	p.write(name+".tar.zst", string(data))
	return fmt.Sprintf(`{"kind": "kernel", "name": %q, "arch": "amd64", "digest": %q, "size": %d, "unpacked": %d, "url": %q, "description": "a kernel"}`,
		name, digestOf(data), len(data), m.Unpacked(), name+".tar.zst")
}

func digestOf(data []byte) string {
	s := &summing{sum: sha256.New(), count: func(int64, int64) {}}
	_, _ = s.Write(data)
	return string(s.digest())
}

// changed is an entry with a field set to something else.
func changed(t *testing.T, entry, field string, value any) string {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal([]byte(entry), &m); err != nil {
		t.Fatal(err)
	}
	m[field] = value
	out, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// sameFile reports whether two files have the same content.
func sameFile(t *testing.T, a, b string) bool {
	t.Helper()
	x, xerr := os.ReadFile(a)
	y, yerr := os.ReadFile(b)
	if err := errors.Join(xerr, yerr); err != nil {
		t.Fatal(err)
	}
	return bytes.Equal(x, y)
}

// The whole way: an image is saved on one host, signed, and pulled on another one, with
// its kernel.
func TestBundleOfAnImage(t *testing.T) {
	p, from := newPublisher(t), newWorld(t)
	p.sign(p.kernelEntry("small"))
	from.trusts(p)
	from.kernel("small")
	src, err := from.s.Register(t.Context(), Registration{Name: "golden", Rootfs: ext4Tree(t, "first"), Kernel: "small", User: "me", Workdir: "/srv"})
	if err != nil {
		t.Fatal(err)
	}
	entry, err := from.save("golden", "bundle:"+p.dir+"/golden.tar.zst", false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := from.save("golden", "bundle:"+p.dir+"/golden.tar.zst", false); !errors.Is(err, errdefs.ErrAlreadyExists) || errdefs.HintOf(err) == "" {
		t.Errorf("again: %v", err)
	}
	if again, err := from.save("golden", "bundle:"+p.dir+"/golden.tar.zst", true); err != nil || again != entry {
		t.Errorf("again: %s, %v; was %s", again, err, entry)
	}
	p.sign(p.kernelEntry("small"), changed(t, entry, "description", "what a team works in"))

	w := newWorld(t)
	w.trusts(p)
	p.seen()
	told := &stages{joined: make(chan struct{})}
	i, err := w.s.PullImage(t.Context(), Pull{From: "catalog:golden"}, told)
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(filepath.Join(p.dir, "golden.tar.zst"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"download", fmt.Sprintf("%d/%d bytes", st.Size(), st.Size()), "unpack", fmt.Sprintf("%d/%d bytes", src.SizeBytes, src.SizeBytes), "publish"} {
		if !slices.Contains(told.all, want) {
			t.Errorf("nobody was told %q: %s", want, told)
		}
	}
	w.says(i, "first")
	if !sameFile(t, i.Path, src.Path) {
		t.Error("the disk is another one")
	}
	k := w.kernel("small")
	if i.Name != "catalog:golden" || !i.Managed || i.KernelID != k.ID || i.SizeBytes != src.SizeBytes || !reflect.DeepEqual(i.Config, src.Config) || !strings.Contains(i.Source, p.url) {
		t.Errorf("%+v", i)
	}
	if used := allocated(i.Path); used == 0 || used > allocated(src.Path)+1<<20 {
		t.Errorf("%d bytes are allocated, of the original %d", used, allocated(src.Path))
	}
	if err := w.s.RemoveKernel(t.Context(), "small"); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("the image's kernel can be removed: %v", err)
	}

	// Unchanged, it costs a look at the catalog; one that is used, not even that.
	p.seen()
	if again := w.pull("catalog:golden"); again.ID != i.ID {
		t.Error("it is made again")
	}
	if got := p.seen(); !slices.Equal(got, []string{"/list.json.minisig", "/list.json"}) {
		t.Errorf("looking whether it has changed takes %q", got)
	}
	if got := w.image("catalog:golden"); got.ID != i.ID || len(p.seen()) > 0 {
		t.Errorf("an image that is here: %+v", got)
	}
	// Under another name it shares the disk.
	mine, err := w.s.PullImage(t.Context(), Pull{From: "catalog:golden", As: "mine"}, nobody{})
	if err != nil || !reflect.DeepEqual(mine.Config, i.Config) || mine.KernelID != k.ID {
		t.Fatalf("%+v, %v", mine, err)
	}
	if !sameImage(mine, i) {
		t.Error("the disk is there twice")
	}
	if _, err := w.s.PullImage(t.Context(), Pull{From: "mine", Force: true}, nobody{}); errdefs.HintOf(err) != "say it again: banger image pull --force --name mine catalog:golden" {
		t.Errorf("by its name: %v (%s)", err, errdefs.HintOf(err))
	}
	// Without its file it comes again, and so it does when it has changed.
	if err := os.Remove(i.Path); err != nil {
		t.Fatal(err)
	}
	if _, err := w.s.GetImage(t.Context(), "catalog:golden"); !strings.HasPrefix(errdefs.HintOf(err), "make it again: banger image pull --force catalog:golden;") {
		t.Errorf("broken: %v (%s)", err, errdefs.HintOf(err))
	}
	w.says(w.image("catalog:golden"), "first")
	second := from.registered("second", "second")
	entry, err = from.save("second", "bundle:"+p.dir+"/second.tar.zst:golden", false)
	if err != nil {
		t.Fatal(err)
	}
	p.sign(p.kernelEntry("small"), entry)
	now := w.pull("catalog:golden")
	w.says(now, "second")
	if now.KernelID != "" || !reflect.DeepEqual(now.Config, second.Config) {
		t.Errorf("%+v", now)
	}
	// What was pulled can be passed on, under its name in the catalog.
	entry, err = w.save("catalog:golden", "bundle:"+t.TempDir()+"/again", false)
	if err != nil || !strings.Contains(entry, `"name": "golden"`) {
		t.Errorf("%s, %v", entry, err)
	}

	list, err := w.s.ImageHandlers().ListCatalog(t.Context(), connect.NewRequest(&bangerv1.ListRequest{}))
	if err != nil || len(list.Msg.Offers) != 1 {
		t.Fatalf("%v, %v", list, err)
	}
	if o := list.Msg.Offers[0]; o.Name != "golden" || o.Catalog != p.url || o.UnpackedBytes != 16<<20 || o.Key == "" || o.SizeBytes == 0 {
		t.Errorf("%+v", o)
	}
	list, err = w.s.KernelHandlers().ListCatalog(t.Context(), connect.NewRequest(&bangerv1.ListRequest{}))
	if err != nil || len(list.Msg.Offers) != 1 || list.Msg.Offers[0].Name != "small" {
		t.Errorf("%v, %v", list, err)
	}
}

// Nothing is unpacked of what nobody has vouched for, and nothing stays of it.
func TestBundleIsRefused(t *testing.T) {
	p, w := newPublisher(t), newWorld(t)
	w.registered("golden", "there")
	path := filepath.Join(p.dir, "golden.tar.zst")
	entry, err := w.save("golden", "bundle:"+path, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.s.RemoveImage(t.Context(), "golden"); err != nil {
		t.Fatal(err)
	}
	good := p.read("golden.tar.zst")
	notDisk := t.TempDir()
	w.write(filepath.Join(notDisk, bundle.Rootfs), strings.Repeat("no disk ", 8<<10))
	pack := func(m bundle.Manifest) string {
		var out bytes.Buffer
		packed, err := bundle.Pack(t.Context(), &out, m, notDisk)
		if err != nil {
			t.Fatal(err)
		}
		p.write("other.tar.zst", out.String())
		e := changed(t, changed(t, entry, "digest", digestOf(out.Bytes())), "url", "other.tar.zst")
		return changed(t, changed(t, e, "size", out.Len()), "unpacked", packed.Unpacked())
	}
	for what, c := range map[string]struct {
		prepare func()
		class   errdefs.Class
		says    string
	}{
		"another key": {func() {
			old := p.key
			p.newKey()
			p.sign(entry)
			p.key = old
		}, errdefs.ClassPermission, "is signed by key"},
		"a changed catalog": {func() {
			p.sign(entry)
			p.write("list.json", p.read("list.json")+" ")
		}, errdefs.ClassPermission, "signature is wrong"},
		"a changed bundle": {func() {
			p.sign(entry)
			p.write("golden.tar.zst", good[:len(good)/2]+"x"+good[len(good)/2+1:])
		}, errdefs.ClassUnavailable, "does not match its digest"},
		"a short bundle": {func() {
			p.sign(entry)
			p.write("golden.tar.zst", good[:len(good)/2])
		}, "", ""},
		"no bundle":         {func() { p.sign(changed(t, entry, "url", "gone.tar.zst")) }, errdefs.ClassNotFound, "404"},
		"another size":      {func() { p.sign(changed(t, entry, "unpacked", 5)) }, errdefs.ClassInvalidArgument, "unpacks to"},
		"not in it":         {func() { p.sign() }, errdefs.ClassNotFound, "no catalog has"},
		"an unknown kernel": {func() { p.sign(changed(t, entry, "kernel", "nope")) }, errdefs.ClassNotFound, `no kernel "nope"`},
		"too much data": {func() {
			p.sign(entry)
			w.s.Sources.Tree.Bytes = 1000
		}, errdefs.ClassExhausted, "more than 1000 bytes of data"},
		"another name": {func() {
			p.sign(pack(bundle.Manifest{Kind: bundle.Image, Name: "brazen", Version: "1"}))
		}, errdefs.ClassInvalidArgument, `should be "golden"`},
		"no filesystem": {func() {
			p.sign(pack(bundle.Manifest{Kind: bundle.Image, Name: "golden", Version: "1"}))
		}, errdefs.ClassInvalidArgument, "look at the disk"},
	} {
		t.Run(what, func(t *testing.T) {
			w.s.Sources.Tree.Bytes = 0
			p.newKey()
			p.write("golden.tar.zst", good)
			if err := os.RemoveAll(w.layout.Catalogs()); err != nil {
				t.Fatal(err)
			}
			if _, _, err := w.s.PruneCache(t.Context(), CachePrune{All: true}); err != nil {
				t.Fatal(err)
			}
			c.prepare()
			w.trusts(p)
			i, err := w.s.PullImage(t.Context(), Pull{From: "catalog:golden"}, nobody{})
			if err == nil || c.class != "" && errdefs.ClassOf(err) != c.class || !strings.Contains(err.Error(), c.says) || errdefs.HintOf(err) == "" {
				t.Errorf("%+v, %v, %s (%s)", i, err, errdefs.ClassOf(err), errdefs.HintOf(err))
			}
			if got := w.files(); got != "" {
				t.Errorf("left %s", got)
			}
			if l, err := w.s.ListImages(t.Context()); err != nil || len(l) > 0 {
				t.Errorf("images %v, %v", l, err)
			}
		})
	}
	p.newKey()
	p.write("golden.tar.zst", good) // whichever case was last
	p.sign(entry)
	w.trusts(p)
	w.s.Sources.Tree.Bytes = 0
	w.says(w.pull("catalog:golden"), "there")
}

// No catalog can take a name that leads to a registry, nor a registry one of a catalog's.
func TestNamesOfCatalogsAreTheirOwn(t *testing.T) {
	p, w := newPublisher(t), newWorld(t)
	w.registered("src", "of the catalog")
	entry, err := w.save("src", "bundle:"+p.dir+"/alpine.tar.zst:alpine:3", false)
	if err != nil {
		t.Fatal(err)
	}
	p.sign(entry)
	w.trusts(p)
	if _, err := w.s.PullImage(t.Context(), Pull{From: "alpine:3"}, nobody{}); err == nil || len(p.seen()) > 0 {
		t.Errorf("a plain name asks the catalogs: %v", err)
	}
	i := w.pull("catalog:alpine:3")
	w.says(i, "of the catalog")
	for _, name := range []string{"alpine:3", "docker.io/library/alpine:3"} {
		if got, err := w.s.GetImage(t.Context(), name); !errors.Is(err, errdefs.ErrNotFound) {
			t.Errorf("%s is %+v, %v", name, got, err)
		}
	}
	// Docker's image of the name "catalog" is written in full.
	r := ocitest.Serve(t)
	r.Put("library/catalog:3", small(t, "of the registry"))
	w.s.Sources.Mirrors = map[string][]string{"docker.io": {"http://" + r.Host}}
	hub := w.pull("docker.io/library/catalog:3")
	w.says(hub, "of the registry")
	if hub.Name != "docker.io/library/catalog:3" {
		t.Errorf("it is called %s", hub.Name)
	}
	if got, err := w.s.GetImage(t.Context(), "catalog:3"); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("catalog:3 is %+v, %v", got, err)
	}
	if _, err := w.s.GetImage(t.Context(), "catalog:alpin:3"); !strings.Contains(errdefs.HintOf(err), "catalog:alpine:3") {
		t.Errorf("mistyped: %v (%s)", err, errdefs.HintOf(err))
	}
	for what, err := range map[string]error{
		"tag":      second(w.s.Tag(t.Context(), "src", "catalog:mine", false)),
		"register": second(w.s.Register(t.Context(), Registration{Name: "catalog:mine", Rootfs: ext4Tree(t, "x")})),
		"as":       second(w.s.PullImage(t.Context(), Pull{From: "catalog:alpine:3", As: "catalog:mine"}, nobody{})),
		"include":  second(w.s.PullImage(t.Context(), Pull{From: "catalog:alpine:3", As: "x", Include: []string{"gcc"}}, nobody{})),
		"platform": second(w.s.PullImage(t.Context(), Pull{From: "catalog:alpine:3", Platform: "linux/arm64"}, nobody{})),
		"a path":   second(w.s.PullImage(t.Context(), Pull{From: "catalog:a/b"}, nobody{})),
		"nothing":  second(w.s.PullImage(t.Context(), Pull{From: "catalog:"}, nobody{})),
		"push":     second(w.s.Push(t.Context(), PushImage{Name: "catalog:alpine:3"}, nobody{})),
		"to":       second(w.save("src", "bundle:relative", false)),
		"no file":  second(w.save("src", "bundle:", false)),
		"name":     second(w.save("src", "bundle:/x:A/B", false)),
	} {
		if !errors.Is(err, errdefs.ErrInvalidArgument) || errdefs.HintOf(err) == "" {
			t.Errorf("%s: %v (%s)", what, err, errdefs.HintOf(err))
		}
	}
	dir := t.TempDir()
	ocitest.WriteLayout(t, dir, map[string]ocitest.Made{"1": small(t, "there")})
	from := w.pull("oci:" + dir + ":1")
	if _, err := w.save(from.Name, "bundle:"+dir+"/x", false); !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(errdefs.HintOf(err), ":NAME") {
		t.Errorf("without a name: %v (%s)", err, errdefs.HintOf(err))
	}
	row, err := w.db.ImageByName(t.Context(), from.Name)
	if err != nil {
		t.Fatal(err)
	}
	row.Config.Platform = "linux/s390x"
	if err := w.db.PutImage(t.Context(), row); err != nil {
		t.Fatal(err)
	}
	if _, err := w.save(from.Name, "bundle:"+dir+"/x:x", false); !errors.Is(err, errdefs.ErrUnsupported) {
		t.Errorf("for another platform: %v", err)
	}
	if all, err := os.ReadDir(dir); err != nil || slices.ContainsFunc(all, func(e os.DirEntry) bool { return strings.Contains(e.Name(), "x") && e.Name() != "index.json" }) {
		t.Errorf("left %v, %v", all, err)
	}
}

func second[T any](_ T, err error) error { return err }
