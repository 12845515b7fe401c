package oci_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"banger/internal/daemon/imagemgr/blobs"
	"banger/internal/daemon/imagemgr/oci"
	"banger/internal/errdefs"
)

// TestCredentialsStayAtHome: a blob that lies elsewhere is fetched from there without
// them, and a token comes from where the registry says.
func TestCredentialsStayAtHome(t *testing.T) {
	m := makeImage(t, amd64, 78, 10_000)
	for _, kind := range []string{"basic", "bearer"} {
		t.Run(kind, func(t *testing.T) {
			var elsewhere []string
			var mu sync.Mutex
			store := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				mu.Lock()
				elsewhere = append(elsewhere, req.Header.Get("Authorization")+req.Header.Get("Cookie")+req.Header.Get("Referer"))
				n := len(elsewhere)
				mu.Unlock()
				if n%2 == 1 { // it would like to have some
					w.Header().Set("WWW-Authenticate", `Basic realm="store"`)
					w.WriteHeader(http.StatusUnauthorized)
					return
				}
				_, _ = w.Write(m.layers[0])
			}))
			defer store.Close()
			r := newRegistry(t, true)
			r.put("1", m)
			o := r.options(t)
			o.Transport.TLSClientConfig.RootCAs.AddCert(store.Certificate())
			o.Keychain = keychain{r.host(): "me"}
			want := "Basic " + base64.StdEncoding.EncodeToString([]byte("me:me"))
			r.behave(func(w http.ResponseWriter, req *http.Request) bool {
				auth := req.Header.Get("Authorization")
				if req.URL.Path == "/token" {
					if auth != want || req.URL.Query().Get("scope") != "repository:x:pull" {
						w.WriteHeader(http.StatusForbidden)
						return true
					}
					_ = json.NewEncoder(w).Encode(map[string]string{"token": "ticket"})
					return true
				}
				if kind == "basic" && auth != want {
					w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
					w.WriteHeader(http.StatusUnauthorized)
					return true
				}
				if kind == "bearer" && auth != "Bearer ticket" {
					w.Header().Set("WWW-Authenticate", `Bearer realm="`+r.URL+`/token",service="x"`)
					w.WriteHeader(http.StatusUnauthorized)
					return true
				}
				if strings.HasSuffix(req.URL.Path, string(blobs.Of(m.layers[0]))) {
					http.Redirect(w, req, store.URL+"/blob?signed", http.StatusTemporaryRedirect)
					return true
				}
				return false
			})
			img := resolve(t, r.host()+"/x:1", o)
			err := img.Fetch(t.Context(), o.Cache, 0, nil)
			if kind == "basic" && !errors.Is(err, errdefs.ErrPermission) { // the store's 401 is final
				t.Errorf("%v", err)
			}
			if err := img.Fetch(t.Context(), o.Cache, 0, nil); err != nil {
				t.Fatal(err)
			}
			check(t, img, o.Cache, m)
			mu.Lock()
			defer mu.Unlock()
			if len(elsewhere) == 0 || strings.Join(elsewhere, "") != "" {
				t.Errorf("elsewhere they saw %q", elsewhere)
			}

			o.Keychain = keychain{"other.example.com": "me"}
			o.Cache = openCache(t, t.TempDir())
			if _, err := oci.Resolve(t.Context(), parse(t, r.host()+"/x:1"), o); !errors.Is(err, errdefs.ErrPermission) || !strings.Contains(errdefs.HintOf(err), "log in") {
				t.Errorf("without credentials: %v", err)
			}
			o.Keychain = helpless{}
			if _, err := oci.Resolve(t.Context(), parse(t, r.host()+"/x:1"), o); !errors.Is(err, errdefs.ErrPermission) || !strings.Contains(err.Error(), "no helper") {
				t.Errorf("with a helper that does not work: %v", err)
			}
		})
	}
	r := newRegistry(t, false)
	r.put("1", m)
	o := r.options(t)
	o.Keychain = helpless{}
	resolve(t, r.host()+"/x:1", o) // for which none are needed
}

// TestTokensExpire while layers are fetched, all at once. The next ones are asked for
// with the credentials that there are, whatever the server has said of others.
func TestTokensExpire(t *testing.T) {
	r := newRegistry(t, true)
	m := makeImage(t, amd64, 130, 1000, 2000, 3000, 4000, 5000)
	r.put("1", m)
	o := r.options(t)
	o.Keychain = keychain{r.host(): "me"}
	var tickets, expired atomic.Int32
	r.behave(func(w http.ResponseWriter, req *http.Request) bool {
		if req.URL.Path == "/token" {
			if user, _, _ := req.BasicAuth(); user != "me" {
				w.WriteHeader(http.StatusForbidden)
				return true
			}
			_ = json.NewEncoder(w).Encode(map[string]string{"token": fmt.Sprint(tickets.Add(1)), "refresh_token": "other"})
			return true
		}
		var ticket int32
		if _, err := fmt.Sscanf(req.Header.Get("Authorization"), "Bearer %d", &ticket); err == nil && ticket > expired.Load() {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Bearer realm="`+r.URL+`/token",service="x"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	img := resolve(t, r.host()+"/x:1", o)
	for range 3 {
		o.Cache = openCache(t, t.TempDir())
		expired.Store(tickets.Load())
		if err := img.Fetch(t.Context(), o.Cache, len(m.layers), nil); err != nil {
			t.Fatal(err)
		}
		for _, l := range img.Layers {
			if err := o.Cache.Verify(t.Context(), l.Digest); err != nil {
				t.Error(err)
			}
		}
	}
	if n := tickets.Load(); n != 4 {
		t.Errorf("%d tokens", n)
	}
}

// TestWordsOfOthers are few, and nothing that a terminal would act upon.
func TestWordsOfOthers(t *testing.T) {
	r := newRegistry(t, true)
	r.behave(func(w http.ResponseWriter, req *http.Request) bool {
		if req.URL.Path == "/token" {
			_, _ = io.WriteString(w, `{"x":"`+"\u009b31m"+strings.Repeat("x", 10_000)+`"}`)
			return true
		}
		w.Header().Set("WWW-Authenticate", `Bearer realm="`+r.URL+`/token",service="x"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	_, err := oci.Resolve(t.Context(), parse(t, r.host()+"/x:1"), r.options(t))
	if !errors.Is(err, errdefs.ErrUnavailable) || len(err.Error()) > 1000 || strings.ContainsAny(err.Error(), "\u009b\n") {
		t.Errorf("%d bytes: %.2000q", len(err.Error()), err)
	}
}

type helpless struct{}

func (helpless) Credentials(context.Context, string, string) (oci.Credentials, error) {
	return oci.Credentials{}, errors.New("no helper")
}
