package fcapi_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/daemon/fcproc/fcapi"
)

// serve answers on a unix socket as handler does.
func serve(t *testing.T, handler http.HandlerFunc) *fcapi.Client {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "api"))
	if err != nil {
		t.Fatal(err)
	}
	s := &httptest.Server{Listener: l, Config: &http.Server{Handler: handler}}
	s.Start()
	t.Cleanup(s.Close)
	c := fcapi.New(func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", l.Addr().String())
	})
	t.Cleanup(c.Close)
	return c
}

func TestCalls(t *testing.T) {
	var got []string
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got = append(got, r.Method+" "+r.URL.Path+" "+string(b))
		if r.Header.Get("Accept-Encoding") != "" {
			t.Error("asks for compression")
		}
		if r.Method == http.MethodGet {
			_, _ = io.WriteString(w, `{"state":"Running","vmm_version":"1.16.1","id":"x","more":[1]}`)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
	ctx := t.Context()
	var i fcapi.Instance
	for _, err := range []error{
		c.Put(ctx, fcapi.PathMachine, fcapi.Machine{CPUs: 2, MemoryMiB: 512}),
		c.Put(ctx, fcapi.PathDrives+"disk0", fcapi.Drive{ID: "disk0", Path: "a b", Cache: fcapi.Writeback,
			Limiter: &fcapi.RateLimiter{Ops: &fcapi.TokenBucket{Size: 5, RefillMillis: 1000}}}),
		c.Put(ctx, fcapi.PathEntropy, struct{}{}),
		c.Patch(ctx, fcapi.PathVM, fcapi.VM{State: fcapi.StatePaused}),
		c.Get(ctx, fcapi.PathInstance, &i),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	want := []string{
		`PUT /machine-config {"vcpu_count":2,"mem_size_mib":512,"smt":false}`,
		`PUT /drives/disk0 {"drive_id":"disk0","path_on_host":"a b","is_root_device":false,"is_read_only":false,"cache_type":"Writeback","rate_limiter":{"ops":{"size":5,"refill_time":1000}}}`,
		`PUT /entropy {}`,
		`PATCH /vm {"state":"Paused"}`,
		`GET / `,
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if i != (fcapi.Instance{State: "Running", Version: "1.16.1"}) {
		t.Errorf("got %+v", i)
	}
}

func TestFaults(t *testing.T) {
	for name, c := range map[string]struct{ body, want string }{
		"said":    {`{"fault_message":"The kernel file cannot be opened"}`, "PUT /boot-source: The kernel file cannot be opened"},
		"no json": {"what?\n", "PUT /boot-source: what?"},
		"empty":   {"", "PUT /boot-source: refused with status 400"},
	} {
		t.Run(name, func(t *testing.T) {
			client := serve(t, func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(http.StatusBadRequest)
				_, _ = io.WriteString(w, c.body)
			})
			err := client.Put(t.Context(), fcapi.PathBoot, fcapi.Boot{})
			var f *fcapi.Fault
			if !errors.As(err, &f) || f.Status != 400 || err.Error() != c.want {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestHostileAnswers(t *testing.T) {
	for name, handler := range map[string]http.HandlerFunc{
		"endless": func(w http.ResponseWriter, _ *http.Request) {
			for range 2 << 20 / 1024 {
				if _, err := w.Write(make([]byte, 1024)); err != nil {
					return
				}
			}
		},
		"no json": func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") },
	} {
		t.Run(name, func(t *testing.T) {
			var i fcapi.Instance
			if err := serve(t, handler).Get(t.Context(), fcapi.PathInstance, &i); err == nil {
				t.Errorf("got %+v", i)
			}
		})
	}
	// One that never answers is left with the context.
	release := make(chan struct{})
	c := serve(t, func(http.ResponseWriter, *http.Request) { <-release })
	defer close(release)
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(io.ErrNoProgress)
	if err := c.Put(ctx, fcapi.PathEntropy, struct{}{}); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("got %v", err)
	}
}
