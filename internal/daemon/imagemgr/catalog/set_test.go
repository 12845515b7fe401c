package catalog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"aead.dev/minisign"

	"banger/internal/daemon/imagemgr/blobs"
	"banger/internal/daemon/imagemgr/bundle"
	"banger/internal/daemon/imagemgr/oci"
	"banger/internal/errdefs"
)

type nobody struct{}

func (nobody) Stage(string)               {}
func (nobody) Detail(string)              {}
func (nobody) Count(int64, int64, string) {}

// publisher signs catalogs and serves them.
type publisher struct {
	t       *testing.T
	public  minisign.PublicKey
	private minisign.PrivateKey
	url     string

	mu    sync.Mutex
	files map[string][]byte
	asked atomic.Int32
	cut   atomic.Int32 // answers that still break off half way
}

func newPublisher(t *testing.T) *publisher {
	t.Helper()
	public, private, err := minisign.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	p := &publisher{t: t, public: public, private: private, files: map[string][]byte{}}
	server := httptest.NewServer(p)
	t.Cleanup(server.Close)
	p.url = server.URL + "/list.json"
	return p
}

func (p *publisher) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.asked.Add(1)
	p.mu.Lock()
	data, ok := p.files[r.URL.Path]
	p.mu.Unlock()
	if !ok {
		http.NotFound(w, r)
		return
	}
	if p.cut.Load() > 0 && strings.HasSuffix(r.URL.Path, ".zst") && p.cut.Add(-1) >= 0 {
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		_, _ = w.Write(data[:len(data)/2])
		return
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
}

func (p *publisher) put(path string, data []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.files[path] = data
}

func (p *publisher) drop(path string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.files, path)
}

func (p *publisher) sign(data []byte, at int64) []byte {
	return minisign.SignWithComments(p.private, data, fmt.Sprintf("timestamp:%d\tfile:list.json", at), "x")
}

func (p *publisher) publish(data []byte, at int64) {
	p.put("/list.json", data)
	p.put("/list.json.minisig", p.sign(data, at))
}

func (p *publisher) source() Source { return Source{URL: p.url, Key: p.public.String()} }

func newSet(t *testing.T, dir string, sources ...Source) *Set {
	t.Helper()
	cache, err := blobs.Open(filepath.Join(dir, "blobs"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cache.Close() })
	s, err := New(Options{
		Sources: sources, Dir: filepath.Join(dir, "lists"), Blobs: cache, UserAgent: "test", Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		Retry: oci.Retry{Pause: time.Millisecond, MaxPause: 2 * time.Millisecond, Silence: 10 * time.Second},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// kernel is a bundle, and the entry for it.
func kernel(t *testing.T, name, content, url string) (data []byte, e map[string]any) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, bundle.Vmlinux), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	m, err := bundle.Pack(t.Context(), &out, bundle.Manifest{Kind: bundle.Kernel, Name: name, Version: "6.1"}, dir)
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes(), map[string]any{
		"kind": "kernel", "name": name, "arch": "amd64", "digest": string(blobs.Of(out.Bytes())), "size": out.Len(),
		"unpacked": m.Unpacked(), "url": url, "description": "a kernel",
	}
}

func unpack(t *testing.T, s *Set, f Found) (string, error) {
	t.Helper()
	r, err := s.Open(t.Context(), f, nobody{})
	if err != nil {
		return "", err
	}
	defer r.Close()
	dir := t.TempDir()
	if _, err := bundle.Unpack(t.Context(), r, dir, f.Want(), nobody{}); err != nil {
		return "", err
	}
	got, err := os.ReadFile(filepath.Join(dir, bundle.Vmlinux))
	return string(got), err
}

func TestFindAndFetch(t *testing.T) {
	p := newPublisher(t)
	data, e := kernel(t, "small", strings.Repeat("a kernel ", 100_000), "k/small.tar.zst")
	arm := map[string]any{}
	for k, v := range e {
		arm[k] = v
	}
	arm["arch"], arm["name"] = "arm64", "tiny"
	p.put("/k/small.tar.zst", data)
	p.publish(listOf(e, arm), 1000)
	p.cut.Store(2) // two connections that are lost on the way cost nothing but time
	s := newSet(t, t.TempDir(), p.source())
	f, err := s.Find(t.Context(), bundle.Kernel, "small")
	if err != nil {
		t.Fatal(err)
	}
	if f.Catalog != p.url || f.Key != fmt.Sprintf("%016X", p.public.ID()) || !IsOrigin(f.Origin()) || !strings.Contains(f.Origin(), f.Key) {
		t.Errorf("%+v", f)
	}
	if got, err := unpack(t, s, f); err != nil || got != strings.Repeat("a kernel ", 100_000) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	asked := p.asked.Load()
	if _, err := unpack(t, s, f); err != nil || p.asked.Load() != asked {
		t.Errorf("a bundle that is there is asked for again: %v", err)
	}
	for name, hint := range map[string]string{"smal": "did you mean small?", "tiny": "", "other-thing": ""} {
		_, err := s.Find(t.Context(), bundle.Kernel, name)
		if !errors.Is(err, errdefs.ErrNotFound) || errdefs.HintOf(err) != hint {
			t.Errorf("%s: %v (%s)", name, err, errdefs.HintOf(err))
		}
	}
	if _, err := s.Find(t.Context(), bundle.Image, "small"); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("a kernel for an image: %v", err)
	}
	if got := s.Names(bundle.Kernel); len(got) != 1 || got[0] != "small" {
		t.Errorf("names %q", got)
	}
}

// Of two catalogs that have a name, the first counts; of others each.
func TestTheFirstCatalogCounts(t *testing.T) {
	one, two := newPublisher(t), newPublisher(t)
	_, a := kernel(t, "small", "one", "a")
	_, b := kernel(t, "small", "two", "b")
	_, c := kernel(t, "large", "three", "c")
	one.publish(listOf(a), 1000)
	two.publish(listOf(b, c), 1000)
	s := newSet(t, t.TempDir(), one.source(), two.source())
	for name, catalog := range map[string]string{"small": one.url, "large": two.url} {
		if f, err := s.Find(t.Context(), bundle.Kernel, name); err != nil || f.Catalog != catalog {
			t.Errorf("%s: %+v, %v", name, f, err)
		}
	}
	// One that was never seen is not passed over: the name could be in it.
	one.drop("/list.json")
	fresh := newSet(t, t.TempDir(), one.source(), two.source())
	if f, err := fresh.Find(t.Context(), bundle.Kernel, "small"); !errors.Is(err, errdefs.ErrNotFound) || !strings.Contains(err.Error(), one.url) {
		t.Errorf("%+v, %v", f, err)
	}
}

func TestOffline(t *testing.T) {
	p := newPublisher(t)
	_, e := kernel(t, "small", "one", "a")
	p.publish(listOf(e), 1000)
	dir := t.TempDir()
	if _, err := newSet(t, dir, p.source()).Find(t.Context(), bundle.Kernel, "small"); err != nil {
		t.Fatal(err)
	}
	p.drop("/list.json")
	p.drop("/list.json.minisig")
	s := newSet(t, dir, p.source())
	if _, err := s.Find(t.Context(), bundle.Kernel, "small"); err != nil {
		t.Errorf("offline: %v", err)
	}
	// What is kept is believed no more than what is fetched.
	kept, err := filepath.Glob(filepath.Join(dir, "lists", "*"))
	if err != nil || len(kept) != 1 {
		t.Fatalf("%q, %v", kept, err)
	}
	raw, err := os.ReadFile(kept[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(kept[0], bytes.Replace(raw, []byte("small"), []byte("smell"), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"small", "smell"} {
		if f, err := s.Find(t.Context(), bundle.Kernel, name); err == nil {
			t.Errorf("a damaged list was believed: %+v", f)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := newSet(t, t.TempDir(), p.source()).Find(ctx, bundle.Kernel, "small"); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestSignatures(t *testing.T) {
	_, e := kernel(t, "small", "one", "a")
	_, old := kernel(t, "small", "vulnerable", "b")
	dir := t.TempDir()
	p, other := newPublisher(t), newPublisher(t)
	s := newSet(t, dir, p.source())
	find := func() error {
		_, err := s.Find(t.Context(), bundle.Kernel, "small")
		return err
	}
	p.publish(listOf(e), 2000)
	if err := find(); err != nil {
		t.Fatal(err)
	}
	for name, publish := range map[string]func(){
		"changed after signing": func() { p.put("/list.json", listOf(old)) },
		"somebody else's": func() {
			p.publish(listOf(old), 3000)
			p.put("/list.json.minisig", other.sign(listOf(old), 3000))
		},
		"no signature": func() { p.put("/list.json.minisig", []byte("trust me")) },
		"no time": func() {
			p.publish(listOf(old), 3000)
			p.put("/list.json.minisig", minisign.SignWithComments(p.private, listOf(old), "version 3", "x"))
		},
		"an old one again": func() { p.publish(listOf(old), 1999) },
	} {
		publish()
		if err := find(); !errors.Is(err, errdefs.ErrPermission) || !strings.Contains(err.Error(), p.url) {
			t.Errorf("%s: %v", name, err)
		}
		p.publish(listOf(e), 2000)
		if err := find(); err != nil {
			t.Errorf("after %s: %v", name, err)
		}
	}
	// A restart forgets none of this, and the same time again is no old one.
	s = newSet(t, dir, p.source())
	p.publish(listOf(old), 1000)
	if err := find(); !errors.Is(err, errdefs.ErrPermission) {
		t.Errorf("an old one after a restart: %v", err)
	}
	p.publish(listOf(e), 2001)
	if err := find(); err != nil {
		t.Error(err)
	}
}

func TestNothingIsParsedUnverified(t *testing.T) {
	p := newPublisher(t)
	p.put("/list.json", []byte(`{"format":77}`))
	p.put("/list.json.minisig", p.sign([]byte("other"), 1000))
	_, err := newSet(t, t.TempDir(), p.source()).Find(t.Context(), bundle.Kernel, "small")
	if !errors.Is(err, errdefs.ErrPermission) || strings.Contains(err.Error(), "format") {
		t.Error(err)
	}
}

func TestLongAnswers(t *testing.T) {
	p := newPublisher(t)
	p.publish(bytes.Repeat([]byte(" "), maxCatalog+1), 1000)
	if _, err := newSet(t, t.TempDir(), p.source()).Find(t.Context(), bundle.Kernel, "small"); !errors.Is(err, errdefs.ErrExhausted) {
		t.Error(err)
	}
}

// A server that sends something else than the catalog says is not believed.
func TestWrongBundle(t *testing.T) {
	p := newPublisher(t)
	data, e := kernel(t, "small", strings.Repeat("good", 1000), "k.zst")
	evil, _ := kernel(t, "small", strings.Repeat("evil", 1000), "k.zst")
	p.publish(listOf(e), 1000)
	s := newSet(t, t.TempDir(), p.source())
	f, err := s.Find(t.Context(), bundle.Kernel, "small")
	if err != nil {
		t.Fatal(err)
	}
	same := bytes.Clone(data)
	same[len(same)-1] ^= 1
	for name, wrong := range map[string][]byte{"other": evil, "same size": same, "longer": append(bytes.Clone(data), 0), "shorter": data[:len(data)-1], "empty": nil} {
		p.put("/k.zst", wrong)
		if _, err := unpack(t, s, f); errdefs.ClassOf(err) != errdefs.ClassUnavailable {
			t.Errorf("%s: %v", name, err)
		}
	}
	p.drop("/k.zst")
	if _, err := unpack(t, s, f); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("gone: %v", err)
	}
	p.put("/k.zst", data)
	if _, err := unpack(t, s, f); err != nil {
		t.Error(err)
	}
}

func TestCatalogInFiles(t *testing.T) {
	p := newPublisher(t)
	dir := t.TempDir()
	put := func(name string, data []byte) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700), os.WriteFile(filepath.Join(dir, name), data, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	data, e := kernel(t, "small", "kernel", "sub dir/k.zst")
	e["url"] = "sub%20dir/k.zst"
	put("list", listOf(e))
	put("list.minisig", p.sign(listOf(e), 1000))
	put("sub dir/k.zst", data)
	for _, at := range []string{filepath.Join(dir, "list"), "file://" + filepath.Join(dir, "list")} {
		s := newSet(t, t.TempDir(), Source{URL: at, Key: p.public.String()})
		f, err := s.Find(t.Context(), bundle.Kernel, "small")
		if err != nil {
			t.Fatal(err)
		}
		put("sub dir/k.zst", data)
		if got, err := unpack(t, s, f); err != nil || got != "kernel" {
			t.Errorf("%q, %v", got, err)
		}
		put("sub dir/k.zst", append(bytes.Clone(data), 'x'))
		if r, err := s.Open(t.Context(), f, nobody{}); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%v, %v", r, err)
		}
	}
}

func TestSources(t *testing.T) {
	p := newPublisher(t)
	key := p.public.String()
	for _, bad := range []Source{
		{URL: "", Key: key}, {URL: "list.json", Key: key}, {URL: "ftp://x/y", Key: key}, {URL: "file://host/x", Key: key},
		{URL: "http://", Key: key}, {URL: p.url, Key: ""}, {URL: p.url, Key: "RWxyz"}, {URL: p.url + "#x", Key: key},
	} {
		if _, err := New(Options{Sources: []Source{bad}}); !errors.Is(err, errdefs.ErrInvalidArgument) || errdefs.HintOf(err) == "" {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	// What may be a password or a key is in no label.
	s, err := New(Options{Sources: []Source{{URL: "https://me:secret@example.org/list?token=abc", Key: key}}})
	if err != nil {
		t.Fatal(err)
	}
	if got := s.sources[0].label(); strings.Contains(got, "secret") || strings.Contains(got, "abc") {
		t.Error(got)
	}
}
