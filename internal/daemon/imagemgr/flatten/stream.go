package flatten

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"io"
	"sync"
	"sync/atomic"

	"banger/internal/errdefs"
)

const (
	blockSize = 128 << 10
	blocks    = 16 // read ahead; all memory of a stream but its decoder's
)

// stream is the uncompressed content of a layer. One goroutine decompresses ahead of the
// reader, another hashes.
type stream struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup
	toTar  chan *block
	toHash chan *block
	free   chan *block
	count  func(n int64) error

	cur  *block // that Read is in, from off
	off  int
	hash hash.Hash
	n    int64 // bytes hashed; as hash it is to be read after wg.Wait

	// err is why the stream ended, io.EOF if all is well; it is set before toTar is closed.
	err error
	// failed is err, once a Read has returned it, and if it is not io.EOF: whoever reads
	// the stream through other readers tells by it whose error they return.
	failed error
}

type block struct {
	data  []byte
	users atomic.Int32
}

// newStream begins to read src, which it closes if ctx ends. count is told of what has
// been read and may refuse more.
func newStream(ctx context.Context, src io.ReadCloser, mediaType string, count func(n int64) error) *stream {
	ctx, cancel := context.WithCancel(ctx)
	s := &stream{
		cancel: cancel,
		toTar:  make(chan *block, blocks),
		toHash: make(chan *block, blocks),
		free:   make(chan *block, blocks),
		count:  count,
		hash:   sha256.New(),
	}
	for range blocks {
		s.free <- &block{}
	}
	stop := context.AfterFunc(ctx, func() { src.Close() })
	s.wg.Go(func() {
		defer stop()
		s.err = s.pump(ctx, src, mediaType)
		close(s.toTar)
		close(s.toHash)
	})
	s.wg.Go(func() {
		for b := range s.toHash {
			s.hash.Write(b.data)
			s.n += int64(len(b.data))
			s.release(b)
		}
	})
	return s
}

// Close ends the stream, wherever it is, and waits for its goroutines.
func (s *stream) Close() error {
	s.cancel()
	s.wg.Wait()
	return nil
}

// sum is to be called when Read has returned io.EOF.
func (s *stream) sum() (diffID string, n int64) {
	s.wg.Wait()
	return "sha256:" + hex.EncodeToString(s.hash.Sum(nil)), s.n
}

func (s *stream) release(b *block) {
	if b.users.Add(-1) == 0 {
		s.free <- b
	}
}

// Read implements io.Reader for one goroutine.
func (s *stream) Read(p []byte) (int, error) {
	for s.cur == nil || s.off == len(s.cur.data) {
		if s.cur != nil {
			s.release(s.cur)
		}
		s.cur, s.off = <-s.toTar, 0
		if s.cur == nil {
			if s.err != io.EOF {
				s.failed = s.err
			}
			return 0, s.err
		}
	}
	n := copy(p, s.cur.data[s.off:])
	s.off += n
	return n, nil
}

// pump decompresses src into blocks, for both who take them, until it ends.
func (s *stream) pump(ctx context.Context, src io.Reader, mediaType string) error {
	in := &source{r: src}
	fail := func(err error) error {
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case in.err != nil:
			return errdefs.Wrap(in.err, "read")
		}
		return errdefs.Invalid("decompress: %w", err)
	}
	plain, err := decompress(in, mediaType)
	if err != nil {
		return fail(err)
	}
	defer plain.Close()
	for {
		var b *block
		select {
		case b = <-s.free:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if b.data == nil {
			b.data = make([]byte, blockSize)
		}
		n, err := fill(plain, b.data[:blockSize])
		b.data = b.data[:n]
		b.users.Store(2)
		// There is room for all blocks in either.
		s.toHash <- b
		s.toTar <- b
		if err := s.count(int64(n)); err != nil {
			return err
		}
		switch {
		case err == io.EOF:
			return io.EOF
		case err != nil:
			return fail(err)
		}
	}
}

// fill is io.ReadFull, but for returning r's own error.
func fill(r io.Reader, p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var m int
		m, err = r.Read(p[n:])
		n += m
	}
	return n, err
}

// source remembers the error of a reader, so that it is told from the decoder's.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}
