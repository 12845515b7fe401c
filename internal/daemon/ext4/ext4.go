// Package ext4 writes and reads ext4 filesystems, without a mount, root, or another program.
//
// A Writer is made for a file and a size. Content of regular files is written first, by
// any number of goroutines, straight to where it stays; what a later layer hides is given
// back. When the whole tree is known, Finish writes the rest: directories, inodes and
// the tables. What no guest has mounted yet, Grow makes larger by a few blocks.
//
// The filesystems are as mke2fs makes them by default: blocks of 4 KiB, inodes of 256
// bytes, checksums on all metadata, a journal, hashed directories, and room for the
// descriptors of more groups, so that the kernel can grow them while they are used. No
// blocks are reserved for root. Nothing is written that is not needed: the tables of
// groups without files are holes, and said to be unused.
//
// An FS reads what a guest has made of one, or of any other of that family, and believes
// nothing of it: Walk visits its tree once, checked and bounded by the size of the disk.
package ext4

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
)

// File is what a filesystem is written to; *os.File is one. Where it has a descriptor,
// what is not needed any more is punched out.
type File interface {
	io.ReaderAt
	io.WriterAt
	Truncate(size int64) error
}

// ErrFull is in the errors of a Writer whose filesystem is too small for what it is given.
var ErrFull = errors.New("the filesystem is full")

// Options says what a filesystem is like.
type Options struct {
	Size     int64    // bytes, a multiple of 4096, 8 MiB to almost 16 TiB; a few MiB at the end may stay unused
	Inodes   int64    // that it can have at least; one for 16 KiB if that is more
	Label    string   // up to 16 bytes
	UUID     [16]byte // random if zero
	HashSeed [16]byte // of directories; random if zero
	Now      Time     // when it is made, and inodes change; the present if zero
}

// Writer writes one filesystem.
type Writer struct {
	f     File
	o     Options
	l     *layout
	seed  uint32
	space *space

	reclaiming chan struct{} // has one element while somebody reclaims

	mu       sync.Mutex
	idle     []*lane
	broken   error // the first write that failed: the buffer may have had other files' data
	finished bool
}

// New begins a filesystem in f, which loses what it has. It is of no use before Finish
// has returned, and the caller's to remove if that does not come about.
func New(f File, o Options) (*Writer, error) {
	l, err := plan(o.Size, o.Inodes)
	if err != nil {
		return nil, err
	}
	if len(o.Label) > 16 {
		return nil, errdefs.Invalid("label %q of a filesystem: it can have 16 bytes", o.Label)
	}
	for _, id := range []*[16]byte{&o.UUID, &o.HashSeed} {
		if *id == ([16]byte{}) {
			_, _ = rand.Read(id[:]) // never fails
			id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80
		}
	}
	if o.Now == (Time{}) {
		now := time.Now()
		o.Now = Time{now.Unix(), uint32(now.Nanosecond())}
	}
	if o.Now.Sec < 0 || o.Now.Sec > maxTime {
		return nil, errdefs.Invalid("make a filesystem at second %d: it must be between 0 and %d", o.Now.Sec, int64(maxTime))
	}
	// What is not written must be zero.
	if err := errors.Join(f.Truncate(0), f.Truncate(o.Size)); err != nil {
		return nil, fmt.Errorf("make room for a filesystem: %w", err)
	}
	return &Writer{f: f, o: o, l: l, seed: uuidSeed(o.UUID), space: newSpace(l), reclaiming: make(chan struct{}, 1)}, nil
}

// writeAt writes whole blocks.
func (w *Writer) writeAt(p []byte, block uint64) error {
	_, err := w.f.WriteAt(p, int64(block)*blockSize)
	if err == nil {
		return nil
	}
	err = fmt.Errorf("write to the filesystem: %w", err)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.broken == nil {
		w.broken = err
	}
	return err
}

// punch gives blocks back to the host, as far as it can take them. It is no error if it
// cannot: they are free all the same.
func (w *Writer) punch(r run) {
	f, ok := w.f.(syscall.Conn)
	if !ok {
		return
	}
	conn, err := f.SyscallConn()
	if err != nil {
		return
	}
	_ = conn.Control(func(fd uintptr) {
		const mode = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
		for {
			err := unix.Fallocate(int(fd), mode, int64(r.start)*blockSize, int64(r.n)*blockSize)
			if !errors.Is(err, unix.EINTR) {
				return
			}
		}
	})
}

// Finish writes the tree at root, and everything else. Whatever was written and is not in
// the tree is given back. No Write may be under way, and none can follow. The tree is
// the Writer's from then on: it sorts the children and numbers the inodes. A root
// without a lost+found gets one. The file is not synced.
//
// What ext4 cannot store is refused with class unsupported or invalid_argument, and
// its path.
func (w *Writer) Finish(ctx context.Context, root *Inode) error {
	w.mu.Lock()
	idle, broken, finished := w.idle, w.broken, w.finished
	w.idle, w.finished = nil, true
	w.mu.Unlock()
	switch {
	case finished:
		return errdefs.Internal("finish a filesystem that is finished")
	case broken != nil:
		return broken
	}
	for _, ln := range idle {
		if err := ln.retire(); err != nil {
			return err
		}
	}
	t, err := w.number(ctx, root)
	if err != nil {
		return err
	}
	w.space.settle(t.live, w.punch)
	ln := &lane{w: w, buf: make([]byte, bufferSize)}
	if len(idle) > 0 {
		ln = idle[0]
	}
	if err := t.write(ctx, ln); err != nil {
		return err
	}
	if err := ln.retire(); err != nil {
		return err
	}
	return w.writeTables(ctx, t)
}
