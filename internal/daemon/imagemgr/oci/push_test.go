package oci_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"banger/internal/daemon/imagemgr/blobs"
	"banger/internal/daemon/imagemgr/oci"
	"banger/internal/daemon/imagemgr/ocitest"
	"banger/internal/errdefs"
)

// uploadOf is an image as it is pushed.
func uploadOf(t testing.TB, m *made) oci.Upload {
	t.Helper()
	var manifest v1.Manifest
	if err := json.Unmarshal(m.manifest, &manifest); err != nil {
		t.Fatal(err)
	}
	u := oci.Upload{Manifest: m.manifest, MediaType: string(m.media)}
	for _, d := range append(manifest.Layers, manifest.Config) {
		data := m.blobs[blobs.Digest(d.Digest.String())]
		u.Blobs = append(u.Blobs, oci.Blob{
			Layer: oci.Layer{Digest: blobs.Digest(d.Digest.String()), Size: d.Size, MediaType: string(d.MediaType)},
			Open: func() (io.ReadSeekCloser, error) {
				return struct {
					io.ReadSeeker
					io.Closer
				}{bytes.NewReader(data), io.NopCloser(nil)}, nil
			},
		})
	}
	return u
}

func TestPushReal(t *testing.T) {
	d := ocitest.StartRegistry(t)
	m := makeImage(t, amd64, 80, 1_000_000, 10, 300_000)
	o := registryOptions(t, d)
	ref := d.Host + "/some/where:1"
	var last oci.Progress
	digest, err := oci.Push(t.Context(), parse(t, ref), uploadOf(t, m), o, func(p oci.Progress) { last = p })
	if err != nil || digest != blobs.Of(m.manifest) {
		t.Fatal(digest, err)
	}
	if last.AllDone != last.All || last.All < 1_300_000 {
		t.Errorf("%+v", last)
	}
	var judge inspect
	if err := json.Unmarshal(d.Skopeo(t, "inspect", "--creds=me:secret", "--cert-dir="+d.Certs, "docker://"+ref), &judge); err != nil {
		t.Fatal(err)
	}
	if judge.Digest != digest {
		t.Errorf("skopeo says %+v", judge)
	}
	d.Skopeo(t, "copy", "--src-creds=me:secret", "--src-cert-dir="+d.Certs, "docker://"+ref, "dir:"+t.TempDir())
	img := resolve(t, ref, o)
	if err := img.Fetch(t.Context(), o.Cache, 0, nil); err != nil {
		t.Fatal(err)
	}
	check(t, img, o.Cache, m)

	// Once more, elsewhere: nothing is sent.
	u := uploadOf(t, m)
	u.From = []string{"nothing/here", "some/where"}
	for i := range u.Blobs {
		u.Blobs[i].Open = func() (io.ReadSeekCloser, error) { return nil, errors.New("it is sent again") }
	}
	for _, to := range []string{"/some/where:2", "/some/where@" + string(digest), "/else/where:1"} {
		if _, err := oci.Push(t.Context(), parse(t, d.Host+to), u, o, nil); err != nil {
			t.Error(to, err)
		}
	}
	resolve(t, d.Host+"/else/where:1", registryOptions(t, d))

	o.Keychain = nil
	if _, err := oci.Push(t.Context(), parse(t, ref), uploadOf(t, m), o, nil); !errors.Is(err, errdefs.ErrPermission) || !strings.Contains(errdefs.HintOf(err), "log in") {
		t.Errorf("without credentials: %v", err)
	}
	if _, err := oci.Push(t.Context(), parse(t, d.Host+"/a/b@"+string(blobs.Of(nil))), uploadOf(t, m), registryOptions(t, d), nil); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("to another digest: %v", err)
	}
	if _, err := oci.Push(t.Context(), parse(t, "oci:/nowhere"), uploadOf(t, m), registryOptions(t, d), nil); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("to a directory: %v", err)
	}
}

// TestTokensReal pushes and pulls where tokens are asked for, as on Docker Hub.
func TestTokensReal(t *testing.T) {
	d, tokens := ocitest.StartTokenRegistry(t)
	m := makeImage(t, amd64, 108, 400_000, 10)
	o := registryOptions(t, d)
	ref := d.Host + "/some/where:1"
	if _, err := oci.Push(t.Context(), parse(t, ref), uploadOf(t, m), o, nil); err != nil {
		t.Fatal(err)
	}
	d.Skopeo(t, "copy", "--src-creds=me:secret", "--src-cert-dir="+d.Certs, "docker://"+ref, "dir:"+t.TempDir())
	u := uploadOf(t, m)
	u.From = []string{"some/where"}
	for i := range u.Blobs {
		u.Blobs[i].Open = func() (io.ReadSeekCloser, error) { return nil, errors.New("it is sent again") }
	}
	if _, err := oci.Push(t.Context(), parse(t, d.Host+"/else/where:1"), u, o, nil); err != nil {
		t.Error(err)
	}
	img := resolve(t, d.Host+"/else/where:1", o)
	if err := img.Fetch(t.Context(), o.Cache, 0, nil); err != nil {
		t.Fatal(err)
	}
	check(t, img, o.Cache, m)
	if asked := tokens.Asked(); !slices.Contains(asked, "repository:else/where:pull") || !slices.Contains(asked, "repository:some/where:push,pull") && !slices.Contains(asked, "repository:some/where:pull,push") {
		t.Errorf("asked for %q", asked)
	}
	for _, k := range []oci.Keychain{nil, keychain{d.Host: "somebody"}} {
		o.Keychain, o.Cache = k, openCache(t, t.TempDir())
		if _, err := oci.Push(t.Context(), parse(t, ref), uploadOf(t, m), o, nil); !errors.Is(err, errdefs.ErrPermission) || errdefs.HintOf(err) == "" {
			t.Errorf("push with other credentials: %v", err)
		}
		if _, err := oci.Resolve(t.Context(), parse(t, ref), o); !errors.Is(err, errdefs.ErrPermission) || errdefs.HintOf(err) == "" {
			t.Errorf("pull with other credentials: %v", err)
		}
	}
}

// shaky is a registry that knows how far uploads are, and breaks them off.
type shaky struct {
	t       testing.TB
	cuts    int  // so many more times
	forgets bool // what it has of them
	lies    bool // and says that it has more
	wrong   bool // it says of the manifest what is not true

	mu       sync.Mutex
	stored   map[string][]byte
	tags     map[string][]byte
	upload   []byte
	received int
	answered []string
}

func (s *shaky) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answered = append(s.answered, r.Method)
	_, name, _ := strings.Cut(r.URL.Path, "/v2/a/")
	switch {
	case r.URL.Path == "/v2/":
	case r.Method == http.MethodHead:
		if s.stored[strings.TrimPrefix(name, "blobs/")] == nil {
			w.WriteHeader(http.StatusNotFound)
		}
	case r.Method == http.MethodPost:
		s.upload = nil
		w.Header().Set("Location", "/v2/a/blobs/uploads/1?state=a%2Fb")
		w.WriteHeader(http.StatusAccepted)
	case r.Method == http.MethodGet && !s.forgets:
		if n := len(s.upload); n > 0 {
			if s.lies {
				n += 5
			}
			w.Header().Set("Range", fmt.Sprintf("0-%d", n-1))
		}
		w.Header().Set("Location", r.URL.String())
		w.WriteHeader(http.StatusNoContent)
	case r.Method == http.MethodGet:
		w.WriteHeader(http.StatusNotFound)
	case r.Method == http.MethodPatch:
		if at := len(s.upload); at > 0 && !strings.HasPrefix(r.Header.Get("Content-Range"), fmt.Sprintf("%d-", at)) {
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			return
		}
		body := io.Reader(r.Body)
		if s.cuts > 0 {
			body = io.LimitReader(body, r.ContentLength/2)
		}
		part, _ := io.ReadAll(body)
		s.upload = append(s.upload, part...)
		s.received += len(part)
		if s.cuts > 0 {
			s.cuts--
			panic(http.ErrAbortHandler)
		}
		w.Header().Set("Location", "http://"+r.Host+"/v2/a/blobs/uploads/1?state=a%2Fc")
		w.WriteHeader(http.StatusAccepted)
	case strings.HasPrefix(name, "blobs/") && r.Method == http.MethodPut:
		d := r.URL.Query().Get("digest")
		if !strings.Contains(r.URL.RawQuery, "state=a%2F") || string(blobs.Of(s.upload)) != d {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		s.stored[d] = s.upload
		w.WriteHeader(http.StatusCreated)
	case r.Method == http.MethodPut:
		raw, _ := io.ReadAll(r.Body)
		s.tags[strings.TrimPrefix(name, "manifests/")] = raw
		if s.wrong {
			w.Header().Set("Docker-Content-Digest", string(blobs.Of(nil)))
		}
		w.WriteHeader(http.StatusCreated)
	}
}

func startShaky(t testing.TB, s *shaky) string {
	s.t, s.stored, s.tags = t, map[string][]byte{}, map[string][]byte{}
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

func TestPushGoesOn(t *testing.T) {
	m := makeImage(t, amd64, 1, 8_000_000)
	for name, c := range map[string]struct {
		server *shaky
		most   int // bytes that are received
	}{
		"all at once":            {&shaky{}, 8_010_000},
		"broken off":             {&shaky{cuts: 5}, 8_010_000},
		"and remembered wrongly": {&shaky{cuts: 2, lies: true}, 16_010_000 + 20_000},
		"and forgotten":          {&shaky{cuts: 2, forgets: true}, 16_010_000 + 20_000},
	} {
		t.Run(name, func(t *testing.T) {
			s := c.server
			host := startShaky(t, s)
			o := oci.Options{Retry: oci.Retry{Attempts: 3, Pause: time.Millisecond}}
			digest, err := oci.Push(t.Context(), parse(t, host+"/a:tag"), uploadOf(t, m), o, func(oci.Progress) {})
			if err != nil {
				t.Fatalf("%v after %v", err, s.answered)
			}
			if blobs.Of(s.tags["tag"]) != digest {
				t.Error("the tag is not there")
			}
			for d, data := range m.blobs {
				if !bytes.Equal(s.stored[string(d)], data) {
					t.Errorf("%s is not there", d)
				}
			}
			if s.received > c.most {
				t.Errorf("%d bytes were sent, more than %d", s.received, c.most)
			}
		})
	}
}

func TestPushFails(t *testing.T) {
	m := makeImage(t, amd64, 1, 100_000)
	o := oci.Options{Retry: oci.Retry{Attempts: 2, Pause: time.Millisecond}}
	s := &shaky{cuts: 100, forgets: true}
	_, err := oci.Push(t.Context(), parse(t, startShaky(t, s)+"/a:tag"), uploadOf(t, m), o, nil)
	if !errors.Is(err, errdefs.ErrUnavailable) || !strings.Contains(errdefs.HintOf(err), "push again") || len(s.tags) > 0 {
		t.Errorf("broken off for ever: %v, %q", err, errdefs.HintOf(err))
	}
	s = &shaky{wrong: true}
	if _, err := oci.Push(t.Context(), parse(t, startShaky(t, s)+"/a:tag"), uploadOf(t, m), o, nil); !errors.Is(err, errdefs.ErrUnavailable) || !strings.Contains(err.Error(), "another manifest") {
		t.Errorf("a lie: %v", err)
	}
	u := uploadOf(t, m)
	broken := errors.New("the disk is broken")
	u.Blobs[0].Open = func() (io.ReadSeekCloser, error) { return nil, broken }
	s = &shaky{}
	if _, err := oci.Push(t.Context(), parse(t, startShaky(t, s)+"/a:tag"), u, o, nil); !errors.Is(err, broken) || errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("an error of this host: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	s = &shaky{}
	if _, err := oci.Push(ctx, parse(t, startShaky(t, s)+"/a:tag"), uploadOf(t, m), o, func(oci.Progress) { cancel() }); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.Method {
		case http.MethodHead:
			w.WriteHeader(http.StatusNotFound)
		case http.MethodPost:
			w.Header().Set("Location", "http://registry.invalid/upload?key=secret")
			w.WriteHeader(http.StatusAccepted)
		}
	}))
	t.Cleanup(elsewhere.Close)
	_, err = oci.Push(t.Context(), parse(t, strings.TrimPrefix(elsewhere.URL, "http://")+"/a:tag"), uploadOf(t, m), o, nil)
	if err == nil || !strings.Contains(err.Error(), "without encryption") || strings.Contains(err.Error(), "secret") {
		t.Errorf("sent elsewhere: %v", err)
	}
}
