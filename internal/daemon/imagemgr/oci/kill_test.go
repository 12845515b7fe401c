package oci_test

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"

	"banger/internal/daemon/imagemgr/blobs"
	"banger/internal/daemon/imagemgr/oci"
)

// TestMain lets the test binary be the process that is killed.
func TestMain(m *testing.M) {
	if dir := os.Getenv("BANGER_TEST_FETCH"); dir != "" {
		os.Exit(fetchAndExit(dir, os.Getenv("BANGER_TEST_REF")))
	}
	os.Exit(m.Run())
}

func fetchAndExit(dir, ref string) int {
	c, err := blobs.Open(dir)
	if err != nil {
		return 3
	}
	r, err := oci.Parse(ref)
	if err != nil {
		return 4
	}
	ctx, cancel := newContext()
	defer cancel()
	img, err := oci.Resolve(ctx, r, oci.Options{Cache: c, Platform: amd64})
	if err != nil {
		_, _ = io.WriteString(os.Stderr, err.Error())
		return 5
	}
	if err := img.Fetch(ctx, c, 2, nil); err != nil {
		_, _ = io.WriteString(os.Stderr, err.Error())
		return 6
	}
	return 0
}

// TestKill kills processes that fetch, each at another place of what the registry
// sends, and half of them while a second one waits for the first. None leaves a wrong
// blob, and the next one goes on.
func TestKill(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r := newRegistry(t, false)
	m := makeImage(t, amd64, 90, 400_000, 900_000, 100, 300_000)
	r.put("1", m)
	ref := r.host() + "/x:1"
	total := 0
	for _, l := range m.layers {
		total += len(l)
	}
	start := func(dir string) *exec.Cmd {
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), "BANGER_TEST_FETCH="+dir, "BANGER_TEST_REF="+ref, "GORACE=atexit_sleep_ms=0")
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	resumed := 0
	tries := uint64(10)
	if s := os.Getenv("BANGER_TEST_KILLS"); s != "" { // to look longer
		if tries, err = strconv.ParseUint(s, 10, 32); err != nil {
			t.Fatal(err)
		}
	}
	for seed := range tries {
		rng := rand.New(rand.NewPCG(seed, 2))
		dir := t.TempDir()
		c := openCache(t, dir)
		killAt, sent := rng.IntN(total), 0
		var mu sync.Mutex
		var once sync.Once
		reached := make(chan struct{})
		r.behave(func(w http.ResponseWriter, req *http.Request) bool {
			if !strings.Contains(req.URL.Path, "/blobs/") {
				return false
			}
			r.serve(&meter{w, func(n int) {
				mu.Lock()
				defer mu.Unlock()
				if sent += n; sent >= killAt {
					once.Do(func() { close(reached) })
				}
			}}, req)
			return true
		})
		first := start(dir)
		var second *exec.Cmd
		if seed%2 == 0 {
			second = start(dir)
		}
		<-reached
		_ = first.Process.Kill()
		_ = first.Wait()
		r.behave(nil)
		r.seen()
		if second != nil {
			if err := second.Wait(); err != nil {
				t.Errorf("seed %d: the second: %v", seed, err)
			}
		}
		nothingWrong(t, c)
		third := start(dir)
		if err := third.Wait(); err != nil {
			t.Errorf("seed %d: the third: %v", seed, err)
		}
		for i, l := range m.layers {
			if got, err := c.ReadAll(blobs.Of(l), int64(len(l))); err != nil || !bytes.Equal(got, l) {
				t.Errorf("seed %d: layer %d: %v", seed, i, err)
			}
		}
		_, parts, err := c.List(t.Context())
		if err != nil || len(parts) != 0 {
			t.Errorf("seed %d: %+v, %v", seed, parts, err)
		}
		for _, s := range r.seen() {
			if strings.Contains(s, "bytes=") {
				resumed++
			}
		}
		_ = c.Close()
	}
	if resumed == 0 {
		t.Error("nobody went on where another was killed")
	}
}

// meter tells how many bytes go through it.
type meter struct {
	http.ResponseWriter
	tell func(int)
}

func (m *meter) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) { // in small pieces, so that there is something between them
		n, err := m.ResponseWriter.Write(p[done:min(len(p), done+16<<10)])
		done += n
		m.tell(n)
		if err != nil {
			return done, err
		}
	}
	return done, nil
}
