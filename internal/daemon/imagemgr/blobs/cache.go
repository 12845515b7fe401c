// Package blobs keeps the content of images on disk under its digest: what was
// downloaded is there for the next image that needs it, and what was half downloaded
// is gone on with.
//
// A cache is a directory:
//
//	blobs/sha256/HEX   content whose SHA-256 is HEX, and nothing else; read-only
//	parts/HEX          the beginning of such content; locked by who writes it
//	refs/HASH.json     what a reference led to when it was last resolved
//
// A blob gets its name by a rename, after it was read through the hash and is on
// disk. So a crash at any point leaves no wrong blob, only a part to go on with.
// What a part holds is not believed: it goes through the hash again.
package blobs

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Cache is a directory of blobs. Several goroutines and several processes may use
// one; whoever wants what another one writes waits for that. Pins are known to one
// process only, so that only the process that uses the blobs should prune.
type Cache struct {
	dir    string
	ctx    context.Context // ends with Close
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup

	mu      sync.Mutex // a leaf; guards the fields below
	closed  bool
	flights map[Digest]*flight // one piece of work per blob, removal included
	pins    map[Digest]int
}

// Open opens the cache in dir and makes what is missing of it.
func Open(dir string) (*Cache, error) {
	ctx, cancel := context.WithCancelCause(context.Background())
	c := &Cache{dir: dir, ctx: ctx, cancel: cancel, flights: map[Digest]*flight{}, pins: map[Digest]int{}}
	for _, sub := range []string{c.blobDir(), c.partDir(), c.refDir()} {
		if err := os.MkdirAll(sub, 0o700); err != nil {
			cancel(nil)
			return nil, fmt.Errorf("open image cache: %w", err)
		}
	}
	return c, nil
}

// Close ends what is being fetched, whose parts stay, and waits for it.
func (c *Cache) Close() error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.cancel(ErrClosed)
	c.wg.Wait()
	return nil
}

func (c *Cache) blobDir() string      { return filepath.Join(c.dir, "blobs", "sha256") }
func (c *Cache) partDir() string      { return filepath.Join(c.dir, "parts") }
func (c *Cache) refDir() string       { return filepath.Join(c.dir, "refs") }
func (c *Cache) blob(d Digest) string { return filepath.Join(c.blobDir(), d.Hex()) }
func (c *Cache) part(d Digest) string { return filepath.Join(c.partDir(), d.Hex()) }

// scratchPrefix begins the names of files that lose them at once.
const scratchPrefix = ".scratch-"

func missing(d Digest) error   { return fmt.Errorf("blob %s: %w", d, fs.ErrNotExist) }
func isMissing(err error) bool { return errors.Is(err, fs.ErrNotExist) }
func otherSize(d Digest, has, want int64) error {
	return fmt.Errorf("blob %s has %d bytes, not %d: %w", d, has, want, ErrSize)
}

// Scratch returns a file without a name on the disk of the cache: it is gone when it
// is closed, or when the process ends.
func (c *Cache) Scratch() (*os.File, error) {
	fd, err := unix.Open(c.partDir(), unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err == nil {
		return os.NewFile(uintptr(fd), "scratch"), nil
	}
	f, err := os.CreateTemp(c.partDir(), scratchPrefix)
	if err != nil {
		return nil, fmt.Errorf("make a temporary file: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// Stat returns the size of a blob in bytes, or an error that is fs.ErrNotExist.
func (c *Cache) Stat(d Digest) (int64, error) {
	fi, err := os.Lstat(c.blob(d))
	if isMissing(err) {
		return 0, missing(d)
	}
	if err != nil {
		return 0, err
	}
	return fi.Size(), nil
}

// Open opens a blob to be read and notes that it is in use. It goes on being readable
// when it is pruned.
func (c *Cache) Open(d Digest) (*os.File, error) {
	f, err := os.OpenFile(c.blob(d), os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if isMissing(err) {
		return nil, missing(d)
	}
	if err != nil {
		return nil, err
	}
	c.touch(d)
	return f, nil
}

// touch notes the time of use where it cannot be confused with that of writing. That
// it cannot be noted (a disk mounted read-only) harms nobody but the next prune.
func (c *Cache) touch(d Digest) {
	now, omit := unix.NsecToTimespec(time.Now().UnixNano()), unix.Timespec{Nsec: unix.UTIME_OMIT}
	_ = unix.UtimesNanoAt(unix.AT_FDCWD, c.blob(d), []unix.Timespec{now, omit}, unix.AT_SYMLINK_NOFOLLOW)
}

// ReadAll returns a blob of at most limit bytes, checked against its digest. One that
// the disk has damaged is removed and counts as missing.
func (c *Cache) ReadAll(d Digest, limit int64) ([]byte, error) {
	f, err := c.Open(d)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read blob %s: %w", d, err)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("blob %s has more than %d bytes: %w", d, limit, ErrSize)
	}
	if Of(data) != d {
		_, err := c.remove(d, nil)
		return nil, errors.Join(missing(d), err)
	}
	return data, nil
}

// Verify reads a blob through its hash. One that the disk has damaged is removed, and
// the error is ErrDigest.
func (c *Cache) Verify(ctx context.Context, d Digest) error {
	sound, err := c.sound(ctx, d)
	if err != nil || sound {
		return err
	}
	_, err = c.remove(d, nil)
	return errors.Join(fmt.Errorf("blob %s is damaged: %w", d, ErrDigest), err)
}

// sound reports whether a blob has the content of its digest.
func (c *Cache) sound(ctx context.Context, d Digest) (bool, error) {
	f, err := c.Open(d)
	if err != nil {
		return false, err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.CopyBuffer(h, Until(ctx, f), make([]byte, bufferSize)); err != nil {
		return false, fmt.Errorf("read blob %s: %w", d, err)
	}
	return fromSum(h.Sum(nil)) == d, nil
}

// Put keeps data that is in memory and returns its digest.
func (c *Cache) Put(ctx context.Context, data []byte) (Digest, error) {
	d := Of(data)
	err := c.Fetch(ctx, d, int64(len(data)), func(_ context.Context, w *Writer) error {
		_, err := w.Write(data[w.Offset():])
		return err
	}, nil)
	return d, err
}

// Pin keeps blobs from being pruned, those included that are not there yet, until
// release is called. It can be called twice.
func (c *Cache) Pin(ds ...Digest) (release func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, d := range ds {
		c.pins[d]++
	}
	var once sync.Once
	return func() {
		once.Do(func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			for _, d := range ds {
				if c.pins[d]--; c.pins[d] == 0 {
					delete(c.pins, d)
				}
			}
		})
	}
}

// Until is r until ctx ends: reading then fails with the reason.
func Until(ctx context.Context, r io.Reader) io.Reader { return &contextReader{ctx, r} }

type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (r *contextReader) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.r.Read(p)
}
