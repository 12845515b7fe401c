package blobs_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"banger/internal/daemon/imagemgr/blobs"
	"banger/internal/disktest"
	"banger/internal/errdefs"
)

func open(t testing.TB, dir string) *blobs.Cache {
	t.Helper()
	c, err := blobs.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func noise(seed uint64, n int) []byte {
	rng := rand.New(rand.NewPCG(seed, 7))
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(rng.Uint32())
	}
	return data
}

// filling writes data from where the blob is.
func filling(data []byte) blobs.Fill {
	return func(_ context.Context, w *blobs.Writer) error {
		_, err := w.Write(data[w.Offset():])
		return err
	}
}

// never is a fill for what has to be there.
func never(t *testing.T) blobs.Fill {
	return func(context.Context, *blobs.Writer) error {
		t.Error("fetched again")
		return errors.New("fetched again")
	}
}

// files returns the names below a cache.
func files(t *testing.T, dir string) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			all = append(all, strings.TrimPrefix(path, dir+"/"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestDigests(t *testing.T) {
	good := "sha256:" + strings.Repeat("0a", 32)
	if d, err := blobs.ParseDigest(good); err != nil || d.Hex() != strings.Repeat("0a", 32) || d.Short() != "0a0a0a0a0a0a" {
		t.Errorf("%v, %v", d, err)
	}
	for _, bad := range []string{"", "sha256:", "sha256:0A" + good[9:], good[:70], good + "0", "sha256:../../" + good[13:], strings.Repeat("0a", 32)} {
		if _, err := blobs.ParseDigest(bad); err == nil || errors.Is(err, blobs.ErrAlgorithm) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := blobs.ParseDigest("sha512:" + strings.Repeat("0a", 64)); !errors.Is(err, blobs.ErrAlgorithm) {
		t.Error(err)
	}
}

func TestFetch(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir)
	data := noise(1, 1<<20+17)
	d := blobs.Of(data)
	var told []int64
	if err := c.Fetch(t.Context(), d, int64(len(data)), filling(data), func(n int64) { told = append(told, n) }); err != nil {
		t.Fatal(err)
	}
	if !slices.IsSorted(told) || told[len(told)-1] != int64(len(data)) {
		t.Errorf("progress was %v", told)
	}
	if err := c.Fetch(t.Context(), d, int64(len(data)), never(t), nil); err != nil {
		t.Error(err)
	}
	if got, err := c.ReadAll(d, int64(len(data))); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if _, err := c.ReadAll(d, int64(len(data))-1); !errors.Is(err, blobs.ErrSize) {
		t.Errorf("too large a blob: %v", err)
	}
	if err := c.Fetch(t.Context(), d, 5, never(t), nil); !errors.Is(err, blobs.ErrSize) {
		t.Errorf("another size: %v", err)
	}
	if n, err := c.Stat(d); err != nil || n != int64(len(data)) {
		t.Errorf("%d, %v", n, err)
	}
	if got := files(t, dir); len(got) != 1 || got[0] != "blobs/sha256/"+d.Hex() {
		t.Errorf("the cache holds %q", got)
	}
	empty := blobs.Of(nil)
	if err := c.Fetch(t.Context(), empty, 0, never(t), nil); err != nil {
		t.Errorf("nothing: %v", err)
	}
	if _, err := c.Open(blobs.Of([]byte("x"))); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

func TestWrongContentIsNeverKept(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir)
	data := noise(2, 100_000)
	d, size := blobs.Of(data), int64(len(data))
	wrong := bytes.Clone(data)
	wrong[77]++
	for name, fill := range map[string]struct {
		fill blobs.Fill
		want error
	}{
		"wrong":    {filling(wrong), blobs.ErrDigest},
		"too long": {filling(append(bytes.Clone(data), 0)), blobs.ErrSize},
		"nothing":  {func(context.Context, *blobs.Writer) error { return nil }, io.ErrUnexpectedEOF},
	} {
		if err := c.Fetch(t.Context(), d, size, fill.fill, nil); !errors.Is(err, fill.want) {
			t.Errorf("%s: %v", name, err)
		}
		if got := files(t, dir); len(got) != 0 {
			t.Errorf("%s left %q", name, got)
		}
	}
}

func TestGoesOnFromAPart(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir)
	data := noise(3, 300_000)
	d, size := blobs.Of(data), int64(len(data))
	lost := errors.New("lost")
	err := c.Fetch(t.Context(), d, size, func(_ context.Context, w *blobs.Writer) error {
		if _, err := w.Write(data[:200_000]); err != nil {
			return err
		}
		return lost
	}, nil)
	if !errors.Is(err, lost) {
		t.Fatal(err)
	}
	began := int64(-1)
	goOn := func(ctx context.Context, w *blobs.Writer) error {
		began = w.Offset()
		return filling(data)(ctx, w)
	}
	// Another process would find the same.
	if err := open(t, dir).Fetch(t.Context(), d, size, goOn, nil); err != nil || began != 200_000 {
		t.Errorf("went on at %d: %v", began, err)
	}

	// What a crash leaves: a damaged beginning, one that is all there, one that is too
	// long.
	for name, part := range map[string][]byte{
		"damaged": append(make([]byte, 5000), data[5000:200_000]...), "complete": data, "too long": append(bytes.Clone(data), 1),
		"complete, damaged": append([]byte{data[0] + 1}, data[1:]...),
	} {
		if err := errors.Join(os.RemoveAll(filepath.Join(dir, "blobs/sha256", d.Hex())), os.WriteFile(filepath.Join(dir, "parts", d.Hex()), part, 0o600)); err != nil {
			t.Fatal(err)
		}
		err := c.Fetch(t.Context(), d, size, filling(data), nil)
		if name == "damaged" {
			if !errors.Is(err, blobs.ErrDigest) {
				t.Errorf("%s: %v", name, err)
			}
			err = c.Fetch(t.Context(), d, size, filling(data), nil) // which begins anew
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got, err := c.ReadAll(d, size); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestManyShareOneFetch(t *testing.T) {
	dir := t.TempDir()
	// Two caches on one directory are to each other as two processes: locks of files
	// belong to what is open.
	caches := []*blobs.Cache{open(t, dir), open(t, dir)}
	data := noise(4, 400_000)
	d, size := blobs.Of(data), int64(len(data))
	var fills, running atomic.Int32
	fill := func(ctx context.Context, w *blobs.Writer) error {
		fills.Add(1)
		if running.Add(1) > 1 {
			t.Error("two write the same blob")
		}
		defer running.Add(-1)
		for w.Offset() < size {
			if _, err := w.Write(data[w.Offset():min(w.Offset()+50_000, size)]); err != nil {
				return err
			}
		}
		return nil
	}
	var wg sync.WaitGroup
	for i := range 24 {
		wg.Go(func() {
			c := caches[i%2]
			if i%4 < 2 {
				if err := c.Fetch(t.Context(), d, size, fill, nil); err != nil {
					t.Error(err)
				}
				return
			}
			r, err := c.Stream(t.Context(), d, size, fill)
			if err != nil {
				t.Error(err)
				return
			}
			if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, data) {
				t.Errorf("read %d bytes, %v", len(got), err)
			}
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if fills.Load() != 1 {
		t.Errorf("fetched %d times", fills.Load())
	}
}

func TestAWaiterThatGoesHarmsNobody(t *testing.T) {
	c := open(t, t.TempDir())
	data := noise(5, 1000)
	d, size := blobs.Of(data), int64(len(data))
	begun, goOn := make(chan struct{}), make(chan struct{})
	fill := func(ctx context.Context, w *blobs.Writer) error {
		close(begun)
		select {
		case <-goOn:
			return filling(data)(ctx, w)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	first, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("gone")
	firstDone := make(chan error, 1)
	go func() { firstDone <- c.Fetch(first, d, size, fill, nil) }()
	<-begun
	second, err := c.Stream(t.Context(), d, size, never(t))
	if err != nil {
		t.Fatal(err)
	}
	cancel(gone)
	if err := <-firstDone; !errors.Is(err, gone) {
		t.Errorf("who went got %v", err)
	}
	close(goOn)
	if got, err := io.ReadAll(second); err != nil || !bytes.Equal(got, data) {
		t.Errorf("who stayed got %d bytes, %v", len(got), err)
	}
	_ = second.Close()

	// The last one that goes ends the work, and finds it ended.
	data = noise(6, 1000)
	d = blobs.Of(data)
	ctx, cancel := context.WithCancelCause(t.Context())
	ended := false
	err = c.Fetch(ctx, d, size, func(ctx context.Context, w *blobs.Writer) error {
		cancel(gone)
		<-ctx.Done()
		ended = true
		return context.Cause(ctx)
	}, nil)
	if !errors.Is(err, gone) || !ended {
		t.Errorf("%v, ended %v", err, ended)
	}
}

// TestWhoComesWhileOthersGo shares nothing of what they have given up.
func TestWhoComesWhileOthersGo(t *testing.T) {
	c := open(t, t.TempDir())
	data := noise(20, 1000)
	d, size := blobs.Of(data), int64(len(data))
	ctx, cancel := context.WithCancel(t.Context())
	begun, ending, end := make(chan struct{}), make(chan struct{}), make(chan struct{})
	gone := make(chan error, 1)
	go func() {
		gone <- c.Fetch(ctx, d, size, func(ctx context.Context, w *blobs.Writer) error {
			_, err := w.Write(data[:100])
			close(begun)
			<-ctx.Done()
			close(ending)
			<-end
			return errors.Join(err, context.Cause(ctx))
		}, nil)
	}()
	<-begun
	cancel()
	<-ending
	read, joined := make(chan error, 1), make(chan struct{})
	go func() {
		r, err := c.Stream(askedContext{t.Context(), sync.OnceFunc(func() { close(joined) })}, d, size, filling(data))
		if err == nil {
			_, err = io.Copy(io.Discard, r)
			err = errors.Join(err, r.Close())
		}
		read <- err
	}()
	<-joined
	close(end)
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := <-read; err != nil {
		t.Errorf("who came later: %v", err)
	}
}

// askedContext tells when somebody waits for its end.
type askedContext struct {
	context.Context
	asked func()
}

func (c askedContext) Done() <-chan struct{} {
	c.asked()
	return c.Context.Done()
}

// TestFailuresOfOthers: a reader that joined a download hears that it is to come again,
// and one that knows another size follows none.
func TestFailuresOfOthers(t *testing.T) {
	c := open(t, t.TempDir())
	data := noise(22, 1000)
	d, size := blobs.Of(data), int64(len(data))
	fail, refused := make(chan struct{}), errors.New("refused")
	first, err := c.Stream(t.Context(), d, size, func(_ context.Context, w *blobs.Writer) error {
		_, err := w.Write(data[:100])
		<-fail
		return errors.Join(err, refused)
	})
	if err != nil {
		t.Fatal(err)
	}
	second, err := c.Stream(t.Context(), d, size, never(t))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancelled := make(chan error, 1)
	go func() {
		_, err := c.Stream(ctx, d, size+1, never(t))
		cancelled <- err
	}()
	cancel()
	if err := <-cancelled; !errors.Is(err, context.Canceled) {
		t.Errorf("with another size: %v", err)
	}
	close(fail)
	if _, err := io.ReadAll(first); !errors.Is(err, refused) || errors.Is(err, blobs.ErrRestarted) {
		t.Errorf("whose download it was: %v", err)
	}
	if _, err := io.ReadAll(second); !errors.Is(err, refused) || !errors.Is(err, blobs.ErrRestarted) {
		t.Errorf("who joined: %v", err)
	}
	if err := errors.Join(first.Close(), second.Close()); err != nil {
		t.Error(err)
	}
}

func TestStreamFollows(t *testing.T) {
	c := open(t, t.TempDir())
	data := noise(7, 10_000)
	d, size := blobs.Of(data), int64(len(data))
	step := make(chan func(*blobs.Writer) error)
	fill := func(ctx context.Context, w *blobs.Writer) error {
		for do := range step {
			if err := do(w); err != nil {
				return err
			}
		}
		return nil
	}
	write := func(p []byte) {
		done := make(chan struct{})
		step <- func(w *blobs.Writer) error {
			defer close(done)
			_, err := w.Write(p)
			return err
		}
		<-done
	}
	r, err := c.Stream(t.Context(), d, size, fill)
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 20_000)
	write(data[:100])
	if n, err := io.ReadFull(r, buf[:100]); err != nil || !bytes.Equal(buf[:n], data[:100]) {
		t.Fatalf("%d, %v", n, err)
	}
	late, err := c.Stream(t.Context(), d, size, never(t))
	if err != nil {
		t.Fatal(err)
	}
	// The download begins anew: who has read some of it has read nothing, who has not
	// does not notice.
	reset := make(chan error)
	step <- func(w *blobs.Writer) error { err := w.Reset(); reset <- err; return err }
	if err := <-reset; err != nil {
		t.Fatal(err)
	}
	write(data)
	if _, err := r.Read(buf); !errors.Is(err, blobs.ErrRestarted) {
		t.Errorf("after a new beginning: %v", err)
	}
	if n, err := io.ReadFull(late, buf[:size]); err != nil || !bytes.Equal(buf[:n], data) {
		t.Errorf("%d, %v", n, err)
	}
	close(step)
	if n, err := late.Read(buf); n != 0 || err != io.EOF {
		t.Errorf("at the end: %d, %v", n, err)
	}
	if err := errors.Join(r.Close(), r.Close(), late.Close()); err != nil {
		t.Error(err)
	}

	// An end with wrong content is no end.
	wrong := bytes.Clone(data)
	wrong[0]++
	r, err = c.Stream(t.Context(), blobs.Of(noise(8, 10_000)), size, filling(wrong))
	if err == nil {
		_, err = io.ReadAll(r)
		_ = r.Close()
	}
	if !errors.Is(err, blobs.ErrDigest) && !errors.Is(err, blobs.ErrRestarted) {
		t.Errorf("wrong content: %v", err)
	}
}

func TestDamageIsNoticed(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir)
	for _, look := range []func(blobs.Digest) error{
		func(d blobs.Digest) error { _, err := c.ReadAll(d, 100); return err },
		func(d blobs.Digest) error { return c.Verify(t.Context(), d) },
	} {
		d, err := c.Put(t.Context(), []byte("content"))
		if err != nil {
			t.Fatal(err)
		}
		if err := look(d); err != nil {
			t.Error(err)
		}
		name := filepath.Join(dir, "blobs/sha256", d.Hex())
		if err := errors.Join(os.Chmod(name, 0o600), os.WriteFile(name, []byte("CONTENT"), 0o600)); err != nil {
			t.Fatal(err)
		}
		if err := look(d); !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, blobs.ErrDigest) {
			t.Error(err)
		}
		if _, err := c.Stat(d); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the damaged blob is still there: %v", err)
		}
	}
}

// TestADamagedSize is not held against those who know the right one.
func TestADamagedSize(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir)
	data := noise(23, 1000)
	d, err := c.Put(t.Context(), data)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, "blobs/sha256", d.Hex())
	if err := errors.Join(os.Chmod(name, 0o600), os.Truncate(name, 10)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Put(t.Context(), data); err != nil {
		t.Error(err)
	}
	if got, err := c.ReadAll(d, 1000); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestFullDisk(t *testing.T) {
	dir, leave := disktest.Small(t, 4<<20)
	c := open(t, dir)
	leave(300_000)
	data := noise(9, 1<<20)
	d, size := blobs.Of(data), int64(len(data))
	err := c.Fetch(t.Context(), d, size, filling(data), nil)
	if !errors.Is(err, syscall.ENOSPC) || errdefs.ClassOf(err) != errdefs.ClassExhausted {
		t.Errorf("%v", err)
	}
	leave(2 << 20)
	if err := c.Fetch(t.Context(), d, size, filling(data), nil); err != nil {
		t.Errorf("with room again: %v", err)
	}
}

func TestClose(t *testing.T) {
	c := open(t, t.TempDir())
	begun, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- c.Fetch(t.Context(), blobs.Of([]byte("x")), 1, func(ctx context.Context, _ *blobs.Writer) error {
			close(begun)
			<-ctx.Done()
			return context.Cause(ctx)
		}, nil)
	}()
	<-begun
	if err := errors.Join(c.Close(), c.Close()); err != nil {
		t.Error(err)
	}
	if err := <-done; !errors.Is(err, blobs.ErrClosed) {
		t.Errorf("fetched from a closed cache: %v", err)
	}
	if _, err := c.Put(t.Context(), nil); !errors.Is(err, blobs.ErrClosed) {
		t.Error(err)
	}
}

func age(t *testing.T, dir, sub string, d blobs.Digest, by time.Duration) {
	t.Helper()
	then := time.Now().Add(-by)
	if err := os.Chtimes(filepath.Join(dir, sub, d.Hex()), then, then); err != nil {
		t.Fatal(err)
	}
}
