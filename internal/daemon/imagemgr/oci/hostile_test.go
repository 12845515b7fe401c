package oci_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"

	"banger/internal/daemon/imagemgr/blobs"
	"banger/internal/daemon/imagemgr/oci"
	"banger/internal/errdefs"
)

// dialTo connects to one address, whatever was asked for.
func dialTo(addr string) *http.Transport {
	return &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	}}
}

// deafAddress is one of this host that refuses connections, and that nobody else gets.
func deafAddress(t testing.TB) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	at, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", at.(*unix.SockaddrInet4).Port)
}

// cut answers with what a client wants of data, but ends the connection after n bytes.
func cut(w http.ResponseWriter, req *http.Request, data []byte, n int, ranges bool) {
	from := 0
	if ranges {
		if _, err := fmt.Sscanf(req.Header.Get("Range"), "bytes=%d-", &from); err == nil {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(data)-1, len(data)))
		}
	}
	w.Header().Set("Content-Length", fmt.Sprint(len(data)-from))
	if from > 0 {
		w.WriteHeader(http.StatusPartialContent)
	}
	_, _ = w.Write(data[from:min(len(data), from+n)])
	if from+n < len(data) {
		panic(http.ErrAbortHandler)
	}
}

// TestCutConnections ends connections at random places. Every download goes on where
// the last one ended, as the ranges asked for show.
func TestCutConnections(t *testing.T) {
	m := makeImage(t, amd64, 70, 2_500_000)
	data := m.layers[0]
	for seed := range uint64(10) {
		r := newRegistry(t, seed%2 == 0)
		r.put("1", m)
		o := r.options(t)
		img := resolve(t, r.host()+"/x:1", o)
		rng := rand.New(rand.NewPCG(seed, 1))
		var mu sync.Mutex
		sent := 0
		r.behave(func(w http.ResponseWriter, req *http.Request) bool {
			if !strings.Contains(req.URL.Path, "/blobs/") {
				return false
			}
			n := 260<<10 + rng.IntN(500_000) // at least what counts as getting further
			mu.Lock()
			sent += n
			mu.Unlock()
			cut(w, req, data, n, true)
			return true
		})
		r.seen()
		if err := img.Fetch(t.Context(), o.Cache, 0, nil); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		check(t, img, o.Cache, m)
		got := r.seen()
		last := -1
		for i, s := range got {
			from := 0
			if _, rest, ok := strings.Cut(s, "bytes="); ok {
				if _, err := fmt.Sscanf(rest, "%d-", &from); err != nil {
					t.Error(s)
				}
			} else if i > 0 {
				t.Errorf("seed %d: request %d begins anew", seed, i)
			}
			if from <= last {
				t.Errorf("seed %d: %d after %d", seed, from, last)
			}
			last = from
		}
		if len(got) < 3 || last == 0 {
			t.Errorf("seed %d: requests %q", seed, got)
		}
	}
}

// TestNoRanges: a server that cannot go on begins anew, and is given up in the end.
func TestNoRanges(t *testing.T) {
	m := makeImage(t, amd64, 71, 900_000)
	data := m.layers[0]
	for name, bad := range map[string]func(w http.ResponseWriter, req *http.Request, try int){
		"ignores them": func(w http.ResponseWriter, req *http.Request, try int) { cut(w, req, data, 300_000*try, false) },
		"sends another": func(w http.ResponseWriter, req *http.Request, try int) {
			if req.Header.Get("Range") != "" {
				w.Header().Set("Content-Range", fmt.Sprintf("bytes 0-%d/%d", len(data)-1, len(data)))
				w.WriteHeader(http.StatusPartialContent)
				_, _ = w.Write(data)
				return
			}
			cut(w, req, data, 300_000*try, false)
		},
		"refuses them": func(w http.ResponseWriter, req *http.Request, try int) {
			if req.Header.Get("Range") != "" {
				w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
				return
			}
			cut(w, req, data, 500_000*try, false)
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRegistry(t, false)
			r.put("1", m)
			o := r.options(t)
			img := resolve(t, r.host()+"/x:1", o)
			var tries atomic.Int32
			r.behave(func(w http.ResponseWriter, req *http.Request) bool {
				if !strings.Contains(req.URL.Path, "/blobs/") {
					return false
				}
				bad(w, req, int(tries.Add(1)))
				return true
			})
			if err := img.Fetch(t.Context(), o.Cache, 0, nil); err != nil {
				t.Fatal(err)
			}
			check(t, img, o.Cache, m)
		})
	}
	r := newRegistry(t, false)
	r.put("1", m)
	o := r.options(t)
	img := resolve(t, r.host()+"/x:1", o)
	r.behave(func(w http.ResponseWriter, req *http.Request) bool { cut(w, req, data, 500_000, false); return true })
	r.seen()
	err := img.Fetch(t.Context(), o.Cache, 0, nil)
	if !errors.Is(err, errdefs.ErrUnavailable) || errdefs.HintOf(err) == "" {
		t.Errorf("%v", err)
	}
	if n := len(r.seen()); n < 3 || n > 6 {
		t.Errorf("%d requests", n)
	}
}

// TestBadAnswers: what is wrong with a layer is said, nothing of it is cached, and it is
// asked for again only where that can help.
func TestBadAnswers(t *testing.T) {
	m := makeImage(t, amd64, 72, 200_000)
	data := m.layers[0]
	nobody := deafAddress(t)
	status := func(code int, header ...string) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, _ *http.Request) {
			for i := 0; i < len(header); i += 2 {
				w.Header().Set(header[i], header[i+1])
			}
			w.WriteHeader(code)
		}
	}
	for name, c := range map[string]struct {
		answer func(http.ResponseWriter, *http.Request)
		class  errdefs.Class
		cause  error
		tries  int
	}{
		"wrong content": {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, len(data))) }, errdefs.ClassUnavailable, blobs.ErrDigest, 1},
		"longer": {func(w http.ResponseWriter, _ *http.Request) {
			w.(http.Flusher).Flush() // without a length
			_, _ = w.Write(data)
			_, _ = w.Write(make([]byte, 1<<20))
		}, errdefs.ClassUnavailable, blobs.ErrSize, 1},
		"longer, as it says": {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(append(data, 1)) }, errdefs.ClassUnavailable, blobs.ErrSize, 1},
		"shorter, as it says": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			_, _ = w.Write(data[:1000])
		}, errdefs.ClassUnavailable, blobs.ErrSize, 1},
		"shorter": {func(w http.ResponseWriter, req *http.Request) {
			if req.Header.Get("Range") == "" {
				w.(http.Flusher).Flush()
				_, _ = w.Write(data[:1000])
				return
			}
			w.Header().Set("Content-Range", fmt.Sprintf("bytes 1000-%d/%d", len(data)-1, len(data)))
			w.WriteHeader(http.StatusPartialContent)
			w.(http.Flusher).Flush()
		}, errdefs.ClassUnavailable, nil, 4},
		"not there":       {status(404), errdefs.ClassNotFound, nil, 1},
		"not for you":     {status(403), errdefs.ClassPermission, nil, 1},
		"not for anybody": {status(401), errdefs.ClassPermission, nil, 1},
		"a teapot":        {status(418), errdefs.ClassUnavailable, nil, 1},
		"broken":          {status(500), errdefs.ClassUnavailable, nil, 4},
		"away":            {status(503, "Retry-After", "0"), errdefs.ClassUnavailable, nil, 4},
		"too often":       {status(429), errdefs.ClassUnavailable, nil, 4},
		"come next year":  {status(429, "Retry-After", "31536000"), errdefs.ClassUnavailable, nil, 1},
		"headers":         {status(200, "X", strings.Repeat("x", 1<<20)), errdefs.ClassUnavailable, nil, 4},
		"in circles": {func(w http.ResponseWriter, req *http.Request) {
			http.Redirect(w, req, req.URL.Path, http.StatusTemporaryRedirect)
		}, errdefs.ClassUnavailable, nil, 10},
		"to the unencrypted": {func(w http.ResponseWriter, req *http.Request) {
			http.Redirect(w, req, "http://"+req.Host+"/elsewhere", http.StatusTemporaryRedirect)
		}, errdefs.ClassUnavailable, nil, 1},
		"to nobody, with a key": {func(w http.ResponseWriter, req *http.Request) {
			http.Redirect(w, req, "https://"+nobody+"/blob?key=secret", http.StatusTemporaryRedirect)
		}, errdefs.ClassUnavailable, nil, 4},
		"to a file": {func(w http.ResponseWriter, req *http.Request) {
			http.Redirect(w, req, "file:///etc/passwd", http.StatusTemporaryRedirect)
		}, errdefs.ClassUnavailable, nil, 1},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRegistry(t, true)
			r.put("1", m)
			o := r.options(t)
			img := resolve(t, r.host()+"/x:1", o)
			r.seen()
			r.behave(func(w http.ResponseWriter, req *http.Request) bool {
				if req.URL.Path == "/v2/" {
					return false
				}
				c.answer(w, req)
				return true
			})
			err := img.Fetch(t.Context(), o.Cache, 0, nil)
			if errdefs.ClassOf(err) != c.class || errdefs.HintOf(err) == "" || c.cause != nil && !errors.Is(err, c.cause) {
				t.Errorf("%v (%s), hint %q", err, errdefs.ClassOf(err), errdefs.HintOf(err))
			}
			if strings.Contains(err.Error(), "secret") {
				t.Errorf("%v", err)
			}
			if n := len(r.seen()); n != c.tries {
				t.Errorf("%d requests, want %d: %v", n, c.tries, err)
			}
			if _, err := o.Cache.Stat(img.Layers[0].Digest); err == nil {
				t.Error("it is in the cache")
			}
			r.behave(nil)
			if err := img.Fetch(t.Context(), o.Cache, 0, nil); err != nil {
				t.Errorf("from a registry that works again: %v", err)
			}
			check(t, img, o.Cache, m)
		})
	}
}

// TestADamagedPartIsFetchedAnew, once.
func TestADamagedPartIsFetchedAnew(t *testing.T) {
	r := newRegistry(t, false)
	m := makeImage(t, amd64, 73, 500_000)
	r.put("1", m)
	o := r.options(t)
	dir := t.TempDir()
	o.Cache = openCache(t, dir)
	img := resolve(t, r.host()+"/x:1", o)
	part := slices.Clone(m.layers[0][:300_000])
	part[1000]++
	writeFile(t, dir+"/parts/"+img.Layers[0].Digest.Hex(), part)
	r.seen()
	if err := img.Fetch(t.Context(), o.Cache, 0, nil); err != nil {
		t.Fatal(err)
	}
	if got := r.seen(); len(got) != 2 || !strings.HasSuffix(got[0], "bytes=300000-") || strings.Contains(got[1], "bytes") {
		t.Errorf("%q", got)
	}
	check(t, img, o.Cache, m)
}

func TestRetryAfter(t *testing.T) {
	r := newRegistry(t, false)
	m := makeImage(t, amd64, 74, 1000)
	r.put("1", m)
	o := r.options(t)
	o.Retry.MaxPause = time.Second
	var at []time.Time
	r.behave(func(w http.ResponseWriter, req *http.Request) bool {
		if strings.Contains(req.URL.Path, "/manifests/") {
			if at = append(at, time.Now()); len(at) == 1 {
				w.Header().Set("Retry-After", "1")
				w.WriteHeader(http.StatusTooManyRequests)
				return true
			}
		}
		return false
	})
	resolve(t, r.host()+"/x:1", o)
	if len(at) != 2 || at[1].Sub(at[0]) < time.Second {
		t.Errorf("asked at %v", at)
	}
}

// TestBadDocuments: descriptions of images that no image has.
func TestBadDocuments(t *testing.T) {
	good := func() *made { return makeImage(t, amd64, 75, 100, 200) }
	with := func(do func(*v1.Manifest)) *made { return good().change(t, do) }
	raw := func(media, text string) *made {
		return &made{media: types.MediaType(media), manifest: []byte(text)}
	}
	config := func(text string) *made {
		m := good()
		return m.change(t, func(man *v1.Manifest) { man.Config = m.add(types.OCIConfigJSON, []byte(text)) })
	}
	both := good()
	both.manifest = slices.Concat(both.manifest[:len(both.manifest)-1], []byte(`,"manifests":[]}`))
	for name, c := range map[string]struct {
		m     *made
		class errdefs.Class
		says  string
	}{
		"schema 1":            {raw(string(types.DockerManifestSchema1Signed), `{"schemaVersion":1,"fsLayers":[]}`), errdefs.ClassUnsupported, "schema 1"},
		"schema 1, disguised": {raw(string(types.DockerManifestSchema2), `{"schemaVersion":1,"config":{}}`), errdefs.ClassUnsupported, "schema 1"},
		"unknown kind":        {raw("application/vnd.cncf.helm.v9", `{"schemaVersion":2}`), errdefs.ClassUnsupported, "vnd.cncf.helm.v9"},
		"no kind":             {raw("text/plain", `{"schemaVersion":2}`), errdefs.ClassUnsupported, "no image"},
		"two kinds":           {raw(string(types.OCIImageIndex), `{"schemaVersion":2,"mediaType":"`+string(types.OCIManifestSchema1)+`","manifests":[]}`), errdefs.ClassInvalidArgument, "declared"},
		"image and index":     {both, errdefs.ClassInvalidArgument, "at once"},
		"HTML":                {raw(string(types.OCIManifestSchema1), `<html>`), errdefs.ClassInvalidArgument, "read manifest"},
		"deep":                {raw(string(types.OCIManifestSchema1), strings.Repeat(`{"a":`, 100_000)), errdefs.ClassInvalidArgument, "nested"},
		"a bomb":              {raw(string(types.OCIManifestSchema1), `{"a":"`+strings.Repeat("a", 5<<20)+`"}`), errdefs.ClassInvalidArgument, "4194304"},
		"a crowd":             {raw(string(types.OCIImageIndex), `{"schemaVersion":2,"manifests":[`+strings.Repeat("{},", 210_000)+`{}]}`), errdefs.ClassInvalidArgument, "200000 values"},
		"a long history":      {config(`{"history":[` + strings.Repeat("{},", 210_000) + `{}]}`), errdefs.ClassInvalidArgument, "200000 values"},
		"empty index":         {raw(string(types.OCIImageIndex), `{"schemaVersion":2,"manifests":[]}`), errdefs.ClassNotFound, "no image for linux/amd64"},
		"an artifact":         {with(func(m *v1.Manifest) { m.Config.MediaType, m.ArtifactType = types.OCIEmptyJSON, "application/x-thing" }), errdefs.ClassUnsupported, "application/x-thing"},
		"a chart":             {with(func(m *v1.Manifest) { m.Config.MediaType = "application/vnd.cncf.helm.config.v1+json" }), errdefs.ClassUnsupported, "helm.config"},
		"an encrypted layer":  {with(func(m *v1.Manifest) { m.Layers[1].MediaType += "+encrypted" }), errdefs.ClassUnsupported, "+encrypted"},
		"no layer's kind":     {with(func(m *v1.Manifest) { m.Layers[1].MediaType = "" }), errdefs.ClassUnsupported, "layer 2"},
		"a negative size":     {with(func(m *v1.Manifest) { m.Layers[0].Size = -1 }), errdefs.ClassInvalidArgument, "size of -1"},
		"a giant layer":       {with(func(m *v1.Manifest) { m.Layers[0].Size = 1 << 50 }), errdefs.ClassInvalidArgument, "size of 1125899906842624"},
		"giants":              {with(func(m *v1.Manifest) { m.Layers[0].Size, m.Layers[1].Size = 100<<30, 100<<30 }), errdefs.ClassInvalidArgument, "more than"},
		"an overflow":         {with(func(m *v1.Manifest) { m.Layers[0].Size, m.Layers[1].Size = 1<<63-1, 1<<63-1 }), errdefs.ClassInvalidArgument, "size"},
		"two sizes":           {with(func(m *v1.Manifest) { m.Layers[1] = m.Layers[0]; m.Layers[1].Size++ }), errdefs.ClassInvalidArgument, "layer 2"},
		"many layers":         {with(func(m *v1.Manifest) { m.Layers = slices.Repeat(m.Layers[:1], 1001) }), errdefs.ClassInvalidArgument, "1001 layers"},
		"sha512":              {with(func(m *v1.Manifest) { m.Layers[0].Digest = v1.Hash{Algorithm: "sha512", Hex: strings.Repeat("0", 128)} }), errdefs.ClassUnsupported, "sha256"},
		"a long digest":       {raw(string(types.OCIManifestSchema1), `{"schemaVersion":2,"config":{"digest":"`+strings.Repeat("x", 1<<20)+`:00"}}`), errdefs.ClassInvalidArgument, "read manifest"},
		"no config":           {raw(string(types.OCIManifestSchema1), `{"schemaVersion":2,"layers":[]}`), errdefs.ClassUnsupported, "artifact"},
		"a giant config":      {with(func(m *v1.Manifest) { m.Config.Size = 9 << 20 }), errdefs.ClassInvalidArgument, "config"},
		"a config that lies":  {with(func(m *v1.Manifest) { m.Config.Size++ }), errdefs.ClassUnavailable, "config"},
		"no config there":     {with(func(m *v1.Manifest) { m.Config.Digest.Hex = strings.Repeat("0", 64) }), errdefs.ClassNotFound, "config"},
		"a loud platform":     {config(`{"os":"lin\u001b[31mux","architecture":"` + strings.Repeat("x", 10_000) + `","rootfs":{"diff_ids":["` + zeros + `","` + zeros + `"]}}`), errdefs.ClassNotFound, "no image for linux/amd64"},
		"loud platforms": {raw(string(types.OCIImageIndex), `{"schemaVersion":2,"manifests":[{"mediaType":"`+string(types.OCIManifestSchema1)+
			`","size":2,"digest":"`+zeros+`","platform":{"os":"lin\u001b[31mux","architecture":"arm"}}]}`), errdefs.ClassNotFound, "no image for linux/amd64"},
		"fewer diff IDs":   {config(`{"os":"linux","architecture":"amd64","rootfs":{"diff_ids":[]}}`), errdefs.ClassInvalidArgument, "2 layers"},
		"bad diff IDs":     {config(`{"os":"linux","architecture":"amd64","rootfs":{"diff_ids":["sha256:../x","y"]}}`), errdefs.ClassInvalidArgument, "read config"},
		"another platform": {config(`{"os":"linux","architecture":"arm64","rootfs":{"diff_ids":["` + zeros + `","` + zeros + `"]}}`), errdefs.ClassNotFound, "linux/arm64"},
		"windows":          {config(`{"os":"windows","architecture":"amd64","rootfs":{"diff_ids":["` + zeros + `","` + zeros + `"]}}`), errdefs.ClassNotFound, "windows/amd64"},
		"no config's JSON": {config(`[]`), errdefs.ClassInvalidArgument, "read config"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRegistry(t, false)
			r.put("1", c.m)
			_, err := oci.Resolve(t.Context(), parse(t, r.host()+"/x:1"), r.options(t))
			if errdefs.ClassOf(err) != c.class || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v (%s)", err, errdefs.ClassOf(err))
			}
			if err != nil && len(err.Error()) > 1000 {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
			if err != nil && strings.Contains(err.Error(), "\x1b") {
				t.Errorf("%q", err)
			}
		})
	}
	// Foreign layers are taken where the registry has them; nobody else is asked.
	r := newRegistry(t, false)
	m := with(func(m *v1.Manifest) {
		m.Layers[0].MediaType, m.Layers[0].URLs = types.OCIRestrictedLayer, []string{r.URL + "/secret"}
	})
	r.put("1", m)
	o := r.options(t)
	img := resolve(t, r.host()+"/x:1", o)
	if err := img.Fetch(t.Context(), o.Cache, 0, nil); err != nil {
		t.Fatal(err)
	}
	check(t, img, o.Cache, m)
	delete(r.blobs, img.Layers[0].Digest)
	o.Cache = openCache(t, t.TempDir())
	if err := img.Fetch(t.Context(), o.Cache, 0, nil); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("%v", err)
	}
	for _, s := range r.seen() {
		if strings.Contains(s, "secret") {
			t.Error("the image said whom to ask")
		}
	}
}

// TestDocumentsAreChecked against the digest they were asked for by.
func TestDocumentsAreChecked(t *testing.T) {
	r := newRegistry(t, false)
	m, other := makeImage(t, amd64, 76, 10), makeImage(t, amd64, 77, 10)
	r.put("1", m)
	d := string(blobs.Of(m.manifest))
	r.mu.Lock()
	r.docs[d] = other.manifest
	r.mu.Unlock()
	if _, err := oci.Resolve(t.Context(), parse(t, r.host()+"/x@"+d), r.options(t)); !errors.Is(err, blobs.ErrDigest) {
		t.Errorf("%v", err)
	}
	r.behave(func(w http.ResponseWriter, req *http.Request) bool {
		if !strings.Contains(req.URL.Path, "/manifests/") {
			return false
		}
		w.Header().Set("Docker-Content-Digest", d)
		w.Header().Set("Content-Type", string(other.media))
		_, _ = w.Write(other.manifest)
		return true
	})
	if _, err := oci.Resolve(t.Context(), parse(t, r.host()+"/x:1"), r.options(t)); !errors.Is(err, blobs.ErrDigest) {
		t.Errorf("%v", err)
	}
	// What a terminal would understand of a registry's words does not get there.
	r.behave(nil)
	_, err := oci.Resolve(t.Context(), parse(t, r.host()+"/x:2"), r.options(t))
	if !errors.Is(err, errdefs.ErrNotFound) || strings.Contains(err.Error(), "\x1b") || !strings.Contains(err.Error(), "such thing") {
		t.Errorf("%q", err)
	}
	// An endless answer ends.
	r.behave(func(w http.ResponseWriter, _ *http.Request) bool {
		for {
			if _, err := w.Write(make([]byte, 1<<16)); err != nil {
				return true
			}
		}
	})
	if _, err := oci.Resolve(t.Context(), parse(t, r.host()+"/x:2"), r.options(t)); err == nil {
		t.Error("resolved")
	}
}

// TestSilence: a server that falls silent is not waited for.
func TestSilence(t *testing.T) {
	r := newRegistry(t, false)
	m := makeImage(t, amd64, 79, 600_000)
	r.put("1", m)
	o := r.options(t)
	o.Retry.Silence = 300 * time.Millisecond
	o.Retry.Attempts = 100 // a busy host is silent, too
	img := resolve(t, r.host()+"/x:1", o)
	var tries atomic.Int32
	r.behave(func(w http.ResponseWriter, req *http.Request) bool {
		if tries.Add(1) > 1 {
			return false
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(m.layers[0])))
		_, _ = w.Write(m.layers[0][:100_000])
		w.(http.Flusher).Flush()
		<-req.Context().Done()
		return true
	})
	if err := img.Fetch(t.Context(), o.Cache, 0, nil); err != nil {
		t.Fatal(err)
	}
	check(t, img, o.Cache, m)
	rc, err := img.Open(t.Context(), o.Cache, img.Layers[0])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, rc); err != nil {
		t.Error(err)
	}
	_ = rc.Close()
}
