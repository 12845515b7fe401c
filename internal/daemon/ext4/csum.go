package ext4

import (
	"encoding/binary"
	"hash/crc32"
)

var (
	le = binary.LittleEndian
	be = binary.BigEndian // of the journal

	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// crc is crc32c as ext4 has it, which inverts nothing.
func crc(seed uint32, p []byte) uint32 { return ^crc32.Update(^seed, castagnoli, p) }

func crcInt(seed, n uint32) uint32 { return crc(seed, le.AppendUint32(nil, n)) }

func crcLong(seed uint32, n uint64) uint32 { return crc(seed, le.AppendUint64(nil, n)) }

// uuidSeed is what all checksums of a filesystem begin with but the superblock's.
func uuidSeed(uuid [16]byte) uint32 { return crc(^uint32(0), uuid[:]) }

// inodeSeed is what checksums of what belongs to one inode begin with. Its generation
// is 0, always.
func inodeSeed(seed, ino uint32) uint32 { return crcInt(crcInt(seed, ino), 0) }
