package ext4

import "context"

// Flags of inodes.
const (
	flagIndex   = 0x1000  // a directory with hashes
	flagExtents = 0x80000 // blocks are found by extents
)

const (
	extraSize  = 32              // what the fields after the first 128 bytes take
	inlineAt   = 128 + extraSize // extended attributes in the inode
	fastTarget = 60              // a shorter target is in the inode
)

// rawInode is an inode as it is on disk.
type rawInode [inodeSize]byte

func (r *rawInode) setSize(n int64) {
	le.PutUint32(r[4:], uint32(n))
	le.PutUint32(r[108:], uint32(n>>32))
}

// setBlocks sets how many blocks the inode has, those that lead to others included.
func (r *rawInode) setBlocks(n uint64) {
	n *= sectors
	le.PutUint32(r[28:], uint32(n))
	le.PutUint16(r[116:], uint16(n>>32))
}

func (r *rawInode) setTimes(access, change, modify, birth Time) {
	for _, f := range []struct {
		t         Time
		sec, more int
	}{{access, 8, 140}, {change, 12, 132}, {modify, 16, 136}, {birth, 144, 148}} {
		sec, extra := f.t.encode()
		le.PutUint32(r[f.sec:], sec)
		le.PutUint32(r[f.more:], extra)
	}
}

// seal sets the checksum.
func (r *rawInode) seal(seed, ino uint32) {
	le.PutUint16(r[124:], 0)
	le.PutUint16(r[130:], 0)
	sum := crc(inodeSeed(seed, ino), r[:])
	le.PutUint16(r[124:], uint16(sum))
	le.PutUint16(r[130:], uint16(sum>>16))
}

// own is an inode of the filesystem's own.
func (w *Writer) own(blocks uint64, size int64) *rawInode {
	r := &rawInode{}
	le.PutUint16(r[0:], modeFile|0o600)
	le.PutUint16(r[26:], 1)
	le.PutUint16(r[128:], extraSize)
	r.setSize(size)
	r.setBlocks(blocks)
	r.setTimes(w.o.Now, w.o.Now, w.o.Now, w.o.Now)
	return r
}

// inode makes the inode of a file, and writes what belongs to it alone.
func (t *tree) inode(ctx context.Context, ln *lane, n *Inode) (*rawInode, error) {
	r := &rawInode{}
	le.PutUint16(r[0:], uint16(n.Mode))
	le.PutUint16(r[2:], uint16(n.UID))
	le.PutUint16(r[120:], uint16(n.UID>>16))
	le.PutUint16(r[24:], uint16(n.GID))
	le.PutUint16(r[122:], uint16(n.GID>>16))
	le.PutUint16(r[128:], extraSize)
	links := n.links
	if links > maxLinks { // a directory: 1 stands for more than can be counted
		links = 1
	}
	le.PutUint16(r[26:], uint16(links))
	r.setTimes(n.MTime, t.w.o.Now, n.MTime, t.w.o.Now)

	var blocks uint64
	data := &n.Data
	switch n.Mode & modeType {
	case modeDir:
		d, err := t.writeDir(ctx, ln, n)
		if err != nil {
			return nil, err
		}
		data = &d
		if d.size > blockSize {
			le.PutUint32(r[32:], flagIndex)
		}
	case modeFile:
	case modeLink:
		if len(n.Target) < fastTarget {
			r.setSize(int64(len(n.Target)))
			copy(r[40:], n.Target)
			data = nil
			break
		}
		p, at, err := ln.block(ctx)
		if err != nil {
			return nil, err
		}
		copy(p, n.Target)
		data = &Data{size: int64(len(n.Target))}
		data.add(0, at)
	case modeChar, modeBlock:
		if major, minor := n.Rdev.Major, n.Rdev.Minor; major < 256 && minor < 256 {
			le.PutUint32(r[40:], major<<8|minor)
		} else {
			le.PutUint32(r[44:], minor&0xff|major<<8|minor&^0xff<<12)
		}
		data = nil
	default:
		data = nil
	}
	if data != nil {
		r.setSize(data.size)
		le.PutUint32(r[32:], le.Uint32(r[32:])|flagExtents)
		more, err := t.writeExtents(ctx, ln, data, n.ino, r[40:100])
		if err != nil {
			return nil, err
		}
		blocks = data.blocks() + more
	}
	if len(n.Xattrs) > 0 {
		at, err := t.writeAttrs(ctx, ln, n, r[inlineAt:])
		if err != nil {
			return nil, err
		}
		if at != 0 {
			le.PutUint32(r[104:], uint32(at))
			le.PutUint16(r[118:], uint16(at>>32))
			blocks++
		}
	}
	r.setBlocks(blocks)
	r.seal(t.w.seed, n.ino)
	return r, nil
}

// write writes all inodes, in order, and what belongs to them.
func (t *tree) write(ctx context.Context, ln *lane) error {
	l := t.w.l
	table := table{w: t.w}
	own := map[uint32]*rawInode{resizeIno: t.w.resizeInode(), journalIno: t.w.journalInode()}
	for ino := uint32(1); ino < t.next(); ino++ {
		raw := own[ino]
		switch {
		case ino == rootIno || ino >= firstIno:
			n := t.order[0]
			if ino != rootIno {
				n = t.order[ino-firstIno+1]
			}
			var err error
			if raw, err = t.inode(ctx, ln, n); err != nil {
				return err
			}
		case raw == nil:
			raw = &rawInode{} // reserved
		}
		if err := table.add(raw, l.inodeTable((ino-1)/l.inodes)*blockSize+uint64((ino-1)%l.inodes)*inodeSize); err != nil {
			return err
		}
		if ino%checkEvery == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return table.flush()
}

// table writes inodes in large pieces.
type table struct {
	w   *Writer
	at  uint64 // in bytes
	buf []byte
}

func (tb *table) add(r *rawInode, at uint64) error {
	if tb.at+uint64(len(tb.buf)) != at || len(tb.buf) == bufferSize {
		if err := tb.flush(); err != nil {
			return err
		}
		tb.at = at
	}
	tb.buf = append(tb.buf, r[:]...)
	return nil
}

func (tb *table) flush() error {
	if len(tb.buf) == 0 {
		return nil
	}
	if rest := len(tb.buf) % blockSize; rest > 0 {
		tb.buf = append(tb.buf, zeros[rest:]...)
	}
	err := tb.w.writeAt(tb.buf, tb.at/blockSize)
	tb.buf = tb.buf[:0]
	return err
}
