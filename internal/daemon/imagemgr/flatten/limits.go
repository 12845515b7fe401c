package flatten

import (
	"sync/atomic"

	"banger/internal/errdefs"
)

// Limits bounds what an image may ask for, over all of its layers. A field that is 0 has
// the default. What the kernel could not hold is refused whatever the limits are: names
// of more than 255 bytes, paths of more than 4095, attributes of more than 64 KiB.
type Limits struct {
	Entries   int64 // of the tars, and directories they imply; 2,000,000, each of 0.3 kB of memory
	Bytes     int64 // uncompressed tars, and separately contents of files, in bytes; 128 GiB
	FileBytes int64 // content of one file, holes included; 64 GiB
	MetaBytes int64 // names, targets of links and extended attributes, repetitions excluded; 256 MiB
}

// What the kernel can hold.
const (
	maxName       = 255
	maxPath       = 4095
	maxLinks      = 65000 // names of one inode in ext4
	maxXattrs     = 128   // of an inode; not the kernel's, but nobody has as many
	maxXattrName  = 255
	maxXattrValue = 64 << 10
	maxMajor      = 1<<12 - 1
	maxMinor      = 1<<20 - 1
	maxID         = 1<<32 - 2 // -1 is "no owner"
	minTime       = -1 << 31  // of ext4, in seconds: 1901
	maxTime       = 1<<34 - 1<<31 - 1
)

const (
	// maxTrailing is how much may follow the end of a tar: tars are padded to the size
	// of a tape's block, at most some MiB.
	maxTrailing = 16 << 20
	// maxFollow is how many symbolic links a path may lead through; containerd's.
	maxFollow = 255
	// stepsPerEntry is how many components of paths may be looked up for each
	// entry, on average: ordinary images need one or two.
	stepsPerEntry = 256
)

func (l Limits) orDefaults() Limits {
	set := func(v *int64, to int64) {
		if *v == 0 {
			*v = to
		}
	}
	set(&l.Entries, 2_000_000)
	set(&l.Bytes, 128<<30)
	set(&l.FileBytes, 64<<30)
	set(&l.MetaBytes, 256<<20)
	return l
}

// budget is what is used up of the limits; all layers share it.
type budget struct {
	limits                             Limits
	entries, streamed, contents, metas atomic.Int64
}

func (b *budget) entry() error {
	if b.entries.Add(1) > b.limits.Entries {
		return errdefs.Exhausted("the image has more than %d entries, implied directories included", b.limits.Entries)
	}
	return nil
}

func (b *budget) stream(n int64) error {
	if b.streamed.Add(n) > b.limits.Bytes {
		return errdefs.Exhausted("the image's layers are more than %d bytes", b.limits.Bytes)
	}
	return nil
}

// content is asked before a file of size bytes is stored.
func (b *budget) content(size int64) error {
	switch {
	case size > b.limits.FileBytes:
		return errdefs.Exhausted("file of %d bytes, more than %d", size, b.limits.FileBytes)
	case b.contents.Add(size) > b.limits.Bytes:
		return errdefs.Exhausted("the image's files are more than %d bytes", b.limits.Bytes)
	}
	return nil
}

func (b *budget) meta(n int) error {
	if b.metas.Add(int64(n)) > b.limits.MetaBytes {
		return errdefs.Exhausted("the image's names and attributes are more than %d bytes", b.limits.MetaBytes)
	}
	return nil
}
