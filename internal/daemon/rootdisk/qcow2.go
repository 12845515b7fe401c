package rootdisk

import (
	"bytes"
	"encoding/binary"
	"os"

	"banger/internal/errdefs"
	"banger/internal/hypervisor"
)

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

// writeOverlay writes an image of size bytes in which nothing is allocated: every
// read falls through to backing.
func writeOverlay(f *os.File, backing string, format hypervisor.DiskFormat, size int64) error {
	perL1 := int64(entriesPerL2) * clusterSize
	l1Entries := (size + perL1 - 1) / perL1
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

// virtualSize reads the size of the disk in a qcow2 image.
func virtualSize(f *os.File) (int64, error) {
	var h qcowHeader
	b := make([]byte, 32)
	if _, err := f.ReadAt(b, 0); err != nil {
		return 0, errdefs.Invalid("read %s: %w", f.Name(), err)
	}
	be := binary.BigEndian
	h.Magic, h.Version, h.Size = be.Uint32(b), be.Uint32(b[4:]), be.Uint64(b[24:])
	if h.Magic != qcowMagic || h.Version < 2 || h.Version > 3 || h.Size > maxSize {
		return 0, errdefs.Invalid("%s is not a qcow2 image", f.Name())
	}
	return int64(h.Size), nil
}
