package ext4

import "context"

// Features, as the superblock has them.
const (
	compat   = 0x04 | 0x08 | 0x10 | 0x20                // has_journal, ext_attr, resize_inode, dir_index
	incompat = 0x02 | 0x40 | 0x80 | 0x200               // filetype, extents, 64bit, flex_bg
	readonly = 0x01 | 0x02 | 0x08 | 0x20 | 0x40 | 0x400 // sparse_super, large_file, huge_file, dir_nlink, extra_isize, metadata_csum
)

const (
	superAt    = 1024 // where in the first block the superblock is
	superLen   = 1024
	superMagic = 0xef53
	mark       = "banger-ext4 0001" // in a part of the superblock that nobody uses
	markAt     = 0x3e0
)

// Flags of groups.
const (
	inodesUnused = 1 // the bitmap of inodes was not written
	blocksUnused = 2 // nor that of blocks
	tableZeroed  = 4 // the inode table is zero where no inode is
)

// desc is a group's descriptor.
type desc struct {
	flags                  uint16
	freeBlocks, freeInodes uint32
	dirs                   uint32
	unusedInodes           uint32 // at the end of the table
	blockSum, inodeSum     uint32 // of the bitmaps
}

// put writes the descriptor of group g.
func (d *desc) put(p []byte, l *layout, g, seed uint32) {
	split := func(lo, hi int, n uint64) {
		le.PutUint32(p[lo:], uint32(n))
		le.PutUint32(p[hi:], uint32(n>>32))
	}
	short := func(lo, hi int, n uint32) {
		le.PutUint16(p[lo:], uint16(n))
		le.PutUint16(p[hi:], uint16(n>>16))
	}
	split(0x00, 0x20, l.blockBitmap(g))
	split(0x04, 0x24, l.inodeBitmap(g))
	split(0x08, 0x28, l.inodeTable(g))
	short(0x0c, 0x2c, d.freeBlocks)
	short(0x0e, 0x2e, d.freeInodes)
	short(0x10, 0x30, d.dirs)
	le.PutUint16(p[0x12:], d.flags)
	short(0x18, 0x38, d.blockSum)
	short(0x1a, 0x3a, d.inodeSum)
	short(0x1c, 0x32, d.unusedInodes)
	le.PutUint16(p[0x1e:], 0)
	le.PutUint16(p[0x1e:], descSum(p, g, seed))
}

// descSum is the checksum of a descriptor, whose field for it is zero.
func descSum(p []byte, g, seed uint32) uint16 { return uint16(crc(crcInt(seed, g), p[:descSize])) }

// unused is the descriptor of a group that nothing was written to.
func (l *layout) unused(g uint32) desc {
	return desc{
		flags:      inodesUnused | blocksUnused | tableZeroed,
		freeBlocks: l.groupLen(g) - l.fixed(g), freeInodes: l.inodes, unusedInodes: l.inodes,
	}
}

// inodeMap is the bitmap of a group of which the first used inodes are used.
func (l *layout) inodeMap(used uint32) []byte {
	var b bitmap
	b.set(0, used)
	b.set(l.inodes, groupBlocks)
	return b.append(make([]byte, 0, blockSize))
}

// super makes the superblock.
func (w *Writer) super(freeBlocks, freeInodes uint64) []byte {
	p := make([]byte, superLen)
	l := w.l
	le.PutUint16(p[0x34:], 0)      // mounts so far
	le.PutUint16(p[0x36:], 0xffff) // and until a check: never
	le.PutUint16(p[0x38:], superMagic)
	le.PutUint16(p[0x3a:], 1) // clean
	le.PutUint16(p[0x3c:], 1) // go on at errors
	le.PutUint32(p[0x18:], 2) // blocks of 1024<<2
	le.PutUint32(p[0x1c:], 2)
	le.PutUint32(p[0x20:], groupBlocks)
	le.PutUint32(p[0x24:], groupBlocks)
	le.PutUint32(p[0x28:], l.inodes)
	now := w.o.Now.Sec
	for at, high := range map[int]int{0x30: 0x274, 0x40: 0x277, 0x108: 0x276} { // written, checked, made
		le.PutUint32(p[at:], uint32(now))
		p[high] = byte(now >> 32)
	}
	le.PutUint32(p[0x4c:], 1) // revision
	le.PutUint32(p[0x54:], firstIno)
	le.PutUint16(p[0x58:], inodeSize)
	le.PutUint32(p[0x5c:], compat)
	le.PutUint32(p[0x60:], incompat)
	le.PutUint32(p[0x64:], readonly)
	copy(p[0x68:], w.o.UUID[:])
	copy(p[0x78:0x88], w.o.Label)
	le.PutUint32(p[0xe0:], journalIno)
	copy(p[0xec:], w.o.HashSeed[:])
	p[0xfc] = halfMD4Version
	p[0xfd] = 1 // a copy of the journal's inode follows below
	le.PutUint16(p[0xfe:], descSize)
	le.PutUint32(p[0x100:], 0x0c) // mount with user.* and ACLs
	journal := w.journalInode()
	copy(p[0x10c:], journal[40:100])
	copy(p[0x148:], journal[108:112])
	copy(p[0x14c:], journal[4:8])
	le.PutUint16(p[0x15c:], extraSize)
	le.PutUint16(p[0x15e:], extraSize)
	le.PutUint32(p[0x160:], 2) // names are hashed as bytes without a sign
	p[0x174] = 4               // groups that the kernel treats as one, as a power of 2
	p[0x175] = 1               // crc32c
	copy(p[markAt:], mark)
	l.putSuper(p, freeBlocks, freeInodes)
	return p
}

// putSuper writes into a superblock what depends on the size.
func (l *layout) putSuper(p []byte, freeBlocks, freeInodes uint64) {
	le.PutUint32(p[0x00:], l.groups*l.inodes)
	le.PutUint32(p[0x04:], uint32(l.blocks))
	le.PutUint32(p[0x150:], uint32(l.blocks>>32))
	le.PutUint32(p[0x0c:], uint32(freeBlocks))
	le.PutUint32(p[0x158:], uint32(freeBlocks>>32))
	le.PutUint32(p[0x10:], uint32(freeInodes))
	le.PutUint16(p[0xce:], uint16(l.reserved))
	le.PutUint32(p[0x248:], uint32(l.overhead()))
}

// sealSuper makes the superblock that of the copy in group g, and sets its checksum.
func sealSuper(p []byte, g uint32) {
	le.PutUint16(p[0x5a:], uint16(g))
	le.PutUint32(p[0x3fc:], crc(^uint32(0), p[:0x3fc]))
}

// writeTables writes bitmaps, descriptors and superblocks, at last the one that makes it
// a filesystem.
func (w *Writer) writeTables(ctx context.Context, t *tree) error {
	l := w.l
	descs := make([]byte, int(l.gdt)*blockSize)
	used := t.next() - 1 // inodes
	freeBlocks := uint64(0)
	for g := range l.groups {
		d := l.unused(g)
		d.freeBlocks = w.space.groups[g].free
		d.dirs = t.dirs[g]
		freeBlocks += uint64(d.freeBlocks)
		inodes := min(used-min(used, g*l.inodes), l.inodes)
		if inodes > 0 {
			p := l.inodeMap(inodes)
			d.flags &^= inodesUnused
			d.freeInodes -= inodes
			d.unusedInodes -= inodes
			d.inodeSum = crc(w.seed, p[:l.inodes/8])
			if err := w.writeAt(p, l.inodeBitmap(g)); err != nil {
				return err
			}
		}
		// The last group's must be there, and so where there are inodes.
		if inodes > 0 || w.space.groups[g].used != nil || g == l.groups-1 {
			p := w.space.bitmap(g).append(make([]byte, 0, blockSize))
			d.flags &^= blocksUnused
			d.blockSum = crc(w.seed, p)
			if err := w.writeAt(p, l.blockBitmap(g)); err != nil {
				return err
			}
		}
		d.put(descs[g*descSize:], l, g, w.seed)
		if g%checkEvery == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
	}
	if err := w.writeAt(journalSuper(l.journal), l.journalStart()); err != nil {
		return err
	}
	super := w.super(freeBlocks, uint64(l.groups)*uint64(l.inodes)-uint64(used))
	return l.writeHeads(w.f, super, descs)
}

// journalInode is the inode of the journal, which is in one piece.
func (w *Writer) journalInode() *rawInode {
	r := w.own(uint64(w.l.journal), int64(w.l.journal)*blockSize)
	le.PutUint32(r[32:], flagExtents)
	putNodes(r[40:100], []node{{0, w.l.journal, w.l.journalStart()}}, inodeFits, 0)
	r.seal(w.seed, journalIno)
	return r
}

// journalSuper is the first block of an empty journal. Its numbers have the highest byte
// first.
func journalSuper(blocks uint32) []byte {
	p := make([]byte, blockSize)
	for at, n := range map[int]uint32{
		0x00: 0xc03b3998,
		0x04: 4, // superblock, second version
		0x0c: blockSize,
		0x10: blocks,
		0x14: 1, // the first block of the log
		0x18: 1, // the first transaction; where it begins is 0: nothing is to be replayed
		0x40: 1, // filesystems that use it
	} {
		be.PutUint32(p[at:], n)
	}
	return p
}
