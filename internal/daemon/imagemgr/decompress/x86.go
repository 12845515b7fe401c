package decompress

import (
	"encoding/binary"
	"io"
)

// x86Reader undoes the branch filter: an encoder that sees a call or jump (E8,
// E9) with a 32-bit operand stores the absolute target instead of the relative
// one, which repeats more often. An operand counts only when its top byte is 00
// or FF, and bytes that look like opcodes shortly before make it doubtful: mask
// remembers, one bit each, which of the last three positions looked so.
type x86Reader struct {
	r    io.Reader
	buf  []byte // decoded up to done, raw after it
	done int
	out  int    // how much of the decoded part was handed out
	pos  uint32 // offset in the stream of buf[0]
	mask uint32
	err  error
}

const x86Buffer = 64 << 10

func (x *x86Reader) Read(p []byte) (int, error) {
	for x.out == x.done {
		if x.err != nil {
			return 0, x.err
		}
		x.fill()
	}
	n := copy(p, x.buf[x.out:x.done])
	x.out += n
	return n, nil
}

// fill drops what was handed out, reads more and decodes it. The last four bytes
// stay raw until more is known: an operand may begin in them.
func (x *x86Reader) fill() {
	if x.buf == nil {
		x.buf = make([]byte, 0, x86Buffer)
	}
	x.pos += uint32(x.done)
	x.buf = x.buf[:copy(x.buf, x.buf[x.done:])]
	x.out, x.done = 0, 0
	n, err := io.ReadAtLeast(x.r, x.buf[len(x.buf):cap(x.buf)], 1)
	x.buf = x.buf[:len(x.buf)+n]
	x.decode()
	if err != nil {
		x.err, x.done = err, len(x.buf)
	}
}

func (x *x86Reader) decode() {
	limit := len(x.buf) - 4
	i, last := 0, -1 // last: position of the previous opcode byte
	for i < limit {
		if x.buf[i]&0xfe != 0xe8 {
			i++
			continue
		}
		if gap := i - last; gap > 3 {
			x.mask = 0
		} else {
			x.mask = (x.mask << (gap - 1)) & 7
		}
		last = i
		if !x.plausible(i) || !signByte(x.buf[i+4]) {
			x.mask = x.mask<<1 | 1
			i++
			continue
		}
		operand := x.buf[i+1 : i+5]
		binary.LittleEndian.PutUint32(operand, x.relative(binary.LittleEndian.Uint32(operand), x.pos+uint32(i)+5))
		i += 5
		x.mask, last = 0, i-1
	}
	i = max(i, 0)
	if gap := i - last; gap > 3 {
		x.mask = 0
	} else {
		x.mask = (x.mask << (gap - 1)) & 7
	}
	x.done = i
}

// nearest is, by mask, how many bytes before the operand's end the most recent
// doubtful byte lies; bad marks masks under which nothing is converted.
var (
	nearest = [8]uint{0, 1, 2, 2, 3, 3, 3, 3}
	bad     = [8]bool{false, false, false, true, false, true, true, true}
)

func (x *x86Reader) plausible(i int) bool {
	return x.mask == 0 || !bad[x.mask] && !signByte(x.buf[i+4-int(nearest[x.mask])])
}

// relative turns an absolute target back, seen from the instruction's end.
func (x *x86Reader) relative(target, end uint32) uint32 {
	dest := target - end
	for x.mask != 0 {
		shift := nearest[x.mask] * 8
		if !signByte(byte(dest >> (24 - shift))) {
			break
		}
		dest = (dest ^ (1<<(32-shift) - 1)) - end
	}
	return dest&0x01ffffff | -(dest & 0x01000000)
}

func signByte(b byte) bool { return b == 0x00 || b == 0xff }
