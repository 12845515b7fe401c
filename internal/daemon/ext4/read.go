package ext4

import (
	"errors"
	"fmt"
	"io"
	"math/bits"
	"strings"

	"banger/internal/errdefs"
)

// FS is a filesystem that is read: any of the family of ext2 to ext4, which a guest may
// have written. Nothing in it is believed: checksums are compared where there are some,
// no block counts as part of two files, and whatever does not fit refuses the whole.
// It is for one goroutine at a time.
type FS struct {
	r         io.ReaderAt
	size      int64 // of a block, in bytes
	blocks    uint64
	first     uint64 // block of group 0
	inodes    uint32
	perGroup  uint32 // inodes
	inodeSize int
	descSize  int
	groupLen  uint64 // blocks
	metaFrom  uint32 // first block of descriptors that lies in its own groups
	metaGroup bool
	recover   bool // its journal is to be replayed first
	sums      bool // there are checksums
	descSums  bool // of descriptors, of the older kind
	uuid      []byte
	seed      uint32

	cache map[uint64][]byte
}

// Features that say how a filesystem is to be read.
const (
	hasRecover    = 0x0004
	hasMetaGroups = 0x0010
	has64Bit      = 0x0080
	hasSumSeed    = 0x2000

	roGroupSums = 0x0010
	roBigAlloc  = 0x0200
	roSums      = 0x0400
	roShared    = 0x4000

	hasJournal = 0x0004

	// Those that can be read: filetype, extents, flex_bg, ea_inode (until an attribute
	// needs it), large_dir and inline_data besides.
	readable = hasMetaGroups | has64Bit | hasSumSeed | 0x0002 | 0x0040 | 0x0200 | 0x0400 | 0x4000 | 0x8000
)

// featureNames are the features that a filesystem can be refused for.
var featureNames = map[uint32]string{
	0x0001: "compression", 0x0008: "journal_dev", 0x0100: "mmp", 0x1000: "dirdata", 0x10000: "encrypt", 0x20000: "casefold",
}

const maxCached = 512 // blocks

// Open reads the head of the filesystem in the first size bytes of r. One that was in use
// when its machine ended is read as its kernel would find it: what the journal has is taken
// from there, and nothing is written. Where that cannot be done, or the kernel has found
// errors, it is of class failed_precondition; one that is of no use at all is
// invalid_argument; what only other programs can read unsupported.
func Open(r io.ReaderAt, size int64) (*FS, error) {
	p := make([]byte, superLen)
	if size < superAt+superLen {
		return nil, errdefs.Invalid("read filesystem: %d bytes are too few for one", size)
	}
	if _, err := r.ReadAt(p, superAt); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read filesystem: %w", err)
	}
	f, err := open(r, size, p)
	if err == nil && f.recover {
		f, err = reopen(f, size)
	}
	return f, errdefs.Wrap(err, "read filesystem")
}

// reopen opens a filesystem anew, as it is once its journal is replayed.
func reopen(f *FS, size int64) (*FS, error) {
	r, err := f.replay()
	if err != nil {
		return nil, errdefs.Wrap(err, "replay the journal")
	}
	p := make([]byte, superLen)
	if _, err := r.ReadAt(p, superAt); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	again, err := open(r, size, p)
	if err == nil && again.size != f.size {
		return nil, errdefs.Invalid("the journal has a superblock with other blocks")
	}
	return again, err
}

// Hints of what is refused because only a guest's kernel can mend it.
const (
	hintStop  = "start the VM and stop it in order, so that its kernel writes down what is missing"
	hintCheck = "start the VM and have the filesystem checked there"
)

func inUse(why string) error {
	return errdefs.Precondition("the filesystem was in use when its machine ended, and %s", why).WithHint(hintStop)
}

func open(r io.ReaderAt, size int64, p []byte) (*FS, error) {
	if le.Uint16(p[0x38:]) != superMagic {
		return nil, errdefs.Invalid("there is no ext4 filesystem")
	}
	f := &FS{r: r, cache: map[uint64][]byte{}}
	incompat, readonly := le.Uint32(p[0x60:]), le.Uint32(p[0x64:])
	f.inodeSize, f.descSize = int(le.Uint16(p[0x58:])), 32
	if le.Uint32(p[0x4c:]) == 0 { // the first revision has no such fields
		incompat, readonly, f.inodeSize = 0, 0, 128
	}
	f.sums = readonly&roSums != 0
	f.descSums = readonly&roGroupSums != 0 && !f.sums
	if f.sums && (p[0x175] != 1 || le.Uint32(p[0x3fc:]) != crc(^uint32(0), p[:0x3fc])) {
		return nil, errdefs.Invalid("the superblock's checksum is wrong")
	}
	if err := checkFeatures(incompat, readonly); err != nil {
		return nil, err
	}
	f.recover = incompat&hasRecover != 0
	journal := le.Uint32(p[0x5c:])&hasJournal != 0
	switch state := le.Uint16(p[0x3a:]); {
	case (f.recover || state&1 == 0) && !journal:
		return nil, inUse("it has no journal")
	case f.recover && le.Uint32(p[0xe0:]) != journalIno:
		return nil, inUse("its journal is elsewhere")
	case state&2 != 0:
		return nil, errdefs.Precondition("the guest's kernel has found errors in the filesystem").WithHint(hintCheck)
	}
	f.uuid = p[0x68:0x78]
	f.seed = crc(^uint32(0), f.uuid)
	if incompat&hasSumSeed != 0 {
		f.seed = le.Uint32(p[0x270:])
	}
	f.metaGroup, f.metaFrom = incompat&hasMetaGroups != 0, le.Uint32(p[0x104:])
	f.blocks = uint64(le.Uint32(p[0x04:]))
	if incompat&has64Bit != 0 {
		f.blocks |= uint64(le.Uint32(p[0x150:])) << 32
		f.descSize = int(le.Uint16(p[0xfe:]))
	}
	f.first = uint64(le.Uint32(p[0x14:]))
	f.inodes, f.perGroup, f.groupLen = le.Uint32(p[0x00:]), le.Uint32(p[0x28:]), uint64(le.Uint32(p[0x20:]))
	return f, f.checkShape(size, le.Uint32(p[0x18:]))
}

func checkFeatures(incompat, readonly uint32) error {
	unknown := incompat &^ (readable | hasRecover)
	var names []string
	for unknown != 0 {
		bit := uint32(1) << bits.TrailingZeros32(unknown)
		unknown &^= bit
		name := featureNames[bit]
		if name == "" {
			name = fmt.Sprintf("number %#x", bit)
		}
		names = append(names, name)
	}
	if readonly&roBigAlloc != 0 {
		names = append(names, "bigalloc")
	}
	if readonly&roShared != 0 {
		names = append(names, "shared_blocks")
	}
	if incompat&hasMetaGroups != 0 && readonly&1 == 0 {
		names = append(names, "meta_bg without sparse_super")
	}
	if len(names) > 0 {
		return errdefs.Unsupported("the filesystem has features that are not known here: %s", strings.Join(names, ", "))
	}
	return nil
}

// checkShape checks the numbers that everything else is computed from.
func (f *FS) checkShape(size int64, logBlock uint32) error {
	if logBlock > 2 {
		return errdefs.Unsupported("the filesystem has blocks of another size than 1, 2 or 4 KiB")
	}
	f.size = 1024 << logBlock
	power := func(n, low, high int) bool { return n >= low && n <= high && n&(n-1) == 0 }
	switch {
	case f.blocks == 0 || f.blocks > uint64(size)/uint64(f.size):
		return errdefs.Invalid("the filesystem has %d blocks of %d bytes, and its disk %d bytes", f.blocks, f.size, size)
	case !power(f.inodeSize, 128, int(f.size)), !power(f.descSize, 32, int(f.size)),
		f.first != map[bool]uint64{true: 1}[f.size == 1024],
		f.perGroup == 0 || int64(f.perGroup) > 8*f.size,
		f.groupLen < 256 || f.groupLen > 8*uint64(f.size):
		return errdefs.Invalid("the superblock says what cannot be")
	}
	groups := (f.blocks - f.first + f.groupLen - 1) / f.groupLen
	if uint64(f.inodes) != groups*uint64(f.perGroup) {
		return errdefs.Invalid("the filesystem has %d inodes in %d groups of %d", f.inodes, groups, f.perGroup)
	}
	return nil
}

// block returns a block of metadata, which is not to be changed.
func (f *FS) block(at uint64) ([]byte, error) {
	if p, ok := f.cache[at]; ok {
		return p, nil
	}
	if at < f.first || at >= f.blocks {
		return nil, errdefs.Invalid("block %d is outside of the filesystem", at)
	}
	p := make([]byte, f.size)
	if n, err := f.r.ReadAt(p, int64(at)*f.size); err != nil && (n < len(p) || !errors.Is(err, io.EOF)) {
		return nil, fmt.Errorf("read block %d: %w", at, err)
	}
	if len(f.cache) >= maxCached {
		clear(f.cache)
	}
	f.cache[at] = p
	return p, nil
}

// inodeTable says where the inodes of a group are.
func (f *FS) inodeTable(group uint32) (uint64, error) {
	per := uint32(int(f.size) / f.descSize)
	at := f.first + 1 + uint64(group/per)
	if f.metaGroup && group/per >= f.metaFrom {
		g := group / per * per
		at = f.first + uint64(g)*f.groupLen
		if hasSuper(g) {
			at++
		}
	}
	block, err := f.block(at)
	if err != nil {
		return 0, errdefs.Wrap(err, "descriptor of group %d", group)
	}
	p := append([]byte(nil), block[int(group%per)*f.descSize:][:f.descSize]...)
	table := uint64(le.Uint32(p[0x08:]))
	if f.descSize >= 64 {
		table |= uint64(le.Uint32(p[0x28:])) << 32
	}
	have := le.Uint16(p[0x1e:])
	if f.sums {
		le.PutUint16(p[0x1e:], 0)
		if uint16(crc(crcInt(f.seed, group), p)) != have {
			return 0, errdefs.Invalid("the checksum of group %d's descriptor is wrong", group)
		}
	} else if f.descSums {
		sum := crc16(crc16(^uint16(0), f.uuid), le.AppendUint32(nil, group))
		sum = crc16(sum, p[:0x1e])
		sum = crc16(sum, p[0x20:])
		if sum != have {
			return 0, errdefs.Invalid("the checksum of group %d's descriptor is wrong", group)
		}
	}
	length := (uint64(f.perGroup)*uint64(f.inodeSize) + uint64(f.size) - 1) / uint64(f.size)
	if table <= f.first || table >= f.blocks || length > f.blocks-table {
		return 0, errdefs.Invalid("the inodes of group %d are outside of the filesystem", group)
	}
	return table, nil
}

// crc16 is the checksum that descriptors had before metadata_csum.
func crc16(sum uint16, p []byte) uint16 {
	for _, b := range p {
		sum ^= uint16(b)
		for range 8 {
			low := sum & 1
			sum >>= 1
			if low != 0 {
				sum ^= 0xa001
			}
		}
	}
	return sum
}
