package ext4

import "banger/internal/errdefs"

const maxDepth = 5 // of an extent tree; the kernel makes no deeper ones

// set is a set of numbers that are near each other: of blocks, or inodes.
type set map[uint64]*bitmap

// add adds n numbers, and reports whether all of them are new.
func (s set) add(from, n uint64) bool {
	for n > 0 {
		part := s[from/groupBlocks]
		if part == nil {
			part = &bitmap{}
			s[from/groupBlocks] = part
		}
		first := uint32(from % groupBlocks)
		last := uint32(min(uint64(first)+n, groupBlocks))
		if part.any(first, last) {
			return false
		}
		part.set(first, last)
		from, n = from+uint64(last-first), n-uint64(last-first)
	}
	return true
}

// blockWalk visits the blocks of one inode.
type blockWalk struct {
	f     *FS
	n     *inode
	taken set // nil: what was taken before does not matter
	next  uint64
	visit func(extent) error
	held  extent // to be visited, and perhaps longer
}

// extents calls visit with the stored parts of an inode's content, in ascending order and
// up to its size. What is allocated and not written is left out, like holes.
func (f *FS) extents(n *inode, visit func(extent) error) error { return f.claim(n, nil, visit) }

// claim is extents, and refuses what has a block that is taken.
func (f *FS) claim(n *inode, taken set, visit func(extent) error) error {
	w := &blockWalk{f: f, n: n, taken: taken, visit: visit}
	var err error
	if n.flags&flagExtents != 0 {
		err = w.nodes(n.raw[40:100], -1, 0, 1<<32)
	} else {
		err = w.pointers()
	}
	if err == nil {
		err = w.flush()
	}
	return err
}

// take notes blocks as this inode's.
func (w *blockWalk) take(at, n uint64) error {
	if at <= w.f.first || at >= w.f.blocks || n > w.f.blocks-at {
		return errdefs.Invalid("%d blocks at %d are outside of the filesystem", n, at)
	}
	if w.taken != nil && !w.taken.add(at, n) {
		return errdefs.Invalid("one of %d blocks at %d is part of something else, too", n, at)
	}
	return nil
}

// found passes on what is stored, once as much of it as is in a row is known.
func (w *blockWalk) found(e extent) error {
	whole := uint64(w.n.size+w.f.size-1) / uint64(w.f.size)
	if uint64(e.logical) >= whole {
		return nil // allocated beforehand
	}
	e.n = uint32(min(uint64(e.n), whole-uint64(e.logical)))
	h := &w.held
	if h.n > 0 && h.logical+h.n == e.logical && h.start+uint64(h.n) == e.start {
		h.n += e.n
		return nil
	}
	err := w.flush()
	*h = e
	return err
}

func (w *blockWalk) flush() error {
	e := w.held
	w.held = extent{}
	if e.n == 0 {
		return nil
	}
	return w.visit(e)
}

// nodes visits a node of an extent tree, whose entries are from low up to high. Depth is
// what it must have, or -1.
func (w *blockWalk) nodes(p []byte, depth int, low, high uint64) error {
	count, fits, its := int(le.Uint16(p[2:])), int(le.Uint16(p[4:])), int(le.Uint16(p[6:]))
	if le.Uint16(p[0:]) != extentMagic || its > maxDepth || depth >= 0 && its != depth ||
		count > fits || 12+12*fits > len(p) || depth >= 0 && count == 0 {
		return errdefs.Invalid("its extents are damaged")
	}
	if depth >= 0 && w.f.sums {
		tail := 12 + 12*fits
		if tail+4 > len(p) || le.Uint32(p[tail:]) != crc(w.n.seed, p[:tail]) {
			return errdefs.Invalid("a checksum of its extents is wrong")
		}
	}
	for i := range count {
		e := p[12+12*i:]
		logical := uint64(le.Uint32(e))
		if logical < max(low, w.next) || logical >= high {
			return errdefs.Invalid("its extents are not in order")
		}
		if its == 0 {
			n, written := uint64(le.Uint16(e[4:])), true
			if n > maxExtent {
				n, written = n-maxExtent, false
			}
			at := uint64(le.Uint32(e[8:])) | uint64(le.Uint16(e[6:]))<<32
			if n == 0 || logical+n > high {
				return errdefs.Invalid("its extents are not in order")
			}
			if err := w.take(at, n); err != nil {
				return err
			}
			w.next = logical + n
			if !written {
				continue
			}
			if err := w.found(extent{uint32(logical), uint32(n), at}); err != nil {
				return err
			}
			continue
		}
		end := high
		if i+1 < count {
			if end = uint64(le.Uint32(e[12:])); end > high {
				return errdefs.Invalid("its extents are not in order")
			}
		}
		at := uint64(le.Uint32(e[4:])) | uint64(le.Uint16(e[8:]))<<32
		if err := w.take(at, 1); err != nil {
			return err
		}
		below, err := w.f.block(at)
		if err != nil {
			return err
		}
		if err := w.nodes(below, its-1, logical, end); err != nil {
			return err
		}
	}
	return nil
}

// pointers visits the blocks of an inode that has a pointer for each.
func (w *blockWalk) pointers() error {
	if err := w.direct(w.n.raw[40:88], 0); err != nil {
		return err
	}
	per := uint64(w.f.size / 4)
	from, covers := uint64(12), per
	for depth := range 3 {
		if at := le.Uint32(w.n.raw[88+4*depth:]); at != 0 {
			if err := w.indirect(uint64(at), depth, from, covers); err != nil {
				return err
			}
		}
		from += covers
		covers *= per
	}
	return nil
}

// indirect visits a block of pointers, which are for covers blocks of the file.
func (w *blockWalk) indirect(at uint64, depth int, from, covers uint64) error {
	if err := w.take(at, 1); err != nil {
		return err
	}
	p, err := w.f.block(at)
	if err != nil || depth == 0 {
		if err == nil {
			err = w.direct(p, from)
		}
		return err
	}
	covers /= uint64(w.f.size / 4)
	for ; len(p) > 0; p = p[4:] {
		if at := le.Uint32(p); at != 0 {
			if err := w.indirect(uint64(at), depth-1, from, covers); err != nil {
				return err
			}
		}
		from += covers
	}
	return nil
}

func (w *blockWalk) direct(p []byte, logical uint64) error {
	for ; len(p) > 0; p, logical = p[4:], logical+1 {
		at := uint64(le.Uint32(p))
		if at == 0 {
			continue
		}
		if logical >= 1<<32 {
			return errdefs.Invalid("it has blocks beyond the end that a file can have")
		}
		if err := w.take(at, 1); err != nil {
			return err
		}
		if err := w.found(extent{uint32(logical), 1, at}); err != nil {
			return err
		}
	}
	return nil
}
