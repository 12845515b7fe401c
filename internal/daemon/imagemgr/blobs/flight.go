package blobs

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// ErrClosed says that the cache is closed.
var ErrClosed = errors.New("the image cache is closed")

// ErrRestarted says that a blob that was read while it came has begun anew, or that
// somebody else's download of it has failed: what was read of it counts for nothing, and
// it is to be opened again.
var ErrRestarted = errors.New("the download has begun anew")

// Fill writes what a blob lacks, from w.Offset() on. It may call w.Reset and begin
// anew, and w.Verify once it has written all; the cache does so in any case. An error
// leaves what was written for the next attempt.
type Fill func(ctx context.Context, w *Writer) error

// flight is the work on one blob, which everybody shares who wants it. It belongs to
// the cache: the context of somebody who waits ends only the waiting. When the last of
// them has gone it is cancelled.
type flight struct {
	cancel context.CancelCauseFunc
	size   int64 // what who began it takes for the size of the blob
	done   chan struct{}
	err    error // after done

	waiters int // guarded by the cache's mutex

	mu      sync.Mutex // a leaf; guards the fields below
	moved   *sync.Cond // one of them has changed, or it is done
	file    *os.File   // the part, while this process writes it
	offset  int64      // how much of it can be read
	shown   int64      // how much of the blob is there, whoever writes it
	round   int        // how often it has begun anew
	settled bool       // done, as seen under mu
}

func newFlight(size int64, cancel context.CancelCauseFunc) *flight {
	f := &flight{cancel: cancel, size: size, done: make(chan struct{})}
	f.moved = sync.NewCond(&f.mu)
	return f
}

func (f *flight) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
	f.moved.Broadcast()
}

func (f *flight) settle(err error) {
	// All at once: who sees one of them relies on the others.
	f.set(func() {
		f.err, f.settled, f.file = err, true, nil
		close(f.done)
	})
}

// Fetch sees to it that the blob of that digest and size (in bytes) is there. Missing
// content is written by fill, unless somebody is at it already. Progress is told how
// many bytes are there; it may be nil, and is called by this goroutine only.
func (c *Cache) Fetch(ctx context.Context, d Digest, size int64, fill Fill, progress func(done int64)) error {
	for {
		f, mine, err := c.join(d, size, fill)
		if err != nil {
			return err
		}
		f.watch(ctx, progress)
		err = c.leave(ctx, d, f)
		if mine || ctx.Err() != nil {
			return err
		}
		// Others wanted it, perhaps of another size, and their way to it may have
		// failed: our own look comes next.
	}
}

// Stream reads a blob while it comes: from the cache, or right behind the download
// that it starts or joins. The end is io.EOF only when the whole blob was there and
// its digest was right; what is read before is to be believed only then.
func (c *Cache) Stream(ctx context.Context, d Digest, size int64, fill Fill) (io.ReadCloser, error) {
	for {
		f, mine, err := c.join(d, size, fill)
		if err != nil {
			return nil, err
		}
		file, round, err := f.open(ctx, size)
		if file != nil {
			ctx, cancel := context.WithCancel(ctx)
			r := &follower{c: c, ctx: ctx, cancel: cancel, d: d, f: f, mine: mine, file: file, round: round}
			r.wake = context.AfterFunc(ctx, func() { f.set(func() {}) })
			return r, nil
		}
		if lerr := c.leave(ctx, d, f); lerr != nil || err != nil {
			if mine || ctx.Err() != nil {
				return nil, errors.Join(err, lerr)
			}
			continue
		}
		if n, err := c.Stat(d); err == nil && n != size {
			return nil, otherSize(d, n, size)
		}
		blob, err := c.Open(d)
		if isMissing(err) {
			continue // what was joined was its removal, or it was pruned since
		}
		return blob, err
	}
}

// join takes part in the work on a blob, or begins it; mine says which.
func (c *Cache) join(d Digest, size int64, fill Fill) (f *flight, mine bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, false, ErrClosed
	}
	if f = c.flights[d]; f == nil {
		mine = true
		ctx, cancel := context.WithCancelCause(c.ctx)
		f = newFlight(size, cancel)
		c.flights[d] = f
		c.wg.Go(func() {
			defer cancel(nil)
			err := c.work(ctx, f, d, size, fill)
			c.land(d, f)
			f.settle(err)
		})
	}
	f.waiters++
	return f, mine, nil
}

// land takes a flight out of the map: who asks from now on starts anew.
func (c *Cache) land(d Digest, f *flight) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.flights[d] == f {
		delete(c.flights, d)
	}
}

// leave ends the part that a waiter has in a flight. The last one stays until
// everything has been put down; who comes meanwhile gets a flight of their own, that
// waits for the part.
func (c *Cache) leave(ctx context.Context, d Digest, f *flight) error {
	c.mu.Lock()
	f.waiters--
	last := f.waiters == 0
	if last && c.flights[d] == f {
		delete(c.flights, d)
	}
	c.mu.Unlock()
	if last {
		f.cancel(context.Cause(ctx)) // nothing, when it is done
		<-f.done
	}
	select {
	case <-f.done:
		return f.err
	default:
		return fmt.Errorf("wait for blob %s: %w", d, context.Cause(ctx))
	}
}

// work gets a blob.
func (c *Cache) work(ctx context.Context, f *flight, d Digest, size int64, fill Fill) error {
	if n, err := c.Stat(d); err == nil && n != size {
		if err := c.scrub(ctx, d); err != nil {
			return err
		}
	}
	part, published, err := c.lockPart(ctx, d, func(n int64) { f.set(func() { f.shown = n }) })
	if err != nil {
		return err
	}
	if published {
		n, err := c.Stat(d)
		if err == nil && n != size {
			err = otherSize(d, n, size)
		}
		f.set(func() { f.shown = n })
		c.touch(d)
		return err
	}
	w := newWriter(d, size, part, func(offset int64, restarted bool) {
		f.set(func() {
			f.offset, f.shown = offset, offset
			if restarted {
				f.round++
			}
		})
	})
	err = c.complete(ctx, f, w, fill)
	// Who reads behind us has the file open as well, and with it our lock.
	f.set(func() { f.file = nil })
	if err != nil && w.offset == 0 {
		err = errors.Join(err, os.Remove(c.part(d)))
	}
	return errors.Join(err, unix.Flock(int(part.Fd()), unix.LOCK_UN), part.Close())
}

// scrub removes a blob that the disk has damaged, while the flight keeps others from it.
func (c *Cache) scrub(ctx context.Context, d Digest) error {
	sound, err := c.sound(ctx, d)
	if err == nil && !sound {
		err = os.Remove(c.blob(d))
	}
	if isMissing(err) {
		return nil
	}
	return err
}

func (c *Cache) complete(ctx context.Context, f *flight, w *Writer, fill Fill) error {
	if err := w.rehash(ctx); err != nil {
		return err
	}
	if w.offset == w.size {
		switch err := c.publish(w); {
		case err == nil:
			return nil
		case !errors.Is(err, ErrDigest):
			return err
		}
	}
	f.set(func() { f.file = w.f })
	if err := fill(ctx, w); err != nil {
		if ctx.Err() != nil {
			return errors.Join(context.Cause(ctx), err)
		}
		return err
	}
	return c.publish(w)
}

// watch tells progress until the flight is done or ctx ends.
func (f *flight) watch(ctx context.Context, progress func(done int64)) {
	if progress == nil {
		select {
		case <-f.done:
		case <-ctx.Done():
		}
		return
	}
	defer context.AfterFunc(ctx, func() { f.set(func() {}) })()
	told := int64(-1)
	for ctx.Err() == nil {
		f.mu.Lock()
		for f.shown == told && !f.settled && ctx.Err() == nil {
			f.moved.Wait()
		}
		now, settled := f.shown, f.settled
		f.mu.Unlock()
		if now != told {
			told = now
			progress(now)
		}
		if settled {
			return
		}
	}
}

// open returns the part as soon as this process writes it; nil when the flight is done
// without, or with an error when ctx ends. The part of a blob of another size is none to
// follow: one of the two sizes is wrong.
func (f *flight) open(ctx context.Context, size int64) (file *os.File, round int, err error) {
	defer context.AfterFunc(ctx, func() { f.set(func() {}) })()
	f.mu.Lock()
	defer f.mu.Unlock()
	for (f.file == nil || f.size != size) && !f.settled && ctx.Err() == nil {
		f.moved.Wait()
	}
	switch {
	case f.file != nil && f.size == size:
		// A descriptor of its own: the writer closes its one when it is done.
		fd, err := unix.FcntlInt(f.file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return nil, 0, fmt.Errorf("open a blob that is being fetched: %w", err)
		}
		return os.NewFile(uintptr(fd), f.file.Name()), f.round, nil
	case f.settled:
		return nil, 0, nil
	}
	return nil, 0, context.Cause(ctx)
}

// follower reads a part while it is written.
type follower struct {
	c      *Cache
	ctx    context.Context
	cancel context.CancelFunc
	wake   func() bool
	d      Digest
	f      *flight
	mine   bool // this reader began the download
	file   *os.File
	round  int
	pos    int64
	once   sync.Once
}

func (r *follower) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		there, err := r.wait()
		if err != nil {
			return 0, err
		}
		n, err := r.file.ReadAt(p[:min(int64(len(p)), there-r.pos)], r.pos)
		if !r.same() {
			continue // what was read may be of both rounds; wait says what that means
		}
		r.pos += int64(n)
		if n == 0 {
			return 0, fmt.Errorf("read blob %s: %w", r.d, err)
		}
		return n, nil
	}
}

// wait returns how far the part can be read, which is further than pos.
func (r *follower) wait() (int64, error) {
	f := r.f
	f.mu.Lock()
	defer f.mu.Unlock()
	for {
		if r.pos == 0 {
			r.round = f.round
		}
		switch {
		case f.round != r.round:
			return 0, fmt.Errorf("read blob %s: %w", r.d, ErrRestarted)
		case f.offset > r.pos:
			return f.offset, nil
		case f.settled && f.err != nil && !r.mine:
			// Others may have lacked the credentials, or let go of the file.
			return 0, fmt.Errorf("read blob %s: %w: %w", r.d, ErrRestarted, f.err)
		case f.settled && f.err != nil:
			return 0, f.err
		case f.settled:
			return 0, io.EOF
		case r.ctx.Err() != nil:
			return 0, context.Cause(r.ctx)
		}
		f.moved.Wait()
	}
}

func (r *follower) same() bool {
	r.f.mu.Lock()
	defer r.f.mu.Unlock()
	return r.f.round == r.round
}

// Close ends the reading, and the download if nobody else wants it.
func (r *follower) Close() error {
	var err error
	r.once.Do(func() {
		r.cancel()
		r.wake()
		_ = r.c.leave(r.ctx, r.d, r.f) // whatever came of it, nobody reads it
		err = r.file.Close()
	})
	return err
}

func newWriter(d Digest, size int64, part *os.File, tell func(int64, bool)) *Writer {
	return &Writer{d: d, size: size, f: part, hash: sha256.New(), tell: tell}
}
