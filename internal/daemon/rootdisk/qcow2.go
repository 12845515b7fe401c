package rootdisk

import (
	"bytes"
	"context"
	"encoding/binary"
	"os"

	"banger/internal/errdefs"
	"banger/internal/hypervisor"
	"banger/internal/paths"
)

// QCOW2 makes qcow2 overlays: a few kilobytes that name the image as backing file.
// They work on every file system, for drivers that read them.
func QCOW2() Method {
	return qcow2{file{name: paths.RootDiskFile, format: hypervisor.FormatQcow2, grow: growOverlay}}
}

type qcow2 struct{ file }

// Name implements Method.
func (qcow2) Name() string { return "qcow2" }

// Check implements Method.
func (qcow2) Check(context.Context, string) (string, error) {
	return "the driver reads them, on every file system", nil
}

// View implements Method. The backing file is said besides: the VMM may be unable to
// open it by the name in the header.
func (m qcow2) View(d Disk) hypervisor.Disk {
	v := m.file.View(d)
	v.Backing = d.Image
	return v
}

// Create implements Method.
func (m qcow2) Create(_ context.Context, d Disk) error {
	image, err := open(&d)
	if err != nil {
		return err
	}
	defer image.Close()
	if len(d.Image) > maxBacking {
		return errdefs.Invalid("make root disk: the image's path has %d bytes, qcow2 allows %d", len(d.Image), maxBacking).
			WithHint("use a shorter state directory")
	}
	err = publish(m.path(d), d.UID, func(f *os.File) error { return writeOverlay(f, d.Image, d.Size) })
	return wrap(err, "make root disk")
}

// The qcow2 format, version 3, as far as an empty overlay needs it. All numbers
// are big-endian.
const (
	qcowMagic     = 0x514649FB // "QFI" 0xFB
	qcowVersion   = 3
	clusterBits   = 16
	clusterSize   = 1 << clusterBits
	refcountOrder = 4 // 16 bits for each cluster's count of users
	entriesPerL2  = clusterSize / 8
	maxBacking    = 1023       // bytes of the backing file's name
	extBackingFmt = 0xE2792ACA // header extension: format of the backing file

	sizeAt      = 24 // offsets in the header
	l1EntriesAt = 36

	headerCluster  = 0
	countsCluster  = 1 // table of refcount blocks
	countCluster   = 2 // the one refcount block
	l1FirstCluster = 3
)

// qcowHeader is the fixed part of the header.
type qcowHeader struct {
	Magic, Version             uint32
	BackingOffset              uint64
	BackingLen                 uint32
	ClusterBits                uint32
	Size                       uint64
	Crypt                      uint32
	L1Entries                  uint32
	L1Offset                   uint64
	CountsOffset               uint64
	CountsClusters             uint32
	Snapshots                  uint32
	SnapshotsOffset            uint64
	Incompatible, Compatible   uint64
	Autoclear                  uint64
	RefcountOrder, HeaderBytes uint32
}

// l1For is how many entries the first-level table of a disk has.
func l1For(size int64) int64 {
	const perL1 = int64(entriesPerL2) * clusterSize
	return (size + perL1 - 1) / perL1
}

// writeOverlay writes an image of size bytes in which nothing is allocated: every
// read falls through to backing.
func writeOverlay(f *os.File, backing string, size int64) error {
	const format = hypervisor.FormatRaw // of the backing file
	l1Entries := l1For(size)
	l1Clusters := (l1Entries*8 + clusterSize - 1) / clusterSize
	used := l1FirstCluster + l1Clusters

	h := qcowHeader{
		Magic: qcowMagic, Version: qcowVersion, ClusterBits: clusterBits, Size: uint64(size),
		L1Entries: uint32(l1Entries), L1Offset: l1FirstCluster * clusterSize,
		CountsOffset: countsCluster * clusterSize, CountsClusters: 1,
		RefcountOrder: refcountOrder, BackingLen: uint32(len(backing)),
	}
	h.HeaderBytes = uint32(binary.Size(h))
	var ext bytes.Buffer
	be := binary.BigEndian
	ext.Write(be.AppendUint32(be.AppendUint32(nil, extBackingFmt), uint32(len(format))))
	ext.WriteString(string(format))
	ext.Write(make([]byte, (8-len(format)%8)%8+8)) // padding, then the end of extensions
	h.BackingOffset = uint64(h.HeaderBytes) + uint64(ext.Len())

	var head bytes.Buffer
	if err := binary.Write(&head, be, h); err != nil {
		return err
	}
	head.Write(ext.Bytes())
	head.WriteString(backing)

	counts := make([]byte, 2*used)
	for i := range used {
		be.PutUint16(counts[2*i:], 1)
	}
	for cluster, data := range map[int64][]byte{
		headerCluster: head.Bytes(),
		countsCluster: be.AppendUint64(nil, countCluster*clusterSize),
		countCluster:  counts,
	} {
		if _, err := f.WriteAt(data, cluster*clusterSize); err != nil {
			return err
		}
	}
	return f.Truncate(used * clusterSize) // the first-level table is all zero
}

// growOverlay makes the disk in an overlay that nobody uses size bytes large. New
// entries of the first-level table fit into the cluster it has, up to 4 TiB; what lay
// there may be anything. The header is written last, and its sector as one.
func growOverlay(f *os.File, size int64) (was int64, err error) {
	b := make([]byte, sector)
	if _, err := f.ReadAt(b, 0); err != nil {
		return 0, err
	}
	var h qcowHeader
	if err := binary.Read(bytes.NewReader(b), binary.BigEndian, &h); err != nil {
		return 0, err
	}
	if h.Magic != qcowMagic || h.Version != qcowVersion || h.ClusterBits != clusterBits || h.Incompatible != 0 || h.Snapshots != 0 || h.Size > maxSize {
		return 0, errdefs.Precondition("%s is not an overlay of ours, or is damaged", f.Name()).
			WithHint("delete the VM and make it anew")
	}
	was = int64(h.Size)
	if size <= was {
		return was, nil
	}
	old, entries := int64(h.L1Entries), l1For(size)
	if room := (old*8 + clusterSize - 1) / clusterSize * clusterSize / 8; entries > room {
		return was, errdefs.Unsupported("a disk of %d GiB cannot become one of %d GiB", was>>30, size>>30).
			WithHint("up to %d TiB it can", l1Reach(room)>>40)
	}
	if entries > old {
		if _, err := f.WriteAt(make([]byte, (entries-old)*8), int64(h.L1Offset)+old*8); err != nil {
			return was, err
		}
		if err := f.Sync(); err != nil {
			return was, err
		}
	}
	binary.BigEndian.PutUint64(b[sizeAt:], uint64(size))
	binary.BigEndian.PutUint32(b[l1EntriesAt:], uint32(entries))
	_, err = f.WriteAt(b, 0)
	return was, err
}

// l1Reach is how large a disk with so many entries can be, in bytes.
func l1Reach(entries int64) int64 { return entries * entriesPerL2 * clusterSize }
