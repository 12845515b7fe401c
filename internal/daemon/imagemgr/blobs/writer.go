package blobs

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/durable"
)

// What content can be refused for.
var (
	ErrSize   = errors.New("wrong size")
	ErrDigest = errors.New("content does not match its digest")
)

const (
	bufferSize    = 256 << 10
	writebackStep = 16 << 20 // how much is written before the kernel is asked to begin
	lockPoll      = 50 * time.Millisecond
)

// Writer writes one blob: it hashes what it gets, and takes no more than the blob's
// size. What was there of it from an earlier attempt counts as written.
type Writer struct {
	d      Digest
	size   int64
	f      *os.File // the part; its lock makes this the only writer anywhere
	hash   hash.Hash
	offset int64
	behind int64 // up to here the kernel was asked to write back
	tell   func(offset int64, restarted bool)
}

// Offset is how many bytes of the blob are there: what is to be written next.
func (w *Writer) Offset() int64 { return w.offset }

// Size is how many bytes the blob has.
func (w *Writer) Size() int64 { return w.size }

// Write appends to the blob. More than its size is ErrSize, and none of it is kept.
func (w *Writer) Write(p []byte) (int, error) {
	if int64(len(p)) > w.size-w.offset {
		return 0, fmt.Errorf("blob %s has more than %d bytes: %w", w.d, w.size, ErrSize)
	}
	n, err := w.f.WriteAt(p, w.offset)
	w.hash.Write(p[:n])
	w.offset += int64(n)
	if err != nil {
		return n, fmt.Errorf("write blob: %w", err)
	}
	if w.offset-w.behind >= writebackStep {
		// Only so that the sync at the end has less to wait for.
		_ = unix.SyncFileRange(int(w.f.Fd()), w.behind, w.offset-w.behind, unix.SYNC_FILE_RANGE_WRITE)
		w.behind = w.offset
	}
	w.tell(w.offset, false)
	return n, nil
}

// Reset begins the blob anew.
func (w *Writer) Reset() error {
	w.hash.Reset()
	w.offset, w.behind = 0, 0
	w.tell(0, true)
	if err := w.f.Truncate(0); err != nil {
		return fmt.Errorf("write blob: %w", err)
	}
	return nil
}

// Verify checks a blob that is all there. Content that is not that of the digest is
// ErrDigest, and the blob begins anew.
func (w *Writer) Verify() error {
	if w.offset != w.size {
		return fmt.Errorf("blob %s ends after %d of %d bytes: %w", w.d, w.offset, w.size, io.ErrUnexpectedEOF)
	}
	if got := fromSum(w.hash.Sum(nil)); got != w.d {
		return errors.Join(fmt.Errorf("blob %s: %w, it is %s", w.d, ErrDigest, got), w.Reset())
	}
	return nil
}

// rehash takes what is in the part into the hash.
func (w *Writer) rehash(ctx context.Context) error {
	fi, err := w.f.Stat()
	if err != nil {
		return err
	}
	if fi.Size() > w.size {
		return w.Reset() // of something else, or damaged
	}
	n, err := io.CopyBuffer(onlyWriter{w.hash}, Until(ctx, io.NewSectionReader(w.f, 0, fi.Size())), make([]byte, bufferSize))
	if err != nil {
		return fmt.Errorf("read the part of blob %s: %w", w.d, err)
	}
	w.offset, w.behind = n, n
	w.tell(w.offset, false)
	return nil
}

// onlyWriter hides what io.CopyBuffer would use instead of the buffer.
type onlyWriter struct{ io.Writer }

// publish gives a verified blob its name.
func (c *Cache) publish(w *Writer) error {
	if err := w.Verify(); err != nil {
		return err
	}
	if err := w.f.Sync(); err != nil {
		// What could not be written the kernel takes for written from now on, and the
		// hash of its pages would be right.
		return errors.Join(fmt.Errorf("publish blob: %w", err), w.Reset())
	}
	if err := os.Rename(c.part(w.d), c.blob(w.d)); err != nil {
		return fmt.Errorf("publish blob: %w", err)
	}
	// Not before: others open the part to write, if only to see that it is locked.
	if err := w.f.Chmod(0o400); err != nil {
		return fmt.Errorf("publish blob: %w", err)
	}
	return durable.SyncDir(c.blobDir())
}

// lockPart opens the part of a blob and locks it. When another process publishes the
// blob meanwhile there is none to open, and published is true. Waiting is told how far
// the other one is. The lock is of the opened file, so it goes when its holder dies;
// it is asked for again and again, because a wait for it could not be cancelled.
func (c *Cache) lockPart(ctx context.Context, d Digest, waiting func(offset int64)) (f *os.File, published bool, err error) {
	for {
		if _, err := c.Stat(d); err == nil {
			return nil, true, nil
		} else if !isMissing(err) {
			return nil, false, err
		}
		f, err := tryLock(c.part(d), os.O_CREATE)
		if err != nil {
			return nil, false, err
		}
		if f != nil {
			// It may have been published between the look and the lock.
			if _, err := c.Stat(d); err == nil {
				return nil, true, errors.Join(os.Remove(c.part(d)), f.Close())
			}
			return f, false, nil
		}
		if fi, err := os.Lstat(c.part(d)); err == nil {
			waiting(fi.Size())
		}
		select {
		case <-ctx.Done():
			return nil, false, context.Cause(ctx)
		case <-time.After(lockPoll):
		}
	}
}

// tryLock opens and locks the file that has that name; nil when somebody else has it
// locked, or has renamed or removed it at this moment.
func tryLock(name string, flag int) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDWR|syscall.O_NOFOLLOW|flag, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the part of a blob: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, unix.EINTR) {
			return nil, nil
		}
		return nil, fmt.Errorf("lock the part of a blob: %w", err)
	}
	mine, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	if there, err := os.Lstat(name); err != nil || !os.SameFile(mine, there) {
		_ = f.Close()
		return nil, nil
	}
	return f, nil
}
