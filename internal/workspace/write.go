package workspace

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/sys/unix"
)

// Reading ahead: small files are opened and read by several goroutines, a batch
// each, and written in order; that hides the latency of the file system. Memory
// is bounded by the batches in flight times what a batch may hold.
const (
	batchEntries = 64
	smallFile    = 64 << 10 // bytes; larger files are streamed by the writer
)

// WriteOptions say how a tree becomes a stream.
type WriteOptions struct {
	// Prefix is put before every name; the root itself is an entry then.
	Prefix string
	// Progress, which may be nil, is told the bytes of file contents written so far.
	Progress func(bytes int64)
	// Hash notes what was written, for Encode.
	Hash bool
	// Changed, which may be nil, is told of files that were gone or shorter than
	// they had been a moment before.
	Changed func(path string)
}

// WriteTar writes the tree as a tar stream. What changes meanwhile does not break
// the stream: files that vanished are left out, files are as long as they are when
// they are opened, and what they lose after that is zeros.
func (t *Tree) WriteTar(ctx context.Context, w io.Writer, opts WriteOptions) error {
	ctx, cancel := context.WithCancel(ctx)
	ahead := t.batches(ctx, opts.Hash)
	defer func() {
		cancel()
		for range ahead { // ends once all readers have
		}
	}()
	out := &tarWriter{Writer: tar.NewWriter(w), opts: opts}
	for next := range ahead {
		b := <-next
		for i := range b.entries {
			if err := out.entry(ctx, b.entries[i], b.loaded[i]); err != nil {
				return err
			}
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return out.Close()
}

// batch is a run of entries with what was read of them.
type batch struct {
	entries []*entry
	loaded  []content
}

// content is what was read ahead of one entry.
type content struct {
	data []byte // of a small file; shares memory with its batch
	ok   bool   // data is the whole file
	link string
	gone bool
	err  error
}

// batches loads the entries and yields the results in order.
func (t *Tree) batches(ctx context.Context, hash bool) <-chan chan batch {
	wanted := make([]*entry, 0, len(t.entries))
	for i := range t.entries {
		if !t.entries[i].same {
			wanted = append(wanted, &t.entries[i])
		}
	}
	workers := min(8, 2*runtime.GOMAXPROCS(0))
	queue := make(chan chan batch, workers)
	type job struct {
		entries []*entry
		to      chan batch
	}
	jobs := make(chan job)
	go func() {
		defer close(queue)
		var wg sync.WaitGroup
		for range workers {
			wg.Go(func() {
				for j := range jobs {
					j.to <- load(j.entries, hash)
				}
			})
		}
		defer wg.Wait()
		defer close(jobs)
		for from := 0; from < len(wanted); from += batchEntries {
			to := make(chan batch, 1)
			select {
			case queue <- to:
			case <-ctx.Done():
				return
			}
			// A job that was queued is always done: the reader may wait for it.
			jobs <- job{wanted[from:min(from+batchEntries, len(wanted))], to}
		}
	}()
	return queue
}

// load reads the small files and the links of a batch.
func load(entries []*entry, hash bool) batch {
	b := batch{entries: entries, loaded: make([]content, len(entries))}
	total := int64(0)
	for i := range entries {
		if small(entries[i]) {
			total += entries[i].size + 1
		}
	}
	buf := make([]byte, total)
	for i := range entries {
		e, c := entries[i], &b.loaded[i]
		switch {
		case e.mode&fs.ModeSymlink != 0:
			if c.link, c.err = os.Readlink(e.path); hash {
				e.hash = xxhash.Sum64String(c.link)
			}
		case small(e):
			// One byte more than it was long shows whether it grew.
			var n int
			n, c.err = readAll(e.path, buf[:e.size+1])
			c.data, c.ok = buf[:min(int64(n), e.size):e.size], int64(n) <= e.size
			buf = buf[e.size+1:]
			if hash && c.ok {
				e.hash, e.size = xxhash.Sum64(c.data), int64(len(c.data))
			}
		}
		if errors.Is(c.err, fs.ErrNotExist) {
			c.gone, c.err = true, nil
		}
	}
	return b
}

func small(e *entry) bool { return e.mode.IsRegular() && e.size <= smallFile && e.data == nil }

// readAll reads a file into buf and returns how much there was of it. It is made
// of system calls because os.File would add three to the four that are needed.
func readAll(path string, buf []byte) (n int, err error) {
	fd, err := openRegular(path)
	if err != nil {
		return 0, err
	}
	defer func() { _ = unix.Close(fd) }()
	for n < len(buf) {
		got, err := unix.Read(fd, buf[n:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0, &fs.PathError{Op: "read", Path: path, Err: err}
		}
		if got == 0 {
			return n, nil
		}
		n += got
	}
	return n, nil
}

// openRegular opens a file that was a regular one a moment ago, without waiting
// for anybody should it be a fifo by now.
func openRegular(path string) (int, error) {
	for {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		if err == unix.EINTR {
			continue
		}
		if err == unix.ELOOP || err == unix.ENXIO {
			err = unix.ENOENT // the file is gone, something else is in its place
		}
		if err != nil {
			return -1, &fs.PathError{Op: "open", Path: path, Err: err}
		}
		return fd, nil
	}
}

// tarWriter writes entries.
type tarWriter struct {
	*tar.Writer
	opts WriteOptions
	sent int64
	buf  []byte
}

func (w *tarWriter) entry(ctx context.Context, e *entry, c content) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	switch {
	case c.err != nil:
		return pathErr(e.path, c.err)
	case c.gone:
		w.changed(e)
		return nil
	}
	h := &tar.Header{
		Name: join(w.opts.Prefix, e.name), Mode: int64(e.mode.Perm()), ModTime: e.time, Uid: e.uid, Gid: e.gid,
	}
	switch {
	case e.name == "" && w.opts.Prefix == "":
		return nil // the destination stands for it
	case e.name == "":
		h.Name = w.opts.Prefix
	}
	switch {
	case e.mode.IsDir():
		if e.mode&fs.ModeSticky != 0 {
			h.Mode |= 0o1000
		}
		h.Typeflag, h.Name = tar.TypeDir, h.Name+"/"
		return w.header(h)
	case e.mode&fs.ModeSymlink != 0:
		h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, c.link, 0o777
		return w.header(h)
	}
	h.Typeflag = tar.TypeReg
	data := c.data
	if e.data != nil {
		data, c.ok = e.data, true
	}
	if !c.ok {
		return w.stream(ctx, e, h)
	}
	h.Size = int64(len(data))
	if err := w.header(h); err != nil {
		return err
	}
	return w.contents(data)
}

func (w *tarWriter) header(h *tar.Header) error {
	if err := w.WriteHeader(h); err != nil {
		return fmt.Errorf("write the header of %s: %w", h.Name, err)
	}
	return nil
}

func (w *tarWriter) contents(p []byte) error {
	_, err := w.Write(p)
	if w.sent += int64(len(p)); w.opts.Progress != nil {
		w.opts.Progress(w.sent)
	}
	return err
}

func (w *tarWriter) changed(e *entry) {
	if w.opts.Changed != nil {
		w.opts.Changed(e.path)
	}
}

// stream writes a file that was not read ahead.
func (w *tarWriter) stream(ctx context.Context, e *entry, h *tar.Header) error {
	fd, err := openRegular(e.path)
	if errors.Is(err, fs.ErrNotExist) {
		w.changed(e)
		return nil
	}
	if err != nil {
		return pathErr(e.path, err)
	}
	defer func() { _ = unix.Close(fd) }()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return pathErr(e.path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		w.changed(e)
		return nil
	}
	_ = unix.Fadvise(fd, 0, 0, unix.FADV_SEQUENTIAL)
	h.Size, h.ModTime = st.Size, time.Unix(st.Mtim.Sec, 0)
	if err := w.header(h); err != nil {
		return err
	}
	sum := xxhash.New()
	if w.opts.Hash {
		e.size = st.Size
		defer func() { e.hash = sum.Sum64() }()
	}
	if w.buf == nil {
		w.buf = make([]byte, 256<<10)
	}
	for left := st.Size; left > 0; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := unix.Read(fd, w.buf[:min(left, int64(len(w.buf)))])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return pathErr(e.path, err)
		}
		if n == 0 {
			w.changed(e)
			return w.zeros(ctx, left)
		}
		if w.opts.Hash {
			_, _ = sum.Write(w.buf[:n])
		}
		if err := w.contents(w.buf[:n]); err != nil {
			return err
		}
		left -= int64(n)
	}
	return nil
}

// zeros fills up a file that lost its end while it was read.
func (w *tarWriter) zeros(ctx context.Context, n int64) error {
	clear(w.buf)
	for n > 0 {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		part := w.buf[:min(n, int64(len(w.buf)))]
		if err := w.contents(part); err != nil {
			return err
		}
		n -= int64(len(part))
	}
	return nil
}
