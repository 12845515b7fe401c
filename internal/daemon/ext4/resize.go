package ext4

import (
	"fmt"
	"io"
)

// The resize inode has the blocks that are reserved for more descriptors, so that nobody
// else takes them. It has them by double indirection: one block points to those of group
// 0, and each of these to its copies in the groups with backups.

// resizeInode is the inode itself. Its size is that of a file with all that
// double indirection can reach.
func (w *Writer) resizeInode() *rawInode {
	r := w.own(w.l.resizeBlocks(), (12+pointersPer+pointersPer*pointersPer)*blockSize)
	le.PutUint32(r[40+4*13:], uint32(w.l.resizeBlock()))
	r.seal(w.seed, resizeIno)
	return r
}

// resizeBlocks is how many blocks it has.
func (l *layout) resizeBlocks() uint64 {
	copies := uint64(1)
	for range l.backups() {
		copies++
	}
	return 1 + uint64(l.reserved)*copies
}

// resizeTree are its blocks: the one that points to the others, and those.
func (l *layout) resizeTree() (top, reserved []byte) {
	top = make([]byte, blockSize)
	reserved = make([]byte, int(l.reserved)*blockSize)
	for i := range l.reserved {
		le.PutUint32(top[(l.gdt+i)%pointersPer*4:], 1+l.gdt+i)
	}
	k := 0
	for g := range l.backups() {
		for i := range l.reserved {
			le.PutUint32(reserved[int(i)*blockSize+4*k:], uint32(l.start(g))+1+l.gdt+i)
		}
		k++
	}
	return top, reserved
}

// writeHeads writes superblock and descriptors, with the blocks reserved for more, to all
// groups that have them; the first one last.
func (l *layout) writeHeads(f io.WriterAt, super, descs []byte) error {
	write := func(p []byte, at uint64) error {
		if _, err := f.WriteAt(p, int64(at)); err != nil {
			return fmt.Errorf("write the head of the filesystem: %w", err)
		}
		return nil
	}
	for g := range l.backups() {
		p := make([]byte, blockSize, blockSize+len(descs))
		sealSuper(super, g)
		copy(p, super)
		if err := write(append(p, descs...), l.start(g)*blockSize); err != nil {
			return err
		}
	}
	top, reserved := l.resizeTree()
	if err := write(top, l.resizeBlock()*blockSize); err != nil {
		return err
	}
	p := make([]byte, blockSize, blockSize+len(descs)+len(reserved))
	sealSuper(super, 0)
	copy(p[superAt:], super)
	return write(append(append(p, descs...), reserved...), 0)
}
