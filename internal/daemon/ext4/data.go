package ext4

import (
	"bytes"
	"context"
	"errors"
	"io"

	"banger/internal/errdefs"
)

// maxFile is how large a file can be, in bytes: block numbers in it have 32 bits, and
// the last one is not used.
const maxFile = (1<<32 - 1) * blockSize

// extent is a run of blocks of a file.
type extent struct {
	logical uint32
	n       uint32
	start   uint64
}

// Data is the content of a regular file, or rather where it lies. The zero Data is that
// of an empty file. Each is for one Inode, and for the Writer that it comes from.
type Data struct {
	size  int64
	first extent   // of most files the only one
	more  []extent // by logical block; nothing is merged that could be
}

// Size is the length of the file in bytes.
func (d *Data) Size() int64 { return d.size }

// Allocated is how many bytes are stored: the rest of the file are holes.
func (d *Data) Allocated() int64 { return int64(d.blocks()) * blockSize }

func (d *Data) blocks() (n uint64) {
	d.each(func(e extent) { n += uint64(e.n) })
	return n
}

func (d *Data) each(f func(extent)) {
	if d.first.n == 0 {
		return
	}
	f(d.first)
	for _, e := range d.more {
		f(e)
	}
}

// add appends a block.
func (d *Data) add(logical uint32, start uint64) {
	last := &d.first
	if len(d.more) > 0 {
		last = &d.more[len(d.more)-1]
	}
	switch {
	case last.n == 0:
		*last = extent{logical, 1, start}
	case last.logical+last.n == logical && last.start+uint64(last.n) == start:
		last.n++
	default:
		d.more = append(d.more, extent{logical, 1, start})
	}
}

// Range is a part of a file in bytes.
type Range struct{ Off, Len int64 }

// Write stores the content of a regular file, which is size bytes read from r. Blocks of
// zeros become holes. Any number of goroutines may call it at the same time. A reader
// that ends early is an error of class invalid_argument, a full filesystem one of class
// exhausted; nothing then stays allocated.
func (w *Writer) Write(ctx context.Context, r io.Reader, size int64) (Data, error) {
	return w.WriteSparse(ctx, r, size, []Range{{0, size}})
}

// WriteSparse is Write for a file with holes: r has what lies in the ranges, one after
// the other. They are in ascending order and within size.
func (w *Writer) WriteSparse(ctx context.Context, r io.Reader, size int64, ranges []Range) (Data, error) {
	if size < 0 || size > maxFile {
		return Data{}, errdefs.Invalid("file of %d bytes: it can have 0 to %d", size, int64(maxFile))
	}
	end := int64(0)
	for _, p := range ranges {
		if p.Off < end || p.Len < 0 || p.Len > size-p.Off {
			return Data{}, errdefs.Invalid("file of %d bytes: its part of %d bytes at %d is outside, or not after the last one", size, p.Len, p.Off)
		}
		end = p.Off + p.Len
	}
	d := Data{size: size}
	if end == 0 {
		return d, nil
	}
	ln, err := w.lane()
	if err != nil {
		return Data{}, err
	}
	defer w.release(ln)
	for from := 0; from < len(ranges); {
		to, first, last := stretch(ranges, from)
		if first < last {
			padded := &padded{r: r, ranges: ranges[from:to], at: first * blockSize}
			if err := ln.copy(ctx, &d, padded, first, last); err != nil {
				w.Free(d)
				if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
					err = errdefs.Invalid("the content of a file of %d bytes ends early: %w", size, err)
				}
				return Data{}, err
			}
		}
		from = to
	}
	return d, nil
}

// stretch returns the blocks, from first up to last, that ranges[from:to] touch, which
// are those without a whole block between them.
func stretch(ranges []Range, from int) (to int, first, last int64) {
	for to = from; to < len(ranges); to++ {
		p := ranges[to]
		if p.Len == 0 {
			continue
		}
		if first < last && p.Off/blockSize > last {
			break
		}
		if first == last {
			first = p.Off / blockSize
		}
		last = (p.Off + p.Len + blockSize - 1) / blockSize
	}
	return to, first, last
}

// padded reads ranges with the gaps between them as zeros, and zeros after the last.
type padded struct {
	r      io.Reader
	ranges []Range
	at     int64 // in the file
}

func (p *padded) Read(b []byte) (int, error) {
	for len(p.ranges) > 0 && p.at >= p.ranges[0].Off+p.ranges[0].Len {
		p.ranges = p.ranges[1:]
	}
	var n int
	var err error
	switch {
	case len(p.ranges) == 0:
		clear(b)
		n = len(b)
	case p.at < p.ranges[0].Off:
		n = int(min(int64(len(b)), p.ranges[0].Off-p.at))
		clear(b[:n])
	default:
		n, err = p.r.Read(b[:min(int64(len(b)), p.ranges[0].Off+p.ranges[0].Len-p.at)])
		if n > 0 {
			err = nil // it may be the end, but not of the zeros; if not it comes again
		}
	}
	p.at += int64(n)
	return n, err
}

var zeros [blockSize]byte

// copy stores the blocks of d from first up to last, which r has.
func (ln *lane) copy(ctx context.Context, d *Data, r io.Reader, first, last int64) error {
	for first < last {
		if err := ctx.Err(); err != nil {
			return err
		}
		p, start, err := ln.room(ctx, uint64(last-first))
		if err != nil {
			return err
		}
		if _, err := io.ReadFull(r, p); err != nil {
			return err
		}
		kept := 0
		for at := 0; at < len(p); at += blockSize {
			block := p[at:][:blockSize]
			if !bytes.Equal(block, zeros[:]) {
				if kept*blockSize != at {
					copy(p[kept*blockSize:], block)
				}
				d.add(uint32(first), start+uint64(kept))
				kept++
			}
			first++
		}
		ln.fill(kept)
	}
	return nil
}

// Free gives the space of content back that is in no tree: another layer hides it. It is
// used again when there is need for it, and punched out of the file then, or by Finish.
// The caller does so once, and forgets d.
func (w *Writer) Free(d Data) {
	d.each(func(e extent) { w.space.discard(e.start, uint64(e.n)) })
}
