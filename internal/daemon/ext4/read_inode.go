package ext4

import (
	"cmp"
	"errors"
	"strings"

	"banger/internal/errdefs"
)

// More flags of inodes.
const (
	flagInline  = 0x10000000 // the content is in the inode
	flagEncrypt = 0x800
	flagVerity  = 0x100000
)

// inode is an inode that is read. raw ends where attributes in the inode do.
type inode struct {
	raw                 []byte
	ino, generation     uint32
	seed                uint32 // of checksums of what belongs to it
	mode, flags         uint32
	uid, gid            uint32
	links               uint32
	size                int64
	sectors             uint64
	attrBlock           uint64
	extra               int // what the fields after the first 128 bytes take
	access, modify, chg Time
	rdev                Device
}

func (n *inode) is(mode uint32) bool { return n.mode&modeType == mode }

// readInode reads an inode that something leads to.
func (f *FS) readInode(ino uint32) (*inode, error) {
	n, err := f.parseInode(ino)
	return n, errdefs.Wrap(err, "inode %d", ino)
}

func (f *FS) parseInode(ino uint32) (*inode, error) {
	if ino == 0 || ino > f.inodes || ino < firstIno && ino != rootIno {
		return nil, errdefs.Invalid("it is not one of files")
	}
	return f.loadInode(ino)
}

// loadInode is parseInode for those that nothing leads to, too.
func (f *FS) loadInode(ino uint32) (*inode, error) {
	table, err := f.inodeTable((ino - 1) / f.perGroup)
	if err != nil {
		return nil, err
	}
	at := uint64((ino-1)%f.perGroup) * uint64(f.inodeSize)
	block, err := f.block(table + at/uint64(f.size))
	if err != nil {
		return nil, err
	}
	p := block[at%uint64(f.size):][:f.inodeSize:f.inodeSize]
	n := &inode{
		raw: p, ino: ino, generation: le.Uint32(p[100:]), mode: uint32(le.Uint16(p[0:])), flags: le.Uint32(p[32:]),
		uid: uint32(le.Uint16(p[2:])) | uint32(le.Uint16(p[120:]))<<16, gid: uint32(le.Uint16(p[24:])) | uint32(le.Uint16(p[122:]))<<16,
		links: uint32(le.Uint16(p[26:])), sectors: uint64(le.Uint32(p[28:])) | uint64(le.Uint16(p[116:]))<<32,
		attrBlock: uint64(le.Uint32(p[104:])) | uint64(le.Uint16(p[118:]))<<32,
	}
	size := uint64(le.Uint32(p[4:]))
	if n.is(modeFile) || n.is(modeDir) { // of others the second half had another meaning once
		size |= uint64(le.Uint32(p[108:])) << 32
	}
	if f.inodeSize > 128 {
		n.extra = int(le.Uint16(p[128:]))
		if n.extra%4 != 0 || 128+n.extra > f.inodeSize {
			return nil, errdefs.Invalid("it says that %d bytes of it are used", 128+n.extra)
		}
	}
	n.seed = crcInt(crcInt(f.seed, ino), n.generation)
	if f.sums && !n.sound() {
		return nil, errdefs.Invalid("its checksum is wrong")
	}
	// Block numbers in a file have 32 bits.
	if size >= 1<<32*uint64(f.size) {
		return nil, errdefs.Invalid("a size of %d bytes cannot be", size)
	}
	n.size = int64(size)
	switch {
	case n.links == 0:
		return nil, errdefs.Invalid("it is not in use")
	case n.flags&(flagEncrypt|flagVerity) != 0:
		return nil, errdefs.Unsupported("it is encrypted or sealed")
	}
	for _, t := range []struct {
		to        *Time
		sec, more int
	}{{&n.access, 8, 140}, {&n.chg, 12, 132}, {&n.modify, 16, 136}} {
		var extra uint32
		if 128+n.extra >= t.more+4 {
			extra = le.Uint32(p[t.more:])
		}
		var ok bool
		if *t.to, ok = decode(le.Uint32(p[t.sec:]), extra); !ok {
			return nil, errdefs.Invalid("a time of it cannot be")
		}
	}
	switch n.mode & modeType {
	case modeFile, modeDir, modeLink, modeFifo, modeSocket:
	case modeChar, modeBlock:
		if short := le.Uint32(p[40:]); short != 0 {
			n.rdev = Device{short >> 8 & 0xff, short & 0xff}
		} else {
			long := le.Uint32(p[44:])
			n.rdev = Device{long >> 8 & 0xfff, long&0xff | long>>12&0xfff00}
		}
	default:
		return nil, errdefs.Invalid("mode %#o says no type that is known", n.mode)
	}
	return n, nil
}

// sound compares the checksum.
func (n *inode) sound() bool {
	p := append([]byte(nil), n.raw...)
	want, mask := uint32(le.Uint16(p[124:])), uint32(0xffff)
	le.PutUint16(p[124:], 0)
	if n.extra >= 4 {
		want, mask = want|uint32(le.Uint16(p[130:]))<<16, ^uint32(0)
		le.PutUint16(p[130:], 0)
	}
	return crc(n.seed, p)&mask == want
}

// inlineContent is the content of an inode that has it in itself.
func (n *inode) inlineContent() ([]byte, error) {
	p := append([]byte(nil), n.raw[40:100]...)
	more, err := n.inlineMore()
	if p = append(p, more...); err == nil && int64(len(p)) < n.size {
		err = errdefs.Invalid("of its %d bytes %d are there", n.size, len(p))
	}
	return p, err
}

// inlineMore is the part of such content that is an attribute.
func (n *inode) inlineMore() (more []byte, err error) {
	err = n.inlineAttrs(func(index uint8, name string, value []byte) error {
		if index == attrSystem && name == "data" {
			more = value
		}
		return nil
	})
	return more, err
}

// target reads the target of a symbolic link.
func (f *FS) target(n *inode) (string, error) {
	var p []byte
	own := uint64(0) // sectors that are not of the content
	if n.attrBlock != 0 {
		own = uint64(f.size) / 512
	}
	var err error
	switch {
	case n.size == 0 || n.size >= f.size && n.size > fastTarget:
		return "", errdefs.Invalid("the target of a symbolic link cannot have %d bytes", n.size)
	case n.flags&flagInline != 0:
		p, err = n.inlineContent()
	case n.size < fastTarget && n.flags&flagExtents == 0 && n.sectors <= own:
		p = n.raw[40:100]
	default:
		p, err = f.firstBlock(n)
	}
	if err != nil {
		return "", err
	}
	s := string(p[:n.size])
	if strings.Contains(s, "\x00") {
		return "", errdefs.Invalid("the target of a symbolic link has a zero byte")
	}
	return s, nil
}

// errEnough ends a walk that has found what it was for.
var errEnough = errors.New("enough")

// firstBlock returns the first block of the content, which must be there.
func (f *FS) firstBlock(n *inode) (p []byte, err error) {
	err = f.claim(n, set{}, func(e extent) (err error) {
		if e.logical == 0 {
			p, err = f.block(e.start)
		}
		return cmp.Or(err, errEnough)
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	if err == nil && p == nil {
		err = errdefs.Invalid("its content is missing")
	}
	return p, err
}
