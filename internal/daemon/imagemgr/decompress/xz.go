package decompress

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"hash/crc64"
	"io"

	"github.com/ulikunitz/xz/lzma"
)

var xzMagic = []byte{0xfd, '7', 'z', 'X', 'Z', 0x00}

// Identifiers of the xz format.
const (
	filterX86   = 0x04
	filterLZMA2 = 0x21

	checkNone  = 0x00
	checkCRC32 = 0x01
	checkCRC64 = 0x04
)

var errXZ = errors.New("corrupt xz stream")

// xzReader decodes one xz stream. It exists because kernels are packed with the
// x86 branch filter in front of LZMA2, which the library's container reader
// refuses; only the container and the filter are ours.
type xzReader struct {
	r     *countReader
	check byte
	block io.Reader // nil between blocks
	start int64     // offset of the block's header
	sum   hash.Hash // over the block's plain content; nil when there is no check
	begun bool
	err   error
}

func newXZ(r *bufio.Reader) *xzReader { return &xzReader{r: &countReader{r: r}} }

func (x *xzReader) Read(p []byte) (int, error) {
	for x.err == nil {
		if x.block == nil {
			if x.err = x.next(); x.err != nil {
				break
			}
		}
		n, err := x.block.Read(p)
		if x.sum != nil {
			x.sum.Write(p[:n])
		}
		if errors.Is(err, io.EOF) {
			err = x.endBlock()
		}
		if err != nil {
			x.err = unexpected(err)
		}
		if n > 0 || len(p) == 0 {
			return n, nil
		}
	}
	return 0, x.err
}

// next opens the next block, or returns io.EOF at the index.
func (x *xzReader) next() error {
	if !x.begun {
		if err := x.streamHeader(); err != nil {
			return unexpected(err)
		}
		x.begun = true
	}
	x.start = x.r.n
	size, err := x.r.ReadByte()
	if err != nil {
		return unexpected(err)
	}
	if size == 0 {
		return io.EOF // the index: what it repeats was checked block by block
	}
	head := make([]byte, (int(size)+1)*4)
	head[0] = size
	if _, err := io.ReadFull(x.r, head[1:]); err != nil {
		return unexpected(err)
	}
	body, sum := head[:len(head)-4], head[len(head)-4:]
	if crc32.ChecksumIEEE(body) != binary.LittleEndian.Uint32(sum) {
		return fmt.Errorf("block header: %w", errXZ)
	}
	return x.openBlock(body)
}

func (x *xzReader) streamHeader() error {
	var h [12]byte
	if _, err := io.ReadFull(x.r, h[:]); err != nil {
		return err
	}
	if !bytes.Equal(h[:6], xzMagic) || h[6] != 0 || crc32.ChecksumIEEE(h[6:8]) != binary.LittleEndian.Uint32(h[8:]) {
		return fmt.Errorf("stream header: %w", errXZ)
	}
	x.check = h[7]
	return nil
}

// openBlock sets up the filters that a block's header names.
func (x *xzReader) openBlock(head []byte) error {
	flags := head[1]
	if flags&0x3c != 0 {
		return fmt.Errorf("block flags %#x: %w", flags, errXZ)
	}
	in := bytes.NewReader(head[2:])
	for _, bit := range []byte{0x40, 0x80} { // compressed and plain size, both optional
		if flags&bit != 0 {
			if _, err := binary.ReadUvarint(in); err != nil {
				return fmt.Errorf("block sizes: %w", errXZ)
			}
		}
	}
	x86 := false
	for i, last := 0, int(flags&3); i <= last; i++ {
		id, err1 := binary.ReadUvarint(in)
		n, err2 := binary.ReadUvarint(in)
		if err := errors.Join(err1, err2); err != nil || n > uint64(in.Len()) {
			return fmt.Errorf("block filters: %w", errXZ)
		}
		props := make([]byte, n)
		_, _ = io.ReadFull(in, props) // the length was checked
		switch {
		case id == filterX86 && n == 0 && i == 0 && last == 1:
			x86 = true
		case id == filterLZMA2 && n == 1 && i == last:
			return x.openLZMA2(props[0], x86)
		default:
			return fmt.Errorf("xz filter %#x with %d bytes of properties is not supported", id, n)
		}
	}
	return fmt.Errorf("no LZMA2 filter: %w", errXZ)
}

func (x *xzReader) openLZMA2(prop byte, x86 bool) error {
	if prop > 40 {
		return fmt.Errorf("dictionary size: %w", errXZ)
	}
	dict := (int64(2) | int64(prop&1)) << (prop/2 + 11)
	if dict > maxWindow {
		return fmt.Errorf("xz dictionary of %d bytes is over the limit of %d", dict, int64(maxWindow))
	}
	z, err := lzma.Reader2Config{DictCap: int(dict)}.NewReader2(x.r)
	if err != nil {
		return fmt.Errorf("open LZMA2 data: %w", err)
	}
	x.block = z
	if x86 {
		x.block = &x86Reader{r: z}
	}
	switch x.check {
	case checkCRC32:
		x.sum = crc32.NewIEEE()
	case checkCRC64:
		x.sum = crc64.New(crc64.MakeTable(crc64.ECMA))
	case checkNone:
		x.sum = nil
	default:
		return fmt.Errorf("xz check type %d is not supported", x.check)
	}
	return nil
}

// endBlock reads the padding and compares the check.
func (x *xzReader) endBlock() error {
	x.block = nil
	for (x.r.n-x.start)%4 != 0 {
		if b, err := x.r.ReadByte(); err != nil || b != 0 {
			return errors.Join(fmt.Errorf("block padding: %w", errXZ), err)
		}
	}
	if x.sum == nil {
		return nil
	}
	want := make([]byte, x.sum.Size())
	if _, err := io.ReadFull(x.r, want); err != nil {
		return unexpected(err)
	}
	got := x.sum.Sum(nil)
	for i := range got { // the format stores it little-endian, Sum is big-endian
		if got[i] != want[len(want)-1-i] {
			return fmt.Errorf("checksum differs: %w", errXZ)
		}
	}
	return nil
}

// unexpected turns an end of input within the container into an error.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// countReader counts what was read; it never reads ahead of what it is asked for.
type countReader struct {
	r *bufio.Reader
	n int64
}

func (c *countReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

func (c *countReader) ReadByte() (byte, error) {
	b, err := c.r.ReadByte()
	if err == nil {
		c.n++
	}
	return b, err
}
