package oci_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"banger/internal/daemon/imagemgr/blobs"
	"banger/internal/daemon/imagemgr/oci"
)

// made is an image in memory.
type made struct {
	blobs    map[blobs.Digest][]byte
	manifest []byte
	media    types.MediaType
	config   []byte
	layers   [][]byte
}

func (m *made) add(media types.MediaType, data []byte) v1.Descriptor {
	d := blobs.Of(data)
	if m.blobs == nil {
		m.blobs = map[blobs.Digest][]byte{}
	}
	m.blobs[d] = data
	return v1.Descriptor{MediaType: media, Size: int64(len(data)), Digest: v1.Hash{Algorithm: "sha256", Hex: d.Hex()}}
}

func noise(seed uint64, n int) []byte {
	data := make([]byte, n)
	key := [32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)}
	_, _ = rand.NewChaCha8(key).Read(data)
	return data
}

// layerTar is a tar of one file of noise.
func layerTar(t testing.TB, seed uint64, size int) []byte {
	t.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	if err := tw.WriteHeader(&tar.Header{Name: fmt.Sprintf("file-%d", seed), Mode: 0o644, Size: int64(size), ModTime: time.Unix(1e9, 0)}); err != nil {
		t.Fatal(err)
	}
	if _, err := tw.Write(noise(seed, size)); err != nil {
		t.Fatal(err)
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func gz(t testing.TB, data []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	z := gzip.NewWriter(&buf)
	if _, err := z.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func toJSON(t testing.TB, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// makeImage makes an image for a platform with a layer of each size.
func makeImage(t testing.TB, p oci.Platform, seed uint64, sizes ...int) *made {
	t.Helper()
	m := &made{media: types.OCIManifestSchema1}
	man := v1.Manifest{SchemaVersion: 2, MediaType: m.media}
	c := v1.ConfigFile{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant, RootFS: v1.RootFS{Type: "layers"}}
	c.Config.Env = []string{"PATH=/bin"}
	c.Config.Entrypoint = []string{"/bin/entry"}
	for i, size := range sizes {
		plain := layerTar(t, seed*1000+uint64(i), size)
		data := gz(t, plain)
		m.layers = append(m.layers, data)
		man.Layers = append(man.Layers, m.add(types.OCILayer, data))
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, v1.Hash{Algorithm: "sha256", Hex: blobs.Of(plain).Hex()})
	}
	m.config = toJSON(t, c)
	man.Config = m.add(types.OCIConfigJSON, m.config)
	m.manifest = toJSON(t, man)
	return m
}

// change makes the manifest anew.
func (m *made) change(t testing.TB, do func(*v1.Manifest)) *made {
	t.Helper()
	var man v1.Manifest
	if err := json.Unmarshal(m.manifest, &man); err != nil {
		t.Fatal(err)
	}
	do(&man)
	m.manifest = toJSON(t, man)
	return m
}

// registry is a registry that can be told to behave badly.
type registry struct {
	*httptest.Server
	t testing.TB

	mu       sync.Mutex
	blobs    map[blobs.Digest][]byte
	docs     map[string][]byte // manifests by tag and by digest
	media    map[string]string
	requests []string                                          // METHOD PATH [RANGE]
	auth     []string                                          // Authorization headers of all of them
	bad      func(w http.ResponseWriter, r *http.Request) bool // answers, and says that it did
}

func newRegistry(t testing.TB, tls bool) *registry {
	t.Helper()
	r := &registry{t: t, blobs: map[blobs.Digest][]byte{}, docs: map[string][]byte{}, media: map[string]string{}}
	r.Server = httptest.NewUnstartedServer(r)
	r.Config.ErrorLog = quiet
	if tls {
		r.StartTLS()
	} else {
		r.Start()
	}
	t.Cleanup(r.Close)
	return r
}

func (r *registry) host() string {
	return strings.TrimPrefix(strings.TrimPrefix(r.URL, "https://"), "http://")
}

func (r *registry) put(tag string, m *made) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for d, data := range m.blobs {
		r.blobs[d] = data
	}
	r.putDoc(tag, m.manifest, string(m.media))
}

func (r *registry) putDoc(tag string, raw []byte, media string) {
	for _, name := range []string{tag, string(blobs.Of(raw))} {
		r.docs[name], r.media[name] = raw, media
	}
}

func (r *registry) behave(bad func(w http.ResponseWriter, r *http.Request) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.bad = bad
}

// seen returns what was requested since the last call, without the pings.
func (r *registry) seen() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := slices.DeleteFunc(r.requests, func(s string) bool { return s == "GET /v2/" })
	r.requests = nil
	return all
}

func (r *registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	line := req.Method + " " + req.URL.Path
	if s := req.Header.Get("Range"); s != "" {
		line += " " + s
	}
	r.requests = append(r.requests, line)
	r.auth = append(r.auth, req.Header.Get("Authorization"))
	bad := r.bad
	r.mu.Unlock()
	if bad != nil && bad(w, req) {
		return
	}
	r.serve(w, req)
}

func (r *registry) serve(w http.ResponseWriter, req *http.Request) {
	at, name := filepath.Split(req.URL.Path)
	r.mu.Lock()
	doc, isDoc := r.docs[name]
	media := r.media[name]
	data, isBlob := r.blobs[blobs.Digest(name)]
	r.mu.Unlock()
	switch {
	case req.URL.Path == "/v2/":
	case strings.HasSuffix(at, "/manifests/") && isDoc:
		w.Header().Set("Content-Type", media)
		w.Header().Set("Docker-Content-Digest", string(blobs.Of(doc)))
		w.Header().Set("Content-Length", fmt.Sprint(len(doc)))
		if req.Method != http.MethodHead {
			_, _ = w.Write(doc)
		}
	case strings.HasSuffix(at, "/blobs/") && isBlob:
		http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(data))
	default:
		w.WriteHeader(http.StatusNotFound)
		_, _ = io.WriteString(w, `{"errors":[{"code":"NAME_UNKNOWN","message":"no \u001b[31msuch thing"}]}`)
	}
}

// options are those for a test: impatient, and trusting the registry's certificate.
func (r *registry) options(t testing.TB) oci.Options {
	t.Helper()
	o := oci.Options{
		Cache: openCache(t, t.TempDir()), Platform: oci.Platform{OS: "linux", Architecture: "amd64"},
		Retry: oci.Retry{Attempts: 4, Pause: time.Millisecond, MaxPause: 5 * time.Millisecond, Silence: 20 * time.Second},
	}
	if r != nil && r.TLS != nil {
		pool := x509.NewCertPool()
		pool.AddCert(r.Certificate())
		o.Transport = &http.Transport{TLSClientConfig: tlsConfig(pool)}
	}
	return o
}

func openCache(t testing.TB, dir string) *blobs.Cache {
	t.Helper()
	c, err := blobs.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func parse(t testing.TB, s string) oci.Reference {
	t.Helper()
	r, err := oci.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func resolve(t testing.TB, ref string, o oci.Options) *oci.Image {
	t.Helper()
	img, err := oci.Resolve(t.Context(), parse(t, ref), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = img.Close() })
	return img
}

// check compares what was resolved and fetched with what was made.
func check(t testing.TB, img *oci.Image, c *blobs.Cache, m *made) {
	t.Helper()
	if img.Digest != blobs.Of(m.manifest) || !bytes.Equal(img.RawConfig, m.config) || len(img.Layers) != len(m.layers) {
		t.Fatalf("%+v", img)
	}
	for i, l := range img.Layers {
		got, err := c.ReadAll(l.Digest, l.Size)
		if err != nil || !bytes.Equal(got, m.layers[i]) {
			t.Errorf("layer %d: %d bytes, %v", i, len(got), err)
		}
	}
	nothingWrong(t, c)
}

// nothingWrong reads every blob of a cache.
func nothingWrong(t testing.TB, c *blobs.Cache) {
	t.Helper()
	list, _, err := c.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range list {
		if err := c.Verify(t.Context(), b.Digest); err != nil {
			t.Error(err)
		}
	}
}

func writeFile(t testing.TB, name string, data []byte) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func newContext() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), 2*time.Minute)
}

func gzipReader(data []byte) (io.Reader, error) { return gzip.NewReader(bytes.NewReader(data)) }
