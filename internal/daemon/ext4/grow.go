package ext4

import (
	"bytes"
	"fmt"
	"io"

	"banger/internal/errdefs"
)

// Grow makes a filesystem that a Writer has made, and no kernel has mounted for writing
// since, size bytes large, less what is no whole block. It reads the filesystem from r
// and writes to w what is to be different: superblock, descriptors and their copies, and
// the bitmap of the last group. The two may be one file; or w is an overlay of r, which
// must read as zeros beyond the end of r. The inode tables of new groups stay unwritten.
//
// Anything that is not as a Writer left it is refused with class failed_precondition,
// and a size for which no descriptors are reserved (at least 1 TiB, or four times what
// the filesystem was made with, is possible) with class unsupported. Then the guest's
// kernel must grow it.
func Grow(r io.ReaderAt, w io.WriterAt, size int64) error {
	g := &growth{r: r, w: w}
	if err := g.read(); err != nil {
		return errdefs.Wrap(err, "grow a filesystem")
	}
	blocks := uint64(max(size, 0)) / blockSize
	if blocks < g.old.blocks {
		return errdefs.Invalid("grow a filesystem of %d bytes to %d: it would be smaller", g.old.blocks*blockSize, size)
	}
	l := *g.old
	whole := l.gdt + l.reserved
	if most := uint64(whole) * descsPer * groupBlocks; blocks > min(most, maxBlocks) {
		return errdefs.Unsupported("grow a filesystem to %d bytes: there is room for the descriptors of %d", size, min(most, maxBlocks)*blockSize)
	}
	l.resize(blocks)
	l.gdt = (l.groups + descsPer - 1) / descsPer
	l.reserved = whole - l.gdt
	if uint64(l.groups)*uint64(l.inodes) > 1<<32-1 {
		return errdefs.Unsupported("grow a filesystem to %d bytes: it would have too many inodes", size)
	}
	if l.blocks == g.old.blocks {
		return nil
	}
	return errdefs.Wrap(g.write(&l), "grow a filesystem")
}

// growth is a filesystem that becomes larger.
type growth struct {
	r     io.ReaderAt
	w     io.WriterAt
	old   *layout
	seed  uint32
	super []byte
	descs []byte
	out   []block // written when all is known to be in order
}

var errNotOurs = errdefs.Precondition("it is not, or not any more, as it was made")

// read reads and checks what must be known.
func (g *growth) read() error {
	p, err := g.bytes(superAt, superLen)
	if err != nil {
		return err
	}
	same := func(at int, want ...byte) bool { return bytes.Equal(p[at:at+len(want)], want) }
	number := func(at int, want uint32) bool { return le.Uint32(p[at:]) == want }
	asMade := le.Uint16(p[0x38:]) == 0xef53 && number(0x3fc, crc(^uint32(0), p[:0x3fc])) &&
		same(markAt, []byte(mark)...) &&
		number(0x5c, compat) && number(0x60, incompat) && number(0x64, readonly) &&
		number(0x18, 2) && number(0x20, groupBlocks) && le.Uint16(p[0xfe:]) == descSize &&
		le.Uint16(p[0x3a:]) == 1 && // clean
		le.Uint16(p[0x34:]) == 0 && number(0x2c, 0) && p[0x275] == 0 && // never mounted
		bytes.Equal(p[0x30:0x34], p[0x108:0x10c]) && p[0x274] == p[0x276] && // nor written to by a tool
		number(0xe8, 0) // no orphans
	l := &layout{
		blocks:   uint64(le.Uint32(p[0x04:])) | uint64(le.Uint32(p[0x150:]))<<32,
		inodes:   le.Uint32(p[0x28:]),
		reserved: uint32(le.Uint16(p[0xce:])),
		journal:  le.Uint32(p[0x14c:]) / blockSize,
	}
	if !asMade || l.blocks < minBlocks || l.blocks > maxBlocks || l.reserved > pointersPer ||
		l.inodes < inodesPer || l.inodes%inodesPer != 0 || l.inodes > maxInodesPerGroup || l.journal > groupBlocks {
		return errNotOurs
	}
	l.groups = uint32((l.blocks + groupBlocks - 1) / groupBlocks)
	l.gdt = (l.groups + descsPer - 1) / descsPer
	last := l.groups - 1
	if !number(0, l.groups*l.inodes) || l.firstData() > l.groupLen(0) || l.base(last)+minTail > l.groupLen(last) {
		return errNotOurs
	}
	g.old, g.super, g.seed = l, p, uuidSeed([16]byte(p[0x68:0x78]))
	if g.descs, err = g.bytes(blockSize, int(l.gdt)*blockSize); err != nil {
		return err
	}
	for n := range l.groups {
		d := g.desc(n)
		sum := le.Uint16(d[0x1e:])
		le.PutUint16(d[0x1e:], 0)
		if sum != descSum(d, n, g.seed) || uint64(le.Uint32(d))|uint64(le.Uint32(d[0x20:]))<<32 != l.blockBitmap(n) {
			return errNotOurs
		}
		le.PutUint16(d[0x1e:], sum)
	}
	return nil
}

func (g *growth) desc(n uint32) []byte { return g.descs[n*descSize:][:descSize] }

func (g *growth) bytes(at int64, n int) ([]byte, error) {
	p := make([]byte, n)
	if k, err := g.r.ReadAt(p, at); k < n {
		return nil, fmt.Errorf("read: %w", err)
	}
	return p, nil
}

// block is a block that is to be written.
type block struct {
	at int64 // in bytes
	p  []byte
}

// write writes what is different by the layout l.
func (g *growth) write(l *layout) error {
	free := uint64(le.Uint32(g.super[0x0c:])) | uint64(le.Uint32(g.super[0x158:]))<<32
	freeInodes := uint64(le.Uint32(g.super[0x10:]))
	more, err := g.stretch(l)
	if err != nil {
		return err
	}
	free += uint64(more)
	g.descs = append(g.descs, make([]byte, int(l.gdt)*blockSize-len(g.descs))...)
	for n := g.old.groups; n < l.groups; n++ {
		d := l.unused(n)
		free += uint64(d.freeBlocks)
		freeInodes += uint64(d.freeInodes)
		if n == l.groups-1 { // its bitmap must be there
			p := l.empty(n).append(nil)
			d.flags &^= blocksUnused
			d.blockSum = crc(g.seed, p)
			g.out = append(g.out, block{int64(l.blockBitmap(n)) * blockSize, p})
		}
		d.put(g.desc(n), l, n, g.seed)
	}
	if err := g.resizeInode(l); err != nil {
		return err
	}
	for _, b := range g.out {
		if _, err := g.w.WriteAt(b.p, b.at); err != nil {
			return fmt.Errorf("write: %w", err)
		}
	}
	l.putSuper(g.super, free, freeInodes)
	return l.writeHeads(g.w, g.super, g.descs)
}

// stretch makes the group that was the last one as long as it is now, and says by how
// many blocks that is.
func (g *growth) stretch(l *layout) (uint32, error) {
	last := g.old.groups - 1
	was, is := g.old.groupLen(last), l.groupLen(last)
	if was == is {
		return 0, nil
	}
	d := g.desc(last)
	p, err := g.bytes(int64(l.blockBitmap(last))*blockSize, blockSize)
	if err != nil {
		return 0, err
	}
	sum := crc(g.seed, p)
	if le.Uint16(d[0x12:])&blocksUnused != 0 || le.Uint16(d[0x18:]) != uint16(sum) || le.Uint16(d[0x38:]) != uint16(sum>>16) {
		return 0, errNotOurs
	}
	var b bitmap
	for i := range b {
		b[i] = le.Uint64(p[8*i:])
	}
	b.clear(was, is)
	p = b.append(p[:0])
	sum = crc(g.seed, p)
	le.PutUint16(d[0x18:], uint16(sum))
	le.PutUint16(d[0x38:], uint16(sum>>16))
	free := uint32(le.Uint16(d[0x0c:])) | uint32(le.Uint16(d[0x2c:]))<<16 + is - was
	le.PutUint16(d[0x0c:], uint16(free))
	le.PutUint16(d[0x2c:], uint16(free>>16))
	le.PutUint16(d[0x1e:], 0)
	le.PutUint16(d[0x1e:], descSum(d, last, g.seed))
	g.out = append(g.out, block{int64(l.blockBitmap(last)) * blockSize, p})
	return is - was, nil
}

// resizeInode counts the blocks of the resize inode anew.
func (g *growth) resizeInode(l *layout) error {
	at := int64(l.inodeTable(0)) * blockSize
	p, err := g.bytes(at, blockSize)
	if err != nil {
		return err
	}
	r := (*rawInode)(p[(resizeIno-1)*inodeSize:])
	was := *r
	was.seal(g.seed, resizeIno)
	if was != *r {
		return errNotOurs
	}
	r.setBlocks(l.resizeBlocks())
	r.seal(g.seed, resizeIno)
	g.out = append(g.out, block{at, p})
	return nil
}
