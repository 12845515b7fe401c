package blobs_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"banger/internal/daemon/imagemgr/blobs"
)

// TestManyMeetAtTheEnd has several processes look for a blob just when one of them gives
// it its name. Root, who may write what is read-only, does not notice all of it.
func TestManyMeetAtTheEnd(t *testing.T) {
	dir := t.TempDir()
	caches := []*blobs.Cache{open(t, dir), open(t, dir), open(t, dir), open(t, dir)}
	for i := range uint64(40) {
		data := noise(1000+i, 10)
		d := blobs.Of(data)
		var wg sync.WaitGroup
		for _, c := range caches {
			wg.Go(func() {
				if err := c.Fetch(t.Context(), d, 10, filling(data), nil); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if fi, err := os.Stat(filepath.Join(dir, "blobs/sha256", d.Hex())); err != nil {
			t.Error(err)
		} else if fi.Mode() != 0o400 {
			t.Errorf("%s has %s", d, fi.Mode())
		}
	}
}

// TestTheEndIsToldAtOnce has many wait for downloads that end while they look.
func TestTheEndIsToldAtOnce(t *testing.T) {
	c := open(t, t.TempDir())
	for i := range uint64(500) {
		data := noise(2000+i, 10)
		d := blobs.Of(data)
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				if err := c.Fetch(t.Context(), d, 10, filling(data), func(int64) {}); err != nil {
					t.Error(err)
				}
			})
			wg.Go(func() {
				r, err := c.Stream(t.Context(), d, 10, filling(data))
				if err != nil {
					t.Error(err)
					return
				}
				defer func() { _ = r.Close() }()
				if got, err := io.ReadAll(r); err != nil && !errors.Is(err, blobs.ErrRestarted) || err == nil && !bytes.Equal(got, data) {
					t.Errorf("read %x, %v", got, err)
				}
			})
		}
		wg.Wait()
	}
}
