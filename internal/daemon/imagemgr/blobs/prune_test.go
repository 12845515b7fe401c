package blobs_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"banger/internal/daemon/imagemgr/blobs"
)

// put keeps blobs of 100 bytes each, the first the longest unused: by an hour each.
func put(t *testing.T, c *blobs.Cache, dir string, n int) []blobs.Digest {
	t.Helper()
	var all []blobs.Digest
	for i := range n {
		d, err := c.Put(t.Context(), noise(uint64(100+i), 100))
		if err != nil {
			t.Fatal(err)
		}
		age(t, dir, "blobs/sha256", d, time.Duration(n-i)*time.Hour)
		all = append(all, d)
	}
	return all
}

func digests(bs []blobs.Blob) []blobs.Digest {
	var all []blobs.Digest
	for _, b := range bs {
		all = append(all, b.Digest)
	}
	return all
}

func TestRefs(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir)
	ds := put(t, c, dir, 3)
	r := blobs.Ref{Name: "docker.io/library/debian:12 linux/amd64", Top: ds[0], Blobs: []blobs.Digest{ds[0], ds[1], ds[1]}, Seen: time.Unix(1e9, 0).UTC()}
	if _, ok := c.Ref(r.Name); ok {
		t.Error("known before")
	}
	for range 2 {
		if err := c.PutRef(r); err != nil {
			t.Fatal(err)
		}
	}
	if got, ok := open(t, dir).Ref(r.Name); !ok || !reflect.DeepEqual(got, r) {
		t.Errorf("%+v", got)
	}
	list, parts, err := c.List(t.Context())
	if err != nil || len(list) != 3 || len(parts) != 0 || !slices.Equal(digests(list), ds) {
		t.Fatalf("%+v, %+v, %v", list, parts, err)
	}
	if !slices.Equal(list[1].Refs, []string{r.Name}) || list[2].Refs != nil || list[0].Size != 100 {
		t.Errorf("%+v", list)
	}
	// Records that a crash or somebody else has damaged are none, and go with a prune,
	// as do those whose image is gone.
	if err := os.WriteFile(filepath.Join(dir, "refs", "x.json"), []byte(`{"name":"x","top":"../../etc"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if gone, err := c.Prune(t.Context(), blobs.Prune{MaxBytes: 200}); err != nil || !slices.Equal(digests(gone), ds[:1]) {
		t.Fatalf("%+v, %v", gone, err)
	}
	if left, _ := os.ReadDir(filepath.Join(dir, "refs")); len(left) != 0 {
		t.Errorf("%v are left", left)
	}
}

func TestPrune(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir)
	ds := put(t, c, dir, 6)
	dry := func(p blobs.Prune) []blobs.Digest {
		t.Helper()
		p.DryRun = true
		gone, err := c.Prune(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		return digests(gone)
	}
	for name, try := range map[string]struct {
		got  []blobs.Digest
		want []blobs.Digest
	}{
		"nothing": {dry(blobs.Prune{MaxBytes: -1}), nil},
		"all":     {dry(blobs.Prune{}), ds},
		"size":    {dry(blobs.Prune{MaxBytes: 450}), ds[:2]},
		"age":     {dry(blobs.Prune{MaxBytes: -1, Unused: 3*time.Hour + time.Minute}), ds[:3]},
		"both":    {dry(blobs.Prune{MaxBytes: 550, Unused: 5*time.Hour + time.Minute}), ds[:1]},
		"kept":    {dry(blobs.Prune{MaxBytes: 450, Keep: func(d blobs.Digest) bool { return d == ds[0] }}), ds[1:3]},
	} {
		if !slices.Equal(try.got, try.want) {
			t.Errorf("%s: %v, want %v", name, try.got, try.want)
		}
	}
	if list, _, _ := c.List(t.Context()); len(list) != 6 {
		t.Fatal("a dry run removed something")
	}
	release := c.Pin(ds[0], ds[0], ds[2])
	f, err := c.Open(ds[1]) // which makes it the youngest
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	gone, err := c.Prune(t.Context(), blobs.Prune{MaxBytes: 300})
	if want := []blobs.Digest{ds[3], ds[4], ds[5]}; err != nil || !slices.Equal(digests(gone), want) {
		t.Errorf("%v, %v; want %v", digests(gone), err, want)
	}
	if gone, err := c.Prune(t.Context(), blobs.Prune{}); err != nil || !slices.Equal(digests(gone), ds[1:2]) {
		t.Errorf("%v, %v", digests(gone), err)
	}
	if data, err := io.ReadAll(f); err != nil || blobs.Of(data) != ds[1] {
		t.Errorf("what was open is no longer readable: %v", err)
	}
	release()
	release()
	if gone, err := c.Prune(t.Context(), blobs.Prune{}); err != nil || len(gone) != 2 {
		t.Errorf("%v, %v", digests(gone), err)
	}
}

// TestPruneSparesWhatIsFetched while it comes, and a part in use by another process.
func TestPruneSparesWhatIsFetched(t *testing.T) {
	dir := t.TempDir()
	c, other := open(t, dir), open(t, dir)
	data := noise(50, 1000)
	d := blobs.Of(data)
	begun, goOn, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		done <- c.Fetch(t.Context(), d, 1000, func(ctx context.Context, w *blobs.Writer) error {
			if _, err := w.Write(data[:500]); err != nil {
				return err
			}
			close(begun)
			<-goOn
			return filling(data)(ctx, w)
		}, nil)
	}()
	<-begun
	age(t, dir, "parts", d, 1000*time.Hour)
	for _, c := range []*blobs.Cache{c, other} {
		if n, err := c.Sweep(t.Context(), time.Hour, false); n != 0 || err != nil {
			t.Errorf("swept %d bytes, %v", n, err)
		}
		if gone, err := c.Prune(t.Context(), blobs.Prune{}); len(gone) != 0 || err != nil {
			t.Errorf("pruned %v, %v", gone, err)
		}
		_, parts, err := c.List(t.Context())
		if err != nil || len(parts) != 1 || !parts[0].Busy || parts[0].Size != 500 || parts[0].Digest != d {
			t.Errorf("%+v, %v", parts, err)
		}
	}
	close(goOn)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestSweep(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir)
	old, young := blobs.Of([]byte("old")), blobs.Of([]byte("young"))
	lost := errors.New("lost")
	for _, d := range []blobs.Digest{old, young} {
		err := c.Fetch(t.Context(), d, 5, func(_ context.Context, w *blobs.Writer) error {
			if _, err := w.Write([]byte("yo")); err != nil {
				return err
			}
			return lost
		}, nil)
		if !errors.Is(err, lost) {
			t.Fatal(err)
		}
	}
	age(t, dir, "parts", old, 50*time.Hour)
	stale := filepath.Join(dir, "refs", ".scratch-1")
	if err := os.WriteFile(stale, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	then := time.Now().Add(-time.Hour)
	if err := os.Chtimes(stale, then, then); err != nil {
		t.Fatal(err)
	}
	for _, dry := range []bool{true, false} {
		if n, err := c.Sweep(t.Context(), 48*time.Hour, dry); n != 2 || err != nil {
			t.Errorf("%d bytes, %v", n, err)
		}
	}
	if got := files(t, dir); !slices.Equal(got, []string{"parts/" + young.Hex()}) {
		t.Errorf("%q is left", got)
	}
}
