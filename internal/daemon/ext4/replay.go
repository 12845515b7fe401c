package ext4

import (
	"errors"
	"fmt"
	"io"
	"sort"

	"banger/internal/errdefs"
)

// A kernel that was not let end has written to the journal what it had no time to write to
// its place. The next one would copy it there. Here nothing is written: blocks that the
// journal has are read from it. The format is that of jbd2, as include/linux/jbd2.h of Linux
// has it, and what counts is what do_one_pass of its fs/jbd2/recovery.c makes count.

const (
	journalMagic = 0xc03b3998

	// Kinds of blocks in the log.
	logDescriptor = 1
	logCommit     = 2
	logRevoke     = 5

	// Features of the journal.
	logRevokes  = 0x01
	log64Bit    = 0x02
	logSums2    = 0x08
	logSums3    = 0x10
	logReadable = logRevokes | log64Bit | logSums2 | logSums3
	logOldSums  = 0x01 // of another field

	// Flags of a descriptor's entry.
	tagEscaped  = 1 // the block began like one of the journal
	tagSameUUID = 2
	tagLast     = 8

	logHeader = 12 // bytes

	maxJournal = 1 << 18 // blocks: mke2fs makes none larger, unless it is told to
	maxRevoked = 1 << 20 // of one transaction
)

// logged is where a block's content is in the log.
type logged struct {
	at      uint64 // block of the filesystem
	escaped bool
}

// journal is a journal that is read.
type journal struct {
	f          *FS
	parts      []extent
	first, end uint32 // of the log
	sums       int    // version of checksums; 0: none
	wide       bool   // numbers of blocks have 64 bits
	seed       uint32
}

// replay returns a view of the disk with what the journal has of it.
func (f *FS) replay() (io.ReaderAt, error) {
	n, err := f.loadInode(journalIno)
	if err != nil {
		return nil, errdefs.Wrap(err, "inode %d", journalIno)
	}
	if !n.is(modeFile) {
		return nil, errdefs.Invalid("it is no file")
	}
	if n.size > maxJournal*f.size {
		return nil, errdefs.Unsupported("it has %d bytes, more than %d", n.size, maxJournal*f.size)
	}
	j := &journal{f: f}
	if err := f.extents(n, func(e extent) error { j.parts = append(j.parts, e); return nil }); err != nil {
		return nil, err
	}
	start, sequence, err := j.open(uint32(n.size / f.size))
	if err != nil || start == 0 { // nothing is missing
		return f.r, err
	}
	found, err := j.scan(start, sequence)
	return &replayed{r: f.r, size: f.size, found: found}, err
}

// open reads the journal's head and says where the log begins; 0: it is empty.
func (j *journal) open(blocks uint32) (start, sequence uint32, err error) {
	p, _, err := j.block(0)
	if err != nil {
		return 0, 0, err
	}
	p = p[:superLen]
	if be.Uint32(p) != journalMagic || be.Uint32(p[4:]) != 4 {
		return 0, 0, errdefs.Invalid("it has no head that is known")
	}
	compat, incompat := be.Uint32(p[0x24:]), be.Uint32(p[0x28:])
	if unknown := incompat &^ logReadable; unknown != 0 || compat&logOldSums != 0 {
		return 0, 0, inUse(fmt.Sprintf("its journal has features that are not known here (%#x, %#x)", compat, incompat))
	}
	if be.Uint32(p[0x20:]) != 0 {
		return 0, 0, errdefs.Precondition("the guest's kernel has found errors in the filesystem").WithHint(hintCheck)
	}
	j.wide = incompat&log64Bit != 0
	switch incompat & (logSums2 | logSums3) {
	case logSums2:
		j.sums = 2
	case logSums3:
		j.sums = 3
	case logSums2 | logSums3:
		return 0, 0, errdefs.Invalid("it has checksums of two kinds")
	}
	if j.sums > 0 {
		if p[0x50] != 4 || sumWithout(^uint32(0), p, 0xfc) != be.Uint32(p[0xfc:]) {
			return 0, 0, errdefs.Invalid("the checksum of its head is wrong")
		}
		j.seed = crc(^uint32(0), p[0x30:0x40])
	}
	j.end, j.first = be.Uint32(p[0x10:]), be.Uint32(p[0x14:])
	sequence, start = be.Uint32(p[0x18:]), be.Uint32(p[0x1c:])
	if int64(be.Uint32(p[0x0c:])) != j.f.size || j.end > blocks || j.first == 0 || j.first >= j.end ||
		start != 0 && (start < j.first || start >= j.end) {
		return 0, 0, errdefs.Invalid("its head says what cannot be")
	}
	return start, sequence, nil
}

// sumWithout is the checksum of a block whose field for it, at a place, is zero.
func sumWithout(seed uint32, p []byte, at int) uint32 {
	sum := crc(seed, p[:at])
	return crc(crc(sum, make([]byte, 4)), p[at+4:])
}

// block reads a block of the journal, and says where it is.
func (j *journal) block(n uint32) ([]byte, uint64, error) {
	i := sort.Search(len(j.parts), func(i int) bool { return j.parts[i].logical+j.parts[i].n > n })
	if i == len(j.parts) || n < j.parts[i].logical {
		return nil, 0, errdefs.Invalid("its block %d is missing", n)
	}
	at := j.parts[i].start + uint64(n-j.parts[i].logical)
	p, err := j.f.block(at)
	return p, at, err
}

// transaction is what is known of one before its end is there.
type transaction struct {
	blocks  []write
	revoked map[uint64]bool // not to be written, as of this one and those before
	wrong   error           // what keeps it from being believed
}

type write struct {
	block uint64
	from  logged
}

// scan reads the log up to the last transaction that has an end, and returns where it has
// the blocks of the disk. What comes after that never happened; what came before and does
// not fit refuses the whole.
func (j *journal) scan(start, sequence uint32) (map[uint64]logged, error) {
	found := map[uint64]logged{}
	now := &transaction{}
	at, left := start, j.end-j.first
	next := func() ([]byte, uint64, error) {
		p, place, err := j.block(at)
		if at, left = at+1, left-1; at == j.end {
			at = j.first
		}
		return p, place, err
	}
	for left > 0 {
		p, _, err := next()
		if err != nil {
			return nil, err
		}
		if be.Uint32(p) != journalMagic || be.Uint32(p[8:]) != sequence {
			break
		}
		switch be.Uint32(p[4:]) {
		case logDescriptor:
			for _, t := range j.tags(now, p) {
				if left == 0 {
					return found, nil
				}
				p, place, err := next()
				if err != nil {
					return nil, err
				}
				if !j.holds(t, p, sequence) {
					now.wrong = errdefs.Invalid("the checksum of a block in transaction %d is wrong", sequence)
				}
				now.blocks = append(now.blocks, write{t.block, logged{place, t.flags&tagEscaped != 0}})
			}
		case logRevoke:
			j.revokes(now, p)
		case logCommit:
			if j.sums > 0 && sumWithout(j.seed, p, 0x10) != be.Uint32(p[0x10:]) {
				now.wrong = errdefs.Invalid("the checksum of the end of transaction %d is wrong", sequence)
			}
			if now.wrong != nil {
				return nil, now.wrong
			}
			for _, w := range now.blocks {
				found[w.block] = w.from
			}
			for block := range now.revoked {
				delete(found, block)
			}
			now = &transaction{}
			sequence++
		default:
			return found, nil
		}
	}
	return found, nil
}

// tag is an entry of a descriptor: the block of the disk that comes next in the log.
type tag struct {
	block uint64
	flags uint32
	sum   uint32
}

// tags reads a descriptor.
func (j *journal) tags(now *transaction, p []byte) []tag {
	p, ok := j.sealed(p)
	if !ok {
		now.wrong = errdefs.Invalid("the checksum of a descriptor is wrong")
	}
	size := 8
	switch {
	case j.sums == 3:
		size = 16
	case j.sums == 2:
		size += 2
	}
	if j.wide && j.sums != 3 {
		size += 4
	}
	var all []tag
	for p = p[logHeader:]; len(p) >= size; {
		t := tag{block: uint64(be.Uint32(p))}
		switch {
		case j.sums == 3:
			t.flags, t.sum = be.Uint32(p[4:]), be.Uint32(p[12:])
			t.block |= uint64(be.Uint32(p[8:])) << 32
		default:
			t.sum, t.flags = uint32(be.Uint16(p[4:])), uint32(be.Uint16(p[6:]))
			if j.wide {
				t.block |= uint64(be.Uint32(p[8:])) << 32
			}
		}
		if p = p[size:]; t.flags&tagSameUUID == 0 {
			p = p[min(16, len(p)):]
		}
		all = append(all, t)
		if t.flags&tagLast != 0 {
			break
		}
	}
	return all
}

// sealed returns a block of the log without the checksum at its end, and whether that holds.
func (j *journal) sealed(p []byte) ([]byte, bool) {
	if j.sums == 0 {
		return p, true
	}
	end := len(p) - 4
	return p[:end], sumWithout(j.seed, p, end) == be.Uint32(p[end:])
}

// holds compares the checksum of a block in the log.
func (j *journal) holds(t tag, p []byte, sequence uint32) bool {
	if j.sums == 0 {
		return true
	}
	sum := crc(crc(j.seed, be.AppendUint32(nil, sequence)), p)
	if j.sums == 2 {
		sum &= 0xffff
	}
	return sum == t.sum
}

// revokes reads a list of blocks that are something else from now on.
func (j *journal) revokes(now *transaction, p []byte) {
	list, ok := j.sealed(p)
	size := 4
	if j.wide {
		size = 8
	}
	used := be.Uint32(p[logHeader:])
	if !ok || used < logHeader+4 || used > uint32(len(list)) {
		now.wrong = errdefs.Invalid("a list of revoked blocks is wrong")
		return
	}
	if now.revoked == nil {
		now.revoked = map[uint64]bool{}
	}
	for list = list[logHeader+4 : used]; len(list) >= size; list = list[size:] {
		block := uint64(be.Uint32(list))
		if j.wide {
			block = be.Uint64(list)
		}
		now.revoked[block] = true
	}
	if len(now.revoked) > maxRevoked {
		now.wrong = errdefs.Unsupported("a transaction revokes more than %d blocks", maxRevoked)
		now.revoked = nil
	}
}

// replayed reads a disk as it is once the journal is replayed.
type replayed struct {
	r     io.ReaderAt
	size  int64 // of a block
	found map[uint64]logged
}

func (d *replayed) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("read at a negative offset")
	}
	n := 0
	for n < len(p) {
		at := off + int64(n)
		block := at / d.size
		l, ok := d.found[uint64(block)]
		end := block + 1
		for !ok && end*d.size < off+int64(len(p)) { // and those after it that are not in the log
			if _, next := d.found[uint64(end)]; next {
				break
			}
			end++
		}
		part := p[n:min(int64(len(p)), end*d.size-off)]
		from := at
		if ok {
			from = int64(l.at)*d.size + at%d.size
		}
		m, err := d.r.ReadAt(part, from)
		if ok && l.escaped {
			for i := at % d.size; i < 4 && i-at%d.size < int64(m); i++ {
				part[i-at%d.size] = be.AppendUint32(nil, journalMagic)[i]
			}
		}
		n += m
		if err != nil && (m < len(part) || !errors.Is(err, io.EOF)) {
			return n, err
		}
	}
	return n, nil
}
