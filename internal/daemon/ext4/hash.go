package ext4

import "math/bits"

// hash is what a directory's index knows a name by: half of an MD4, of bytes without a
// sign. The lowest bit is free.
func hash(name string, seed [16]byte) uint32 {
	state := [4]uint32{0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476}
	if seed != ([16]byte{}) {
		for i := range state {
			state[i] = le.Uint32(seed[4*i:])
		}
	}
	for {
		in := words(name)
		halfMD4(&state, &in)
		if len(name) <= 32 {
			break
		}
		name = name[32:]
	}
	// The largest value stands for the end of a directory.
	return min(state[1]&^1, 0xfffffffc)
}

// words packs up to 32 bytes, the first of four in the highest bits, and pads with the
// length of what is left of the name.
func words(name string) (in [8]uint32) {
	pad := uint32(len(name))&0xff | uint32(len(name))<<8
	pad |= pad << 16
	for i := range in {
		in[i] = pad
		for k := 4 * i; k < min(4*i+4, len(name)); k++ {
			in[i] = in[i]<<8 + uint32(name[k])
		}
	}
	return in
}

func halfMD4(state *[4]uint32, in *[8]uint32) {
	a, b, c, d := state[0], state[1], state[2], state[3]
	f := func(x, y, z uint32) uint32 { return z ^ x&(y^z) }
	g := func(x, y, z uint32) uint32 { return x&y + (x^y)&z }
	h := func(x, y, z uint32) uint32 { return x ^ y ^ z }
	for i := 0; i < 8; i += 4 {
		a = bits.RotateLeft32(a+f(b, c, d)+in[i], 3)
		d = bits.RotateLeft32(d+f(a, b, c)+in[i+1], 7)
		c = bits.RotateLeft32(c+f(d, a, b)+in[i+2], 11)
		b = bits.RotateLeft32(b+f(c, d, a)+in[i+3], 19)
	}
	for i := 1; i >= 0; i-- {
		const k = 0x5a827999
		a = bits.RotateLeft32(a+g(b, c, d)+in[i]+k, 3)
		d = bits.RotateLeft32(d+g(a, b, c)+in[i+2]+k, 5)
		c = bits.RotateLeft32(c+g(d, a, b)+in[i+4]+k, 9)
		b = bits.RotateLeft32(b+g(c, d, a)+in[i+6]+k, 13)
	}
	for i := 3; i >= 1; i -= 2 {
		const k = 0x6ed9eba1
		a = bits.RotateLeft32(a+h(b, c, d)+in[i]+k, 3)
		d = bits.RotateLeft32(d+h(a, b, c)+in[i+4]+k, 9)
		c = bits.RotateLeft32(c+h(d, a, b)+in[i-1]+k, 11)
		b = bits.RotateLeft32(b+h(c, d, a)+in[i+3]+k, 15)
	}
	state[0] += a
	state[1] += b
	state[2] += c
	state[3] += d
}
