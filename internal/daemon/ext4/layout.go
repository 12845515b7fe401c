package ext4

import (
	"iter"

	"banger/internal/errdefs"
)

// The shape of every filesystem made here.
const (
	blockSize   = 4096
	sectors     = blockSize / 512 // what the size of an inode is counted in
	groupBlocks = 8 * blockSize   // a group's bitmap is one block
	groupBytes  = groupBlocks * blockSize
	inodeSize   = 256
	descSize    = 64
	descsPer    = blockSize / descSize
	inodesPer   = blockSize / inodeSize
	pointersPer = blockSize / 4

	inodesPerGroup    = groupBytes / 16384
	maxInodesPerGroup = 8 * blockSize

	// maxBlocks bounds a filesystem: the resize inode has block numbers of 32 bits.
	maxBlocks = 1<<32 - groupBlocks
	// minBlocks has room for the metadata, a small journal and little more.
	minBlocks = 8 << 20 / blockSize
	// minTail is what the last group must have besides its own metadata; a shorter one
	// is left unused.
	minTail = 64

	// growTo is to how many bytes any filesystem can be grown at least, and growBy by
	// which factor a large one: for so many descriptors there is room reserved.
	growTo = 1 << 40
	growBy = 4
)

// Numbers of inodes with a purpose.
const (
	rootIno    = 2
	resizeIno  = 7
	journalIno = 8
	firstIno   = 11
)

// layout says where the metadata lies. It follows from a few numbers, so that data can
// be written before the tree is known. Every group has its own bitmaps and its own part
// of the inode table, at its beginning: a new group needs no block of another one, and
// one that nothing was written to is said to be unused in its descriptor alone.
//
//	[superblock, descriptors, reserved for more] in group 0 and those with backups
//	block bitmap, inode bitmap, inode table
//	[the resize inode's block, the journal]      in group 0
//	data
type layout struct {
	blocks   uint64
	groups   uint32
	inodes   uint32 // per group
	gdt      uint32 // blocks of descriptors
	reserved uint32 // blocks after these, for descriptors of more groups
	journal  uint32 // blocks
}

// plan lays out a filesystem of size bytes with at least inodes inodes.
func plan(size, inodes int64) (*layout, error) {
	blocks := uint64(max(size, 0)) / blockSize
	if size%blockSize != 0 || blocks < minBlocks || blocks > maxBlocks {
		return nil, errdefs.Invalid("filesystem of %d bytes: it must have between %d MiB and 16 TiB, in blocks of %d",
			size, minBlocks*blockSize>>20, blockSize)
	}
	l := &layout{inodes: inodesPerGroup, journal: journalBlocks(blocks)}
	l.resize(blocks)
	if per := (inodes + int64(l.groups) - 1) / int64(l.groups); per > int64(l.inodes) {
		if per > maxInodesPerGroup {
			return nil, errdefs.Invalid("filesystem of %d bytes: it cannot have %d inodes, at most %d",
				size, inodes, int64(l.groups)*maxInodesPerGroup)
		}
		l.inodes = (uint32(per) + inodesPer - 1) / inodesPer * inodesPer
	}
	whole := max(growTo, growBy*blocks*blockSize)
	whole = min(whole, maxBlocks*blockSize)
	l.gdt = (l.groups + descsPer - 1) / descsPer
	l.reserved = min(uint32((whole/groupBytes+descsPer-1)/descsPer)-l.gdt, pointersPer)
	l.resize(blocks) // with the metadata known, so is whether the last group is of use
	if l.groups == 0 || l.firstData()+minTail > l.groupLen(0) {
		return nil, errdefs.Invalid("filesystem of %d bytes: it has no room for %d inodes", size, int64(l.groups)*int64(l.inodes))
	}
	if uint64(l.groups)*uint64(l.inodes) > 1<<32-1 {
		return nil, errdefs.Invalid("filesystem of %d bytes: it cannot have %d inodes", size, uint64(l.groups)*uint64(l.inodes))
	}
	return l, nil
}

// resize sets the number of blocks and groups, without a last group that is too short.
func (l *layout) resize(blocks uint64) {
	l.blocks = blocks
	l.groups = uint32((blocks + groupBlocks - 1) / groupBlocks)
	last := l.groups - 1
	if l.groupLen(last) < l.base(last)+minTail {
		l.groups = last
		l.blocks = uint64(last) * groupBlocks
	}
}

// journalBlocks is how long the journal is: half a group, less where that is much.
func journalBlocks(blocks uint64) uint32 {
	switch {
	case blocks < 128<<20/blockSize:
		return 1024
	case blocks < 1<<30/blockSize:
		return 4096
	}
	return 16384
}

// hasSuper says whether a group has a copy of the superblock and of the descriptors.
func hasSuper(group uint32) bool {
	if group <= 1 {
		return true
	}
	for _, base := range []uint32{3, 5, 7} {
		n := group
		for n%base == 0 {
			n /= base
		}
		if n == 1 {
			return true
		}
	}
	return false
}

// backups are the groups with a copy of the superblock, but the first.
func (l *layout) backups() iter.Seq[uint32] {
	return func(yield func(uint32) bool) {
		for g := uint32(1); g < l.groups; g++ {
			if hasSuper(g) && !yield(g) {
				return
			}
		}
	}
}

func (l *layout) start(group uint32) uint64 { return uint64(group) * groupBlocks }

func (l *layout) groupLen(group uint32) uint32 {
	return uint32(min(groupBlocks, l.blocks-l.start(group)))
}

// head is how many blocks at the beginning of a group superblock and descriptors take.
func (l *layout) head(group uint32) uint32 {
	if !hasSuper(group) {
		return 0
	}
	return 1 + l.gdt + l.reserved
}

func (l *layout) tableBlocks() uint32 { return l.inodes / inodesPer }

// base is how many blocks at the beginning of a group its own metadata takes.
func (l *layout) base(group uint32) uint32 { return l.head(group) + 2 + l.tableBlocks() }

func (l *layout) blockBitmap(group uint32) uint64 { return l.start(group) + uint64(l.head(group)) }
func (l *layout) inodeBitmap(group uint32) uint64 { return l.blockBitmap(group) + 1 }
func (l *layout) inodeTable(group uint32) uint64  { return l.blockBitmap(group) + 2 }

func (l *layout) resizeBlock() uint64  { return uint64(l.base(0)) }
func (l *layout) journalStart() uint64 { return l.resizeBlock() + 1 }
func (l *layout) firstData() uint32    { return uint32(l.journalStart()) + l.journal }

// fixed is how many blocks at the beginning of a group are taken in an empty filesystem.
func (l *layout) fixed(group uint32) uint32 {
	if group == 0 {
		return l.firstData()
	}
	return l.base(group)
}

// empty is the bitmap of a group in an empty filesystem.
func (l *layout) empty(g uint32) *bitmap {
	b := &bitmap{}
	b.set(0, l.fixed(g))
	b.set(l.groupLen(g), groupBlocks)
	return b
}

// overhead is how many blocks no file can ever have.
func (l *layout) overhead() uint64 {
	n := uint64(l.journal)
	for g := range l.groups {
		n += uint64(l.base(g))
	}
	return n
}
