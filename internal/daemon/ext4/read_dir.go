package ext4

import (
	"strings"

	"banger/internal/errdefs"
)

// child is a name in a directory that is read.
type child struct {
	name string
	ino  uint32
}

// readDir visits the names in a directory but "." and "..", as they come.
func (f *FS) readDir(n *inode, taken set, visit func(child) error) error {
	if n.flags&flagInline != 0 {
		more, err := n.inlineMore()
		if err != nil {
			return err
		}
		// The first four bytes are the parent's number, in place of "." and "..".
		for _, p := range [][]byte{n.raw[44:100], more} {
			if err := readNames(p, visit); err != nil {
				return err
			}
		}
		return nil
	}
	if n.size == 0 || n.size%f.size != 0 {
		return errdefs.Invalid("a directory of %d bytes", n.size)
	}
	next := uint32(0)
	err := f.claim(n, taken, func(e extent) error {
		if e.logical != next {
			return errdefs.Invalid("the directory has a hole")
		}
		next = e.logical + e.n
		for i := range e.n {
			p, err := f.block(e.start + uint64(i))
			if err != nil {
				return err
			}
			if err := f.checkDirBlock(n, e.logical+i, p); err != nil {
				return err
			}
			if err := readNames(p, visit); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil && int64(next) != n.size/f.size {
		err = errdefs.Invalid("the directory has a hole")
	}
	return err
}

// readNames visits the entries in a block, or in a part of an inode. An index of hashes
// looks like an entry without a name.
func readNames(p []byte, visit func(child) error) error {
	for len(p) > 0 {
		if len(p) < 8 {
			return errdefs.Invalid("an entry of the directory is cut short")
		}
		ino, length, name := le.Uint32(p), int(le.Uint16(p[4:])), int(p[6])
		if length < 8 || length%4 != 0 || length > len(p) || 8+name > length {
			return errdefs.Invalid("an entry of the directory has a length of %d", length)
		}
		if ino != 0 {
			c := child{string(p[8:][:name]), ino}
			if c.name == "" || strings.ContainsAny(c.name, "/\x00") {
				return errdefs.Invalid("the directory has an entry called %q", c.name)
			}
			if c.name != "." && c.name != ".." {
				if err := visit(c); err != nil {
					return err
				}
			}
		}
		p = p[length:]
	}
	return nil
}

// checkDirBlock compares the checksum of a block of a directory.
func (f *FS) checkDirBlock(n *inode, logical uint32, p []byte) error {
	if !f.sums {
		return nil
	}
	wrong := errdefs.Invalid("a checksum of the directory is wrong")
	if n.flags&flagIndex != 0 && (logical == 0 || le.Uint32(p) == 0 && int64(le.Uint16(p[4:])) == f.size) {
		at := 8
		if logical == 0 {
			at = 32
		}
		fits, count := int(le.Uint16(p[at:])), int(le.Uint16(p[at+2:]))
		tail := at + 8*fits
		if count > fits || tail+8 > len(p) {
			return wrong
		}
		sum := crc(n.seed, p[:at+8*count])
		sum = crc(sum, append(append([]byte(nil), p[tail:tail+4]...), 0, 0, 0, 0))
		if sum != le.Uint32(p[tail+4:]) {
			return wrong
		}
		return nil
	}
	tail := p[len(p)-dirTail:]
	if le.Uint32(tail) != 0 || le.Uint16(tail[4:]) != dirTail || tail[6] != 0 || tail[7] != 0xde ||
		le.Uint32(tail[8:]) != crc(n.seed, p[:len(p)-dirTail]) {
		return wrong
	}
	return nil
}
