// Package decompress reads the formats kernels and their modules are packed in:
// gzip, xz (with the x86 filter kernels use), zstd and the LZ4 legacy frame. The
// format is found by its magic number, never by a file name.
package decompress

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// maxWindow bounds the memory a decoder may ask for, in bytes.
const maxWindow = 256 << 20

// ErrFormat says that the input starts with none of the known magic numbers.
var ErrFormat = errors.New("unknown compression format")

type format struct {
	name  string
	magic []byte
	open  func(*bufio.Reader) (io.ReadCloser, error)
}

// formats is a constant table.
var formats = []format{
	{"gzip", []byte{0x1f, 0x8b, 0x08}, openGzip},
	{"xz", xzMagic, func(r *bufio.Reader) (io.ReadCloser, error) { return io.NopCloser(newXZ(r)), nil }},
	{"zstd", []byte{0x28, 0xb5, 0x2f, 0xfd}, openZstd},
	{"lz4", []byte{0x02, 0x21, 0x4c, 0x18}, func(r *bufio.Reader) (io.ReadCloser, error) { return io.NopCloser(newLZ4(r)), nil }},
}

// Detect names the format that head, the first six bytes or more, begins: "gzip",
// "xz", "zstd" or "lz4"; "" for anything else.
func Detect(head []byte) string {
	for _, f := range formats {
		if bytes.HasPrefix(head, f.magic) {
			return f.name
		}
	}
	return ""
}

// NewReader returns the plain content of a compressed stream that fills r. It
// errors with ErrFormat when r is in none of the formats. The caller bounds how
// much it reads: a small stream can hold a lot.
func NewReader(r io.Reader) (io.ReadCloser, error) {
	br := bufio.NewReaderSize(r, 64<<10)
	head, err := br.Peek(6)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read the magic number: %w", err)
	}
	for _, f := range formats {
		if !bytes.HasPrefix(head, f.magic) {
			continue
		}
		rc, err := f.open(br)
		if err != nil {
			return nil, fmt.Errorf("open %s stream: %w", f.name, err)
		}
		return rc, nil
	}
	return nil, ErrFormat
}

func openGzip(r *bufio.Reader) (io.ReadCloser, error) {
	z, err := gzip.NewReader(r)
	if err != nil {
		return nil, err
	}
	return z, nil
}

func openZstd(r *bufio.Reader) (io.ReadCloser, error) {
	d, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
	if err != nil {
		return nil, err
	}
	return d.IOReadCloser(), nil
}
