package decompress

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// lz4Block is how much one block of the legacy frame holds at most, in bytes.
const lz4Block = 8 << 20

var errLZ4 = errors.New("corrupt lz4 block")

// lz4Reader decodes the LZ4 legacy frame: a magic number, then blocks of a
// four-byte compressed size and the data, each independent of the others. The
// frame has no end mark; a block shorter than the full size is the last one.
type lz4Reader struct {
	r     *bufio.Reader
	in    []byte
	out   []byte
	pos   int
	begun bool
	last  bool
	err   error
}

func newLZ4(r *bufio.Reader) *lz4Reader { return &lz4Reader{r: r} }

func (l *lz4Reader) Read(p []byte) (int, error) {
	for l.pos == len(l.out) {
		if l.err == nil {
			l.err = l.next()
		}
		if l.err != nil {
			return 0, l.err
		}
	}
	n := copy(p, l.out[l.pos:])
	l.pos += n
	return n, nil
}

func (l *lz4Reader) next() error {
	if l.last {
		return io.EOF
	}
	if !l.begun {
		l.begun = true
		if _, err := l.r.Discard(4); err != nil {
			return unexpected(err)
		}
	}
	var head [4]byte
	if _, err := io.ReadFull(l.r, head[:]); err != nil {
		return err // a clean end here is the end of the frame
	}
	size := binary.LittleEndian.Uint32(head[:])
	if size == 0 || size > lz4Block+lz4Block/255+16 {
		return fmt.Errorf("size %d: %w", size, errLZ4)
	}
	if cap(l.in) < int(size) {
		l.in = make([]byte, size)
	}
	l.in = l.in[:size]
	if _, err := io.ReadFull(l.r, l.in); err != nil {
		return unexpected(err)
	}
	if l.out == nil {
		l.out = make([]byte, 0, lz4Block)
	}
	var err error
	if l.out, err = lz4Decode(l.out[:0], l.in); err != nil {
		return err
	}
	l.pos, l.last = 0, len(l.out) < lz4Block
	return nil
}

// lz4Decode appends the plain content of one block to dst, never growing it.
func lz4Decode(dst, src []byte) ([]byte, error) {
	for i := 0; i < len(src); {
		token := src[i]
		i++
		lit, n := lz4Length(src[i:], int(token>>4))
		i += n
		if n < 0 || lit > len(src)-i || lit > cap(dst)-len(dst) {
			return nil, errLZ4
		}
		dst = append(dst, src[i:i+lit]...)
		i += lit
		if i == len(src) {
			return dst, nil // the last sequence has no match
		}
		if i+2 > len(src) {
			return nil, errLZ4
		}
		offset := int(binary.LittleEndian.Uint16(src[i:]))
		i += 2
		match, n := lz4Length(src[i:], int(token&15))
		i += n
		match += 4
		if n < 0 || offset == 0 || offset > len(dst) || match > cap(dst)-len(dst) {
			return nil, errLZ4
		}
		for from := len(dst) - offset; match > 0; match-- { // source and target may overlap
			dst = append(dst, dst[from])
			from++
		}
	}
	return dst, nil
}

// lz4Length extends a four-bit length; n is how many bytes it used, negative
// when they do not end.
func lz4Length(src []byte, length int) (total, n int) {
	if length < 15 {
		return length, 0
	}
	for i, b := range src {
		length += int(b)
		if b != 255 {
			return length, i + 1
		}
		if length > lz4Block {
			break
		}
	}
	return 0, -1
}
