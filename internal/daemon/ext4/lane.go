package ext4

import (
	"context"
	"slices"

	"banger/internal/errdefs"
)

const (
	// bufferSize is how much is written at once.
	bufferSize = 1 << 20
	// areaBlocks is how large an area is at least where there is space enough: files of
	// a few blocks, written one after the other by one goroutine, then lie in a row.
	areaBlocks = 8 << 20 / blockSize
)

// lane writes blocks one after the other. What is written by different Write calls goes
// through one buffer if it lies in a row, so that small files do not cost a system call
// each. One goroutine has a lane at a time.
type lane struct {
	w    *Writer
	area area
	buf  []byte
	at   uint64 // the block that buf begins with
	n    int    // how many blocks in buf are filled
}

// room returns space in the buffer for one block or more, up to want, and the number of
// the first. It is valid up to the next call. The caller fills it, with whole blocks,
// and says so by fill.
func (ln *lane) room(ctx context.Context, want uint64) ([]byte, uint64, error) {
	if ln.n*blockSize == len(ln.buf) {
		if err := ln.flush(); err != nil {
			return nil, 0, err
		}
	}
	if ln.at+uint64(ln.n) == ln.area.hi {
		if err := ln.flush(); err != nil {
			return nil, 0, err
		}
		if err := ln.advance(ctx, want); err != nil {
			return nil, 0, err
		}
	}
	at := ln.at + uint64(ln.n)
	n := min(want, ln.area.hi-at, uint64(len(ln.buf)/blockSize-ln.n))
	return ln.buf[ln.n*blockSize:][:n*blockSize], at, nil
}

func (ln *lane) fill(blocks int) { ln.n += blocks }

// block is room and fill for one block, which is zero.
func (ln *lane) block(ctx context.Context) ([]byte, uint64, error) {
	p, at, err := ln.room(ctx, 1)
	if err != nil {
		return nil, 0, err
	}
	clear(p)
	ln.fill(1)
	return p, at, nil
}

// advance gets another area.
func (ln *lane) advance(ctx context.Context, want uint64) error {
	space := ln.w.space
	space.take(&ln.area, max(want, areaBlocks))
	if ln.area.lo == ln.area.hi {
		if err := ln.w.reclaim(ctx); err != nil {
			return err
		}
		space.take(&ln.area, max(want, areaBlocks))
	}
	ln.at = ln.area.lo
	if ln.area.lo == ln.area.hi {
		return errdefs.Exhausted("%w: of its %d bytes none are left, and at least %d more are wanted",
			ErrFull, ln.w.l.blocks*blockSize, want*blockSize).WithHint("make the disk larger")
	}
	return nil
}

func (ln *lane) flush() error {
	if ln.n == 0 {
		return nil
	}
	err := ln.w.writeAt(ln.buf[:ln.n*blockSize], ln.at)
	ln.at, ln.n = ln.at+uint64(ln.n), 0
	return err
}

// retire flushes and gives back what is left of the area.
func (ln *lane) retire() error {
	err := ln.flush()
	ln.w.space.untake(&ln.area, ln.at)
	ln.at = 0
	return err
}

// lane hands out an idle lane, or a new one.
func (w *Writer) lane() (*lane, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.finished {
		return nil, errdefs.Internal("write to a filesystem that is finished")
	}
	if n := len(w.idle); n > 0 {
		ln := w.idle[n-1]
		w.idle = w.idle[:n-1]
		return ln, nil
	}
	ln := &lane{w: w, buf: make([]byte, bufferSize)}
	w.space.mu.Lock()
	w.space.areas = append(w.space.areas, &ln.area)
	w.space.mu.Unlock()
	return ln, nil
}

func (w *Writer) release(lanes ...*lane) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.idle = append(w.idle, lanes...)
}

// reclaim makes space of what was discarded and of what idle lanes hold. One at a time
// does so: another one would find nothing left to reclaim, and its space not free yet.
func (w *Writer) reclaim(ctx context.Context) error {
	select {
	case w.reclaiming <- struct{}{}:
		defer func() { <-w.reclaiming }()
	case <-ctx.Done():
		return ctx.Err()
	}
	w.mu.Lock()
	idle := slices.Clone(w.idle)
	w.idle = w.idle[:0]
	w.mu.Unlock()
	defer w.release(idle...)
	for _, ln := range idle {
		if err := ln.retire(); err != nil {
			return err
		}
	}
	w.space.reclaim(w.punch)
	return nil
}
