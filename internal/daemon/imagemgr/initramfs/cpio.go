// Package initramfs writes the archive a kernel unpacks as its first root
// filesystem: banger's agent as /init, and the modules it loads before it can see
// a disk.
package initramfs

import (
	"fmt"
	"io"
	"strings"
)

// File types of a cpio mode field.
const (
	typeDir  = 0o040000
	typeChar = 0o020000
	typeFile = 0o100000
)

// writer writes the "newc" cpio format: a header of fixed-width hexadecimal
// fields, the name, the data, each padded to four bytes. Owner is root and times
// are zero, so equal content gives equal bytes.
type writer struct {
	w   io.Writer
	n   int64
	ino int
	err error
}

func (c *writer) write(p []byte) {
	if c.err != nil {
		return
	}
	n, err := c.w.Write(p)
	c.n, c.err = c.n+int64(n), err
}

func (c *writer) pad() { c.write(make([]byte, -c.n&3)) }

func (c *writer) header(name string, mode, links, rmajor, rminor int, size int64) {
	c.ino++
	fields := []int64{int64(c.ino), int64(mode), 0, 0, int64(links), 0, size, 0, 0, int64(rmajor), int64(rminor), int64(len(name) + 1), 0}
	var b strings.Builder
	b.WriteString("070701")
	for _, f := range fields {
		fmt.Fprintf(&b, "%08X", f)
	}
	b.WriteString(name)
	b.WriteByte(0)
	c.write([]byte(b.String()))
	c.pad()
}

func (c *writer) dir(name string, perm int) { c.header(name, typeDir|perm, 2, 0, 0, 0) }

func (c *writer) char(name string, perm, major, minor int) {
	c.header(name, typeChar|perm, 1, major, minor, 0)
}

// file copies exactly size bytes of r.
func (c *writer) file(name string, perm int, size int64, r io.Reader) {
	if size > 0xffffffff {
		c.err = fmt.Errorf("file %s of %d bytes does not fit into a cpio archive", name, size)
	}
	c.header(name, typeFile|perm, 1, 0, 0, size)
	if c.err != nil {
		return
	}
	n, err := io.CopyN(c.w, r, size)
	if c.n += n; err != nil {
		c.err = fmt.Errorf("copy %s: %w", name, err)
	}
	c.pad()
}

// close ends the archive; the kernel wants its length to be a multiple of 512.
func (c *writer) close() error {
	c.ino = -1
	c.header("TRAILER!!!", 0, 1, 0, 0, 0)
	c.write(make([]byte, -c.n&511))
	return c.err
}
