// Package vmlinux takes the ELF kernel out of a bzImage.
package vmlinux

import (
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"banger/internal/daemon/imagemgr/decompress"
	"banger/internal/errdefs"
)

// maxSize bounds an unpacked kernel, in bytes.
const maxSize = 512 << 20

// Offsets of the x86 boot protocol's setup header.
const (
	offSetupSects    = 0x1f1
	offMagic         = 0x202 // "HdrS"
	offVersion       = 0x206
	offPayload       = 0x248 // from the end of the setup code, protocol 2.08
	offPayloadLength = 0x24c
	headerSize       = 0x250
	sector           = 512
	payloadSince     = 0x208
)

// Extract unpacks the bzImage at src into a new file dst. It errors with class
// unsupported when src is no bzImage or is packed in a format not known.
func Extract(src, dst string) (err error) {
	in, err := os.Open(src)
	if err != nil {
		return fmt.Errorf("open kernel: %w", err)
	}
	defer in.Close()
	payload, err := payload(in)
	if err != nil {
		return fmt.Errorf("unpack %s: %w", filepath.Base(src), err)
	}
	out, err := os.OpenFile(dst, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return fmt.Errorf("create vmlinux: %w", err)
	}
	defer func() {
		if err = errors.Join(err, out.Close()); err != nil {
			_ = os.Remove(dst)
		}
	}()
	if err := unpack(out, payload); err != nil {
		return fmt.Errorf("unpack %s: %w", filepath.Base(src), err)
	}
	return Check(out)
}

// IsBzImage reports whether the file begins like a bzImage.
func IsBzImage(r io.ReaderAt) bool {
	var m [4]byte
	_, err := r.ReadAt(m[:], offMagic)
	return err == nil && string(m[:]) == "HdrS"
}

// Check reports whether r is an x86-64 ELF kernel.
func Check(r io.ReaderAt) error {
	f, err := elf.NewFile(r)
	if err != nil {
		return errdefs.Unsupported("read the kernel's ELF header: %w", err)
	}
	if f.Machine != elf.EM_X86_64 || f.Type != elf.ET_EXEC {
		return errdefs.Unsupported("the kernel is %v for %v, not an executable for x86-64", f.Type, f.Machine)
	}
	return nil
}

// payload finds the packed kernel; it ends before the size that follows it.
func payload(in *os.File) (*io.SectionReader, error) {
	st, err := in.Stat()
	if err != nil {
		return nil, err
	}
	var h [headerSize]byte
	if _, err := in.ReadAt(h[:], 0); err != nil || !IsBzImage(in) {
		return nil, errdefs.Unsupported("it has no x86 boot header, so it is no bzImage")
	}
	if v := binary.LittleEndian.Uint16(h[offVersion:]); v < payloadSince {
		return nil, errdefs.Unsupported("its boot protocol %d.%02d is older than 2.08", v>>8, v&0xff)
	}
	setup := int64(h[offSetupSects])
	if setup == 0 {
		setup = 4
	}
	start := (setup+1)*sector + int64(binary.LittleEndian.Uint32(h[offPayload:]))
	length := int64(binary.LittleEndian.Uint32(h[offPayloadLength:]))
	if length < 16 || start+length > st.Size() {
		return nil, errdefs.Unsupported("its payload of %d bytes at %d lies outside the file of %d", length, start, st.Size())
	}
	var magic [6]byte
	if _, err := in.ReadAt(magic[:], start); err != nil {
		return nil, err
	}
	switch decompress.Detect(magic[:]) {
	case "gzip": // ends with its size by itself
	case "":
		return nil, errdefs.Unsupported("its payload starts with % x, which no known compression does", magic)
	default:
		length -= 4
	}
	return io.NewSectionReader(in, start, length), nil
}

func unpack(out io.Writer, packed io.Reader) error {
	z, err := decompress.NewReader(packed)
	if err != nil {
		return err
	}
	defer z.Close()
	n, err := io.Copy(out, io.LimitReader(z, maxSize+1))
	if err != nil {
		return err
	}
	if n > maxSize {
		return errdefs.Exhausted("it unpacks to more than %d bytes", maxSize)
	}
	return nil
}
