package imagemgr

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"banger/internal/daemon/imagemgr/blobs"
	"banger/internal/daemon/imagemgr/oci"
	"banger/internal/daemon/imagemgr/ocitest"
	"banger/internal/errdefs"
	"banger/internal/model"
	"banger/internal/paths"
)

func (w *world) pull(from string) model.Image {
	w.t.Helper()
	i, err := w.s.PullImage(w.t.Context(), Pull{From: from}, nobody{})
	if err != nil {
		w.t.Fatal(err)
	}
	return i
}

// large is small with a layer of noise of so many bytes.
func large(t testing.TB, hello string, size int) ocitest.Made {
	t.Helper()
	noise := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(noise)
	return ocitest.Make(t, ocitest.Image{Config: author, Layers: [][]byte{
		ocitest.Layer(t, ocitest.Files{"noise": string(noise), "etc/hello": "old"}), ocitest.Layer(t, ocitest.Files{"etc/hello": hello}),
	}}, nil)
}

func TestPullUnchanged(t *testing.T) {
	w, r := newWorld(t), ocitest.Serve(t)
	m := small(t, "first")
	r.Put("a/b:latest", m)
	ref := r.Host + "/a/b"
	i := w.pull(ref)
	if i.Name != ref || i.Source != ref+":latest" {
		t.Errorf("%+v", i)
	}
	w.sound(i, m, "first")
	r.Seen()
	for _, name := range []string{ref, ref + ":latest"} {
		if again := w.pull(name); again.ID != i.ID {
			t.Errorf("%s is made again", name)
		}
		if got := r.Seen(); !slices.Equal(got, []string{"HEAD a/b/manifests/latest"}) {
			t.Errorf("looking whether it has changed takes %q", got)
		}
		if again := w.image(name); again.ID != i.ID {
			t.Errorf("%s is made again", name)
		}
		if got := r.Seen(); len(got) > 0 {
			t.Errorf("an image that is here takes %q", got)
		}
	}
	changed := small(t, "second")
	r.Put("a/b:latest", changed)
	again := w.pull(ref)
	if again.ID == i.ID {
		t.Fatal("the image has moved, and the old one is kept")
	}
	w.sound(again, changed, "second")
	if got, want := w.files(), "images/"+again.ID; got != want {
		t.Errorf("files %s, want %s", got, want)
	}
	if err := os.Remove(again.Path); err != nil {
		t.Fatal(err)
	}
	w.sound(w.image(ref), changed, "second")
	if err := w.s.RemoveImage(t.Context(), ref+":latest"); err != nil {
		t.Error(err)
	}
}

func TestPullsOfOneReferenceShare(t *testing.T) {
	w, r := newWorld(t), ocitest.Serve(t)
	m := large(t, "there", 300_000)
	r.Put("a:1", m)
	reached, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	r.Misbehave(func(_ http.ResponseWriter, req *http.Request) bool {
		if strings.HasSuffix(req.URL.Path, string(m.Layers[0])) {
			once.Do(func() { close(reached) })
			<-release
		}
		return false
	})
	var wg sync.WaitGroup
	ids := make([]string, 4)
	pull := func(n int, p model.Progress) {
		wg.Go(func() {
			i, err := w.s.PullImage(t.Context(), Pull{From: r.Host + "/a:1"}, p)
			if err != nil {
				t.Error(err)
			}
			ids[n] = i.ID
		})
	}
	pull(0, nobody{})
	<-reached
	for n := 1; n < len(ids); n++ {
		s := &stages{joined: make(chan struct{})}
		pull(n, s)
		<-s.joined
	}
	close(release)
	wg.Wait()
	for _, id := range ids {
		if id == "" || id != ids[0] {
			t.Errorf("images %q", ids)
		}
	}
	all := r.Seen()
	slices.Sort(all)
	if len(slices.Compact(slices.Clone(all))) != len(all) {
		t.Errorf("something is fetched twice: %q", all)
	}
}

// A pull that is cancelled in the middle of a layer leaves nothing but the beginning of
// that, which the next one goes on from, in a later daemon as well. Prunes keep off what
// is being pulled.
func TestCanceledPullIsGoneOnWith(t *testing.T) {
	w, r := newWorld(t), ocitest.Serve(t)
	m := large(t, "there", 3_000_000)
	r.Put("a:1", m)
	ctx, cancel := context.WithCancel(t.Context())
	half := m.Blobs[m.Layers[0]][:1_000_000]
	r.Misbehave(func(rw http.ResponseWriter, req *http.Request) bool {
		if !strings.HasSuffix(req.URL.Path, string(m.Layers[0])) {
			return false
		}
		rw.Header().Set("Content-Length", fmt.Sprint(len(m.Blobs[m.Layers[0]])))
		_, _ = rw.Write(half)
		rw.(http.Flusher).Flush()
		<-req.Context().Done()
		return true
	})
	pruned := false
	done := make(chan error)
	go func() {
		_, err := w.s.PullImage(ctx, Pull{From: r.Host + "/a:1"}, watcher(func(bytes int64) {
			if bytes < 900_000 || pruned {
				return
			}
			pruned = true
			if _, _, err := w.s.PruneCache(t.Context(), CachePrune{All: true}); err != nil {
				t.Error(err)
			}
			cancel()
		}))
		done <- err
	}()
	if err := <-done; errdefs.ClassOf(err) != errdefs.ClassCanceled || !pruned {
		t.Fatalf("it ended with %v; pruned: %v", err, pruned)
	}
	if got := w.files(); got != "" {
		t.Errorf("left %s", got)
	}
	r.Misbehave(nil)
	r.Seen()
	if err := w.s.Close(); err != nil {
		t.Fatal(err)
	}
	w.start(w.db)
	w.sound(w.pull(r.Host+"/a:1"), m, "there")
	resumed := slices.ContainsFunc(r.Seen(), func(s string) bool { return strings.Contains(s, "bytes=") })
	if !resumed {
		t.Error("it began anew")
	}
}

// watcher is told how many bytes have come.
type watcher func(bytes int64)

func (watcher) Stage(string)  {}
func (watcher) Detail(string) {}
func (w watcher) Count(done, total int64, _ string) {
	if total > 0 {
		w(done)
	}
}

// What is wrong with an image is refused, with its class, and nothing of it is left.
func TestBadImages(t *testing.T) {
	w, r := newWorld(t), ocitest.Serve(t)
	good := small(t, "there")
	r.Put("good:1", good)
	wrongDiff := ocitest.Make(t, ocitest.Image{Layers: [][]byte{ocitest.Layer(t, ocitest.Files{"a": "b"})}}, func(c *v1.ConfigFile, _ *v1.Manifest) {
		c.RootFS.DiffIDs[0].Hex = strings.Repeat("0", 64)
	})
	r.Put("diff:1", wrongDiff)
	r.Put("platform:1", ocitest.Make(t, ocitest.Image{}, func(c *v1.ConfigFile, _ *v1.Manifest) { c.Architecture = "s390x" }))
	r.Put("media:1", ocitest.Make(t, ocitest.Image{Layers: [][]byte{ocitest.Layer(t, nil)}}, func(_ *v1.ConfigFile, m *v1.Manifest) {
		m.Layers[0].MediaType = "application/x-unheard-of"
	}))
	escape := ocitest.Make(t, ocitest.Image{Layers: [][]byte{ocitest.Layer(t, ocitest.Files{"../../etc/passwd": "x"})}}, nil)
	r.Put("escape:1", escape)
	damaged := small(t, "damaged")
	damaged.Blobs[damaged.Layers[1]] = bytes.Repeat([]byte{1}, len(damaged.Blobs[damaged.Layers[1]]))
	r.Put("damaged:1", damaged)
	for name, want := range map[string]struct {
		class errdefs.Class
		says  string
	}{
		"diff:1":     {errdefs.ClassInvalidArgument, wrongDiff.Layers[0].Hex()},
		"platform:1": {errdefs.ClassNotFound, "s390x"},
		"media:1":    {errdefs.ClassUnsupported, "x-unheard-of"},
		"escape:1":   {errdefs.ClassInvalidArgument, "../../etc/passwd"},
		"damaged:1":  {errdefs.ClassUnavailable, damaged.Layers[1].Short()},
		"nothing:1":  {errdefs.ClassNotFound, "404"},
		"good:2":     {errdefs.ClassNotFound, "404"},
	} {
		_, err := w.s.PullImage(t.Context(), Pull{From: r.Host + "/" + name}, nobody{})
		if errdefs.ClassOf(err) != want.class || !strings.Contains(fmt.Sprint(err), want.says) || errdefs.HintOf(err) == "" {
			t.Errorf("%s: %v (%s; %s)", name, err, errdefs.ClassOf(err), errdefs.HintOf(err))
		}
	}
	w.s.Sources.Tree.Entries = 2
	if _, err := w.s.PullImage(t.Context(), Pull{From: r.Host + "/good:1"}, nobody{}); !errors.Is(err, errdefs.ErrExhausted) || !strings.Contains(errdefs.HintOf(err), "images.max_files") {
		t.Errorf("a limit: %v (%s)", err, errdefs.HintOf(err))
	}
	w.s.Sources.Tree.Entries = 0
	if got := w.files(); got != "" {
		t.Errorf("left %s", got)
	}
	if all, err := w.s.ListImages(t.Context()); err != nil || len(all) > 0 {
		t.Errorf("%v, %v", all, err)
	}
	for _, bad := range []Pull{
		{From: "oci:relative"}, {From: "tar:x.tar"}, {From: "a", Include: []string{"vim"}}, {From: "debian", Platform: "linux/arm64"},
		{From: r.Host + "/good:1", Platform: "x"}, {From: "https://a/b"}, {From: r.Host + "/good:1", As: "debian:mine"}, {From: r.Host + "/good:1", As: "a b"},
	} {
		if _, err := w.s.PullImage(t.Context(), bad, nobody{}); !errors.Is(err, errdefs.ErrInvalidArgument) || errdefs.HintOf(err) == "" {
			t.Errorf("%+v: %v (%s)", bad, err, errdefs.HintOf(err))
		}
	}
}

// A layer that the disk has damaged since it was fetched is fetched again.
func TestDamagedCache(t *testing.T) {
	w, r := newWorld(t), ocitest.Serve(t)
	m := small(t, "there")
	r.Put("a:1", m)
	w.pull(r.Host + "/a:1")
	blob := filepath.Join(w.layout.Cache(), "blobs/sha256", m.Layers[1].Hex())
	data := bytes.Clone(m.Blobs[m.Layers[1]])
	data[len(data)/2] ^= 0xff
	if err := errors.Join(os.Remove(blob), os.WriteFile(blob, data, 0o400)); err != nil {
		t.Fatal(err)
	}
	i, err := w.s.PullImage(t.Context(), Pull{From: r.Host + "/a:1", Force: true}, nobody{})
	if err != nil {
		t.Fatal(err)
	}
	w.sound(i, m, "there")
}

// Whenever a daemon dies while it pulls, the next one has the old image or the new one,
// and nothing else.
func TestCrashWhilePulling(t *testing.T) {
	r := ocitest.Serve(t)
	old, now := small(t, "old"), small(t, "new")
	for name, crash := range map[string]func(w *world, dir string, i model.Image) error{
		"the disk is half written": func(w *world, dir string, _ model.Image) error {
			return os.WriteFile(filepath.Join(dir, paths.RootfsFile), []byte("half"), 0o644)
		},
		"it is to be renamed": func(w *world, dir string, i model.Image) error {
			return errors.Join(os.Mkdir(filepath.Join(dir, "final"), 0o755), os.Link(i.Path, filepath.Join(dir, "final", paths.RootfsFile)))
		},
		"it is renamed and has no row": func(w *world, dir string, i model.Image) error {
			return errors.Join(os.Link(i.Path, filepath.Join(dir, paths.RootfsFile)), os.Rename(dir, w.layout.Image(model.NewID())))
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			r.Put("a:1", old)
			i := w.pull(r.Host + "/a:1")
			dir, _, err := w.s.stage(w.layout.Images())
			if err != nil {
				t.Fatal(err)
			}
			_ = w.s.Close()
			if err := crash(w, dir, i); err != nil {
				t.Fatal(err)
			}
			w.start(w.db)
			if got, want := w.files(), "images/"+i.ID; got != want {
				t.Errorf("files %s, want %s", got, want)
			}
			w.sound(w.image(r.Host+"/a:1"), old, "old")
			r.Put("a:1", now)
			w.sound(w.pull(r.Host+"/a:1"), now, "new")
		})
	}
	t.Run("the row is there and the old files still are", func(t *testing.T) {
		w := newWorld(t)
		r.Put("a:1", old)
		i := w.pull(r.Host + "/a:1")
		if err := w.db.DeleteImage(t.Context(), i.ID); err != nil { // as the new row did
			t.Fatal(err)
		}
		w.start(w.db)
		if got := w.files(); got != "" {
			t.Errorf("left %s", got)
		}
	})
}

func TestCacheLimit(t *testing.T) {
	w, r := newWorld(t), ocitest.Serve(t)
	m := large(t, "there", 300_000)
	r.Put("a:1", m)
	w.pull(r.Host + "/a:1")
	keep := int64(100_000)
	gone, _, err := w.s.PruneCache(t.Context(), CachePrune{Keep: &keep, DryRun: true})
	if err != nil || len(gone) == 0 {
		t.Fatalf("%v, %v", gone, err)
	}
	before, err := w.s.ListCache(t.Context())
	if err != nil || len(before.Blobs) != 4 {
		t.Fatalf("%v, %v", before, err)
	}
	again, _, err := w.s.PruneCache(t.Context(), CachePrune{Keep: &keep})
	if err != nil || len(again) != len(gone) {
		t.Errorf("%v go, and %v would: %v", again, gone, err)
	}
	if gone, _, err := w.s.PruneCache(t.Context(), CachePrune{}); err != nil || len(gone) > 0 {
		t.Errorf("what was just used goes: %v, %v", gone, err)
	}
	w.s.Sources.CacheBytes = 100_000
	if _, err := w.s.PullImage(t.Context(), Pull{From: r.Host + "/a:1", Force: true}, nobody{}); err != nil {
		t.Fatal(err)
	}
	after, err := w.s.ListCache(t.Context())
	var total int64
	for _, b := range after.Blobs {
		total += b.Size
	}
	if err != nil || total > 100_000 {
		t.Errorf("%d bytes stay: %v", total, err)
	}
	if _, _, err := w.s.PruneCache(t.Context(), CachePrune{All: true}); err != nil {
		t.Error(err)
	}
	if left, err := w.s.ListCache(t.Context()); err != nil || len(left.Blobs)+len(left.Parts) > 0 {
		t.Errorf("left %v, %v", left, err)
	}
	if _, _, err := w.s.PruneCache(t.Context(), CachePrune{All: true, Keep: &keep}); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("both: %v", err)
	}
}

func TestPullFromRealRegistry(t *testing.T) {
	d := ocitest.StartRegistry(t)
	m := small(t, "there")
	dir := t.TempDir()
	ocitest.WriteLayout(t, dir, map[string]ocitest.Made{"1": m})
	d.Push(t, "oci:"+dir+":1", "some/where:1")
	auth := filepath.Join(t.TempDir(), "auth.json")
	if err := os.WriteFile(auth, fmt.Appendf(nil, `{"auths":{%q:{"auth":%q}}}`, d.Host, base64.StdEncoding.EncodeToString([]byte("me:secret"))), 0o600); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t)
	w.s.Sources.Transport.TLSClientConfig = &tls.Config{RootCAs: d.Pool}
	ref := d.Host + "/some/where:1"
	if _, err := w.s.PullImage(t.Context(), Pull{From: ref}, nobody{}); !errors.Is(err, errdefs.ErrPermission) || !strings.Contains(errdefs.HintOf(err), "login") {
		t.Errorf("without a password: %v (%s)", err, errdefs.HintOf(err))
	}
	w.s.Sources.Keychain = oci.Files{Paths: []string{auth}}
	i := w.pull(ref)
	w.sound(i, m, "there")
	if again := w.pull(ref); again.ID != i.ID {
		t.Error("it was made again")
	}
	byDigest := w.pull(d.Host + "/some/where@" + string(m.Digest()))
	w.sound(byDigest, m, "there")
	if _, err := w.s.cache.Stat(blobs.Of(m.Manifest)); err != nil {
		t.Error(err)
	}
}

// A plain name is one on Docker Hub, if no image here has it.
func TestDockerHub(t *testing.T) {
	w, r := newWorld(t), ocitest.Serve(t)
	w.s.Sources.Transport.DialTLSContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if addr != "index.docker.io:443" {
			return nil, fmt.Errorf("dial %s: not here", addr)
		}
		return (&net.Dialer{}).DialContext(ctx, network, r.Host)
	}
	m := small(t, "there")
	r.Put("library/alpine:latest", m)
	r.Put("library/debian:latest", m)
	r.Put("me/mine:2", m)
	for from, want := range map[string]string{
		"alpine": "alpine", "alpine:latest": "alpine", "docker.io/library/alpine": "alpine", "index.docker.io/library/alpine:latest": "alpine",
		"library/debian": "docker.io/library/debian", "docker.io/library/debian:latest": "docker.io/library/debian", "me/mine:2": "me/mine:2",
		"debian": "debian",
	} {
		i := w.image(from)
		if i.Name != want {
			t.Errorf("%s is called %s, want %s", from, i.Name, want)
		}
		if got, err := w.s.GetImage(t.Context(), from); err != nil || got.ID != i.ID {
			t.Errorf("%s is not found: %v", from, err)
		}
	}
	if all, err := w.s.ListImages(t.Context()); err != nil || len(all) != 4 {
		t.Errorf("%+v, %v", all, err)
	}
	for name, hint := range map[string]string{"alpin": "did you mean alpine?", "something-else": "check name and tag", "alpine:3": "did you mean alpine?"} {
		if _, err := w.s.EnsureImage(t.Context(), name, nobody{}); !errors.Is(err, errdefs.ErrNotFound) || errdefs.HintOf(err) != hint {
			t.Errorf("%s: %v (%s)", name, err, errdefs.HintOf(err))
		}
	}
}
