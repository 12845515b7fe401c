package oci_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"banger/internal/daemon/imagemgr/blobs"
	"banger/internal/daemon/imagemgr/oci"
	"banger/internal/errdefs"
)

var (
	amd64 = oci.Platform{OS: "linux", Architecture: "amd64"}
	arm64 = oci.Platform{OS: "linux", Architecture: "arm64"}
)

func TestPull(t *testing.T) {
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprint("tls ", secure), func(t *testing.T) {
			r := newRegistry(t, secure)
			o := r.options(t)
			m := makeImage(t, amd64, 1, 100_000, 0, 700_000, 100)
			r.put("1", m)
			ref := r.host() + "/x:1"
			img := resolve(t, ref, o)
			if img.Config.Config.Entrypoint[0] != "/bin/entry" || img.Top != img.Digest || img.Ref.String() != ref || img.Platform != amd64 {
				t.Errorf("%+v", img)
			}
			var last oci.Progress
			if err := img.Fetch(t.Context(), o.Cache, 2, func(p oci.Progress) {
				if p.AllDone < last.AllDone || p.All != img.Size() || p.Done > p.Layer.Size {
					t.Errorf("%+v after %+v", p, last)
				}
				last = p
			}); err != nil {
				t.Fatal(err)
			}
			if last.AllDone != last.All {
				t.Errorf("at the end %+v", last)
			}
			check(t, img, o.Cache, m)
			if got := r.seen(); len(got) != 6 {
				t.Errorf("requests: %q", got)
			}

			// The same tag again costs one request, as long as it has not moved; by digest
			// it costs none.
			again := resolve(t, ref, o)
			if err := again.Fetch(t.Context(), o.Cache, 0, nil); err != nil {
				t.Fatal(err)
			}
			check(t, again, o.Cache, m)
			if got := r.seen(); !slices.Equal(got, []string{"HEAD /v2/x/manifests/1"}) {
				t.Errorf("requests: %q", got)
			}
			pinned := resolve(t, r.host()+"/x@"+string(img.Digest), o)
			if err := pinned.Fetch(t.Context(), o.Cache, 0, nil); err != nil {
				t.Fatal(err)
			}
			if got := r.seen(); len(got) != 0 {
				t.Errorf("requests: %q", got)
			}
			m2 := makeImage(t, amd64, 2, 1000)
			r.put("1", m2)
			moved := resolve(t, ref, o)
			if err := moved.Fetch(t.Context(), o.Cache, 0, nil); err != nil {
				t.Fatal(err)
			}
			check(t, moved, o.Cache, m2)
			if got := r.seen(); len(got) != 4 || got[0] != "HEAD /v2/x/manifests/1" || got[1] != "GET /v2/x/manifests/1" {
				t.Errorf("requests: %q", got)
			}
			list, _, err := o.Cache.List(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, b := range list {
				if b.Digest == moved.Digest && !slices.Equal(b.Refs, []string{ref + " linux/amd64"}) {
					t.Errorf("%+v", b)
				}
			}
		})
	}
}

// TestADamagedCacheHeals by the next pull, whichever description the disk has damaged.
func TestADamagedCacheHeals(t *testing.T) {
	r := newRegistry(t, false)
	o := r.options(t)
	dir := t.TempDir()
	o.Cache = openCache(t, dir)
	m := makeImage(t, amd64, 5, 1000)
	r.put("1", m)
	for _, raw := range [][]byte{m.config, m.manifest} {
		resolve(t, r.host()+"/x:1", o)
		name := filepath.Join(dir, "blobs/sha256", blobs.Of(raw).Hex())
		if err := errors.Join(os.Chmod(name, 0o600), os.WriteFile(name, bytes.ToUpper(raw), 0o600)); err != nil {
			t.Fatal(err)
		}
		img := resolve(t, r.host()+"/x:1", o)
		if err := img.Fetch(t.Context(), o.Cache, 0, nil); err != nil {
			t.Fatal(err)
		}
		check(t, img, o.Cache, m)
	}
}

func TestOpenFetchesOnTheWay(t *testing.T) {
	r := newRegistry(t, false)
	o := r.options(t)
	m := makeImage(t, amd64, 3, 500_000, 300_000)
	r.put("1", m)
	img := resolve(t, r.host()+"/x:1", o)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := img.Fetch(t.Context(), o.Cache, 1, nil); err != nil {
			t.Error(err)
		}
	})
	for i, l := range img.Layers {
		for range 2 {
			wg.Go(func() {
				rc, err := img.Open(t.Context(), o.Cache, l)
				if err != nil {
					t.Error(err)
					return
				}
				defer rc.Close()
				if got, err := io.ReadAll(rc); err != nil || !bytes.Equal(got, m.layers[i]) {
					t.Errorf("layer %d: %d bytes, %v", i, len(got), err)
				}
			})
		}
	}
	wg.Wait()
	n := 0
	for _, s := range r.seen() {
		if strings.Contains(s, "/blobs/") {
			n++
		}
	}
	if n != 3 { // with the config
		t.Errorf("%d requests for blobs", n)
	}
}

// index makes an index of images.
func index(t *testing.T, r *registry, tag string, entries ...v1.Descriptor) {
	t.Helper()
	raw := toJSON(t, v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: entries})
	r.mu.Lock()
	defer r.mu.Unlock()
	r.putDoc(tag, raw, string(types.OCIImageIndex))
}

// entry describes an image or index for an index; p may be nil.
func entry(media types.MediaType, raw []byte, p *v1.Platform) v1.Descriptor {
	return v1.Descriptor{
		MediaType: media, Size: int64(len(raw)), Digest: v1.Hash{Algorithm: "sha256", Hex: blobs.Of(raw).Hex()}, Platform: p,
	}
}

func TestIndexes(t *testing.T) {
	r := newRegistry(t, false)
	all := map[string]*made{}
	var entries []v1.Descriptor
	for i, p := range []v1.Platform{
		{OS: "windows", Architecture: "amd64"}, {OS: "linux", Architecture: "amd64", Variant: "v3"}, {OS: "linux", Architecture: "amd64"},
		{OS: "linux", Architecture: "arm", Variant: "v6"}, {OS: "linux", Architecture: "arm", Variant: "v5"}, {OS: "linux", Architecture: "arm64", Variant: "v8"},
	} {
		m := makeImage(t, oci.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant}, uint64(20+i), 10)
		r.put("x", m)
		all[p.OS+"/"+p.Architecture+"/"+p.Variant] = m
		entries = append(entries, entry(m.media, m.manifest, &p))
	}
	statement := makeImage(t, oci.Platform{OS: "unknown", Architecture: "unknown"}, 30, 10)
	r.put("x", statement)
	entries = append([]v1.Descriptor{entry(statement.media, statement.manifest, &v1.Platform{OS: "unknown", Architecture: "unknown"})}, entries...)
	index(t, r, "flat", entries...)
	flat := r.docs["flat"]
	index(t, r, "nested", entry(types.OCIImageIndex, flat, nil))
	o := r.options(t)
	for want, p := range map[string]string{
		"linux/amd64/": "linux/amd64", "linux/amd64/v3": "linux/amd64/v3", "linux/arm/v6": "linux/arm/v7", "linux/arm/v5": "linux/arm/v5", "linux/arm64/v8": "linux/arm64",
	} {
		var err error
		if o.Platform, err = oci.ParsePlatform(p); err != nil {
			t.Fatal(err)
		}
		for _, tag := range []string{"flat", "nested"} {
			img := resolve(t, r.host()+"/x:"+tag, o)
			if img.Digest != blobs.Of(all[want].manifest) || img.Top != blobs.Of(r.docs[tag]) {
				t.Errorf("%s of %s: %s", p, tag, img.Digest)
			}
		}
		r.seen()
		resolve(t, r.host()+"/x:nested", o)
		if got := r.seen(); len(got) != 1 {
			t.Errorf("again: %q", got)
		}
	}
	for _, p := range []oci.Platform{{OS: "linux", Architecture: "s390x"}, {OS: "linux", Architecture: "amd64", Variant: "v2"}} {
		o.Platform = p
		_, err := oci.Resolve(t.Context(), parse(t, r.host()+"/x:nested"), o)
		if p.Architecture == "amd64" { // one for any amd64 does as well
			if err != nil {
				t.Error(err)
			}
			continue
		}
		if !errors.Is(err, errdefs.ErrNotFound) || !strings.Contains(err.Error(), "linux/arm64") || strings.Contains(err.Error(), "unknown") || errdefs.HintOf(err) == "" {
			t.Errorf("%v", err)
		}
	}

	// A manifest may leave it to others to say what it is.
	silent := makeImage(t, amd64, 31, 10).change(t, func(m *v1.Manifest) { m.MediaType = "" })
	silent.media = types.DockerManifestSchema2
	r.put("x", silent)
	index(t, r, "silent", entry(silent.media, silent.manifest, &v1.Platform{OS: "linux", Architecture: "amd64"}))
	o.Platform = amd64
	for range 2 { // the second time from the cache
		resolve(t, r.host()+"/x:silent", o)
	}

	// Indexes in indexes have an end, and so has their number.
	deep := flat
	for i := range 5 {
		index(t, r, fmt.Sprint("deep", i), entry(types.OCIImageIndex, deep, nil))
		deep = r.docs[fmt.Sprint("deep", i)]
	}
	o.Platform = amd64
	if _, err := oci.Resolve(t.Context(), parse(t, r.host()+"/x:deep4"), o); !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), "nested") {
		t.Errorf("%v", err)
	}
	o.Platform = oci.Platform{OS: "linux", Architecture: "s390x"}
	var wide []v1.Descriptor
	for i := range 40 {
		index(t, r, "leaf", entry(types.OCIImageIndex, []byte(fmt.Sprint(i)), &v1.Platform{OS: "linux", Architecture: "other"}))
		wide = append(wide, entry(types.OCIImageIndex, r.docs["leaf"], nil))
	}
	index(t, r, "wide", wide...)
	if _, err := oci.Resolve(t.Context(), parse(t, r.host()+"/x:wide"), o); !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), "more than 16") {
		t.Errorf("%v", err)
	}
	o.Platform = amd64
	index(t, r, "vague", entry(all["linux/amd64/"].media, all["linux/amd64/"].manifest, nil), entry(all["linux/arm64/v8"].media, all["linux/arm64/v8"].manifest, nil))
	if _, err := oci.Resolve(t.Context(), parse(t, r.host()+"/x:vague"), o); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("%v", err)
	}
}

func TestMirrors(t *testing.T) {
	origin, mirror, broken := newRegistry(t, false), newRegistry(t, false), newRegistry(t, false)
	m := makeImage(t, amd64, 40, 50_000, 60_000)
	origin.put("1", m)
	origin.put("2", makeImage(t, amd64, 41, 10))
	mirror.put("1", m)
	broken.behave(func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(http.StatusBadGateway); return true })
	o := origin.options(t)
	o.Keychain = keychain{origin.host(): "origin", mirror.host(): "mirror"}
	o.Mirrors = map[string][]string{origin.host(): {"http://" + broken.host(), "http://" + mirror.host() + "/cache/of"}}
	img := resolve(t, origin.host()+"/x:1", o)
	// The mirror loses a layer meanwhile, and has damaged another.
	mirror.mu.Lock()
	delete(mirror.blobs, img.Layers[0].Digest)
	mirror.blobs[img.Layers[1].Digest] = make([]byte, img.Layers[1].Size)
	mirror.mu.Unlock()
	if err := img.Fetch(t.Context(), o.Cache, 0, nil); err != nil {
		t.Fatal(err)
	}
	check(t, img, o.Cache, m)
	got := mirror.seen()
	if !slices.Contains(got, "GET /v2/cache/of/x/manifests/1") || !slices.Contains(got, "GET /v2/cache/of/x/blobs/"+string(img.Layers[0].Digest)) {
		t.Errorf("the mirror was asked for %q", got)
	}
	if got := origin.seen(); len(got) != 2 {
		t.Errorf("the origin was asked for %q", got)
	}
	resolve(t, origin.host()+"/x:2", o) // which the mirror does not have
	if _, err := oci.Resolve(t.Context(), parse(t, origin.host()+"/x:3"), o); !errors.Is(err, errdefs.ErrNotFound) || !strings.Contains(err.Error(), origin.host()) {
		t.Errorf("%v", err)
	}
	for _, bad := range []string{"ftp://x", "http://", "a/../b", "http://user@x", "x?y"} {
		o.Mirrors = map[string][]string{origin.host(): {bad}}
		if _, err := oci.Resolve(t.Context(), parse(t, origin.host()+"/x:1"), o); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("mirror %q: %v", bad, err)
		}
	}
}

// TestInsecure: without TLS only where that was asked for, or on this host; with a
// certificate that nobody knows only where that was asked for.
func TestInsecure(t *testing.T) {
	r := newRegistry(t, true)
	r.put("1", makeImage(t, amd64, 50, 10))
	o := r.options(t)
	o.Transport = nil
	if _, err := oci.Resolve(t.Context(), parse(t, r.host()+"/x:1"), o); !errors.Is(err, errdefs.ErrUnavailable) || !strings.Contains(errdefs.HintOf(err), "--insecure") {
		t.Errorf("%v", err)
	}
	o.Insecure = true
	resolve(t, r.host()+"/x:1", o)

	plain := newRegistry(t, false)
	plain.put("1", makeImage(t, amd64, 51, 10))
	o = plain.options(t)
	o.Transport = dialTo(plain.host()) // whatever the name
	for _, host := range []string{"registry.example.com", "10.1.2.3:5000"} {
		if _, err := oci.Resolve(t.Context(), parse(t, host+"/x:1"), o); !errors.Is(err, errdefs.ErrUnavailable) || !strings.Contains(errdefs.HintOf(err), "--insecure") {
			t.Errorf("%s: %v", host, err)
		}
	}
	if got := plain.seen(); len(got) != 0 {
		t.Errorf("asked without TLS: %q", got)
	}
	o.Insecure = true
	resolve(t, "registry.example.com/x:1", o)
}

// TestCancel: whoever is cancelled gets why, at once, and what was fetched stays.
func TestCancel(t *testing.T) {
	r := newRegistry(t, false)
	o := r.options(t)
	m := makeImage(t, amd64, 60, 900_000)
	r.put("1", m)
	img := resolve(t, r.host()+"/x:1", o)
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("stop")
	r.behave(func(w http.ResponseWriter, req *http.Request) bool {
		if !strings.Contains(req.URL.Path, "/blobs/") {
			return false
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(m.layers[0])))
		_, _ = w.Write(m.layers[0][:600_000])
		w.(http.Flusher).Flush()
		<-req.Context().Done() // says nothing more
		return true
	})
	err := img.Fetch(ctx, o.Cache, 0, func(p oci.Progress) {
		if p.Done >= 500_000 {
			cancel(stop)
		}
	})
	if !errors.Is(err, stop) {
		t.Errorf("%v", err)
	}
	r.behave(nil)
	r.seen()
	if err := img.Fetch(t.Context(), o.Cache, 0, nil); err != nil {
		t.Fatal(err)
	}
	if got := r.seen(); len(got) != 1 || !strings.Contains(got[0], "bytes=") {
		t.Errorf("went on with %q", got)
	}
	check(t, img, o.Cache, m)

	ctx, cancel = context.WithCancelCause(t.Context())
	r.behave(func(_ http.ResponseWriter, req *http.Request) bool {
		cancel(stop)
		<-req.Context().Done()
		return true
	})
	o.Cache = openCache(t, t.TempDir())
	if _, err := oci.Resolve(ctx, parse(t, r.host()+"/x:1"), o); !errors.Is(err, stop) {
		t.Errorf("%v", err)
	}
}

// keychain has credentials by host: the password is the user.
type keychain map[string]string

func (k keychain) Credentials(_ context.Context, host, _ string) (oci.Credentials, error) {
	if user := k[host]; user != "" {
		return oci.Credentials{Username: user, Password: user}, nil
	}
	return oci.Credentials{}, nil
}

var zeroPrune blobs.Prune // all of it

var quiet = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)

func tlsConfig(pool *x509.CertPool) *tls.Config { return &tls.Config{RootCAs: pool} }
