package ocitest

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/types"

	"banger/internal/daemon/imagemgr/blobs"
)

// Server is a registry in this process, for what a real one never does: to wait in the
// middle of a layer, and to count.
type Server struct {
	Host string // HOST:PORT, of the loopback

	mu       sync.Mutex
	images   map[string]Made // by NAME:TAG
	requests []string
	bad      func(w http.ResponseWriter, r *http.Request) bool
}

// Serve starts one; it ends with the test.
func Serve(t testing.TB) *Server {
	t.Helper()
	s := &Server{images: map[string]Made{}}
	h := httptest.NewServer(s)
	t.Cleanup(h.Close)
	s.Host = strings.TrimPrefix(h.URL, "http://")
	return s
}

// Put makes NAME:TAG lead to an image.
func (s *Server) Put(name string, m Made) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.images[name] = m
}

// Misbehave has requests answered by bad, where that says that it did; nil: as usual.
func (s *Server) Misbehave(bad func(w http.ResponseWriter, r *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bad = bad
}

// Seen returns the requests since the last call, as METHOD PATH [RANGE], but those that
// only find out whether this is a registry.
func (s *Server) Seen() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := s.requests
	s.requests = nil
	return all
}

func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path, ok := strings.CutPrefix(r.URL.Path, "/v2/")
	if !ok {
		http.NotFound(w, r)
		return
	}
	if path == "" {
		return
	}
	s.mu.Lock()
	s.requests = append(s.requests, strings.TrimSpace(r.Method+" "+path+" "+r.Header.Get("Range")))
	bad := s.bad
	s.mu.Unlock()
	if bad != nil && bad(w, r) {
		return
	}
	data, media, ok := s.find(path)
	if !ok {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", media)
	w.Header().Set("Docker-Content-Digest", string(blobs.Of(data)))
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
}

// find returns a manifest by tag or digest, or a blob.
func (s *Server) find(path string) (data []byte, media string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, m := range s.images {
		repo, tag, _ := strings.Cut(name, ":")
		switch path {
		case repo + "/manifests/" + tag, repo + "/manifests/" + string(m.Digest()):
			return m.Manifest, string(types.OCIManifestSchema1), true
		}
		if d, found := strings.CutPrefix(path, repo+"/blobs/"); found && m.Blobs[blobs.Digest(d)] != nil {
			return m.Blobs[blobs.Digest(d)], "application/octet-stream", true
		}
	}
	return nil, "", false
}
