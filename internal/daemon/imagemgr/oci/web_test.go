package oci_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"banger/internal/daemon/imagemgr/oci"
	"banger/internal/errdefs"
)

func TestWebGet(t *testing.T) {
	var asked atomic.Int32
	mux := http.NewServeMux()
	mux.HandleFunc("/good", func(w http.ResponseWriter, r *http.Request) {
		if asked.Add(1) < 3 {
			http.Error(w, "busy", http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write([]byte("good " + r.UserAgent()))
	})
	mux.HandleFunc("/moved", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "/gone?token=hidden", http.StatusFound)
	})
	mux.HandleFunc("/gone", http.NotFound)
	mux.HandleFunc("/mine", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) })
	mux.HandleFunc("/loop", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/loop", http.StatusFound) })
	mux.HandleFunc("/long", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 200)) })
	mux.HandleFunc("/cut", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100")
		_, _ = w.Write([]byte("cut"))
	})
	mux.HandleFunc("/silent", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	server := httptest.NewServer(mux)
	defer server.Close()
	web := oci.NewWeb("me", nil, oci.Retry{Attempts: 3, Pause: time.Millisecond, MaxPause: time.Millisecond, Silence: 300 * time.Millisecond})
	defer web.Close()

	if got, err := web.Get(t.Context(), server.URL+"/good", 100); err != nil || string(got) != "good me" || asked.Load() != 3 {
		t.Errorf("%q after %d requests, %v", got, asked.Load(), err)
	}
	for path, want := range map[string]error{
		"/gone?token=hidden": errdefs.ErrNotFound,
		"/moved":             errdefs.ErrNotFound,
		"/mine":              errdefs.ErrPermission,
		"/long":              errdefs.ErrExhausted,
		"/cut":               errdefs.ErrUnavailable,
		"/loop":              errdefs.ErrUnavailable,
		"/silent":            errdefs.ErrUnavailable,
	} {
		got, err := web.Get(t.Context(), server.URL+path, 100)
		if !errors.Is(err, want) || got != nil || strings.Contains(err.Error(), "hidden") || strings.Contains(err.Error(), "registry") {
			t.Errorf("%s: %d bytes, %v", path, len(got), err)
		}
	}
	at := strings.Replace(server.URL, "//", "//user:hidden@", 1)
	if _, err := web.Get(t.Context(), at+"/gone", 100); err == nil || strings.Contains(err.Error(), "hidden") {
		t.Error(err)
	}
	server.Close()
	if _, err := web.Get(t.Context(), server.URL+"/good", 100); !errors.Is(err, errdefs.ErrUnavailable) || errdefs.HintOf(err) == "" {
		t.Error(err)
	}
}
