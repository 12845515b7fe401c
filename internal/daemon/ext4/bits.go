package ext4

import "math/bits"

// bitmap says of each block of a group whether it is in a set.
type bitmap [groupBlocks / 64]uint64

// set adds the blocks from up to, but without, to.
func (b *bitmap) set(from, to uint32) {
	for i := from / 64; i*64 < to; i++ {
		b[i] |= mask(i, from, to)
	}
}

// clear takes them out.
func (b *bitmap) clear(from, to uint32) {
	for i := from / 64; i*64 < to; i++ {
		b[i] &^= mask(i, from, to)
	}
}

// any says whether one of them is in the set.
func (b *bitmap) any(from, to uint32) bool {
	for i := from / 64; i*64 < to; i++ {
		if b[i]&mask(i, from, to) != 0 {
			return true
		}
	}
	return false
}

// all says whether all of them are in the set.
func (b *bitmap) all(from, to uint32) bool {
	for i := from / 64; i*64 < to; i++ {
		if m := mask(i, from, to); b[i]&m != m {
			return false
		}
	}
	return true
}

// mask has the bits of word i that are of the blocks from up to to.
func mask(i, from, to uint32) uint64 {
	m := ^uint64(0)
	if at := i * 64; from > at {
		m <<= from - at
	}
	if end := i*64 + 64; to < end {
		m &= ^uint64(0) >> (end - to)
	}
	return m
}

// run finds the first blocks in a row, at or after from, that are in the set, or that
// are not. There is none when n is 0.
func (b *bitmap) run(from uint32, in bool) (start, n uint32) {
	start = b.next(from, in)
	return start, b.next(start, !in) - start
}

func (b *bitmap) next(from uint32, in bool) uint32 {
	for i := from / 64; i < uint32(len(b)); i++ {
		word := b[i]
		if !in {
			word = ^word
		}
		if word &= mask(i, from, groupBlocks); word != 0 {
			return i*64 + uint32(bits.TrailingZeros64(word))
		}
	}
	return groupBlocks
}

func (b *bitmap) count() (n uint32) {
	for _, word := range b {
		n += uint32(bits.OnesCount64(word))
	}
	return n
}

func (b *bitmap) append(p []byte) []byte {
	for _, word := range b {
		p = le.AppendUint64(p, word)
	}
	return p
}
