package vmlinux

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"

	"banger/internal/errdefs"
)

const (
	offKernelVersion = 0x20e // pointer to a string, counted from 0x200
	scanChunk        = 1 << 20
)

var banner = regexp.MustCompile(`Linux version ([0-9][!-~]{0,64}) `)

// Release returns what `uname -r` says in the kernel at path, a bzImage or an ELF
// vmlinux.
func Release(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("open kernel: %w", err)
	}
	defer f.Close()
	release := ""
	if IsBzImage(f) {
		release, err = headerRelease(f)
	} else {
		release, err = scanRelease(f)
	}
	if err != nil {
		return "", fmt.Errorf("read the kernel's release: %w", err)
	}
	if release == "" || strings.ContainsAny(release, "/\x00") || strings.HasPrefix(release, ".") {
		return "", errdefs.Unsupported("%s does not say which kernel release it is", path)
	}
	return release, nil
}

func headerRelease(f *os.File) (string, error) {
	var p [2]byte
	if _, err := f.ReadAt(p[:], offKernelVersion); err != nil {
		return "", err
	}
	var text [128]byte
	n, err := f.ReadAt(text[:], int64(binary.LittleEndian.Uint16(p[:]))+0x200)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	line, _, _ := strings.Cut(string(text[:n]), "\x00")
	release, _, _ := strings.Cut(line, " ")
	return release, nil
}

func scanRelease(r io.Reader) (release string, err error) {
	err = scan(r, func(chunk []byte) bool {
		m := banner.FindSubmatch(chunk)
		if m != nil {
			release = string(m[1])
		}
		return m != nil
	})
	return release, err
}

// Mentions reports whether the ELF image at path has one of the texts in it. A kernel
// mentions a driver by its name if, and only if, that is built in.
func Mentions(path string, texts ...string) (found bool, err error) {
	f, err := os.Open(path)
	if err != nil {
		return false, fmt.Errorf("open kernel: %w", err)
	}
	defer f.Close()
	err = scan(f, func(chunk []byte) bool {
		found = slices.ContainsFunc(texts, func(t string) bool { return bytes.Contains(chunk, []byte(t)) })
		return found
	})
	if err != nil {
		return false, fmt.Errorf("look through the kernel: %w", err)
	}
	return found, nil
}

// scan shows all of r to look, in pieces of which each begins with the last 256 bytes
// of the one before, until that returns true.
func scan(r io.Reader, look func(chunk []byte) bool) error {
	buf := make([]byte, 0, scanChunk+256)
	for {
		n, err := io.ReadFull(r, buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if look(buf) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		}
		if err != nil {
			return err
		}
		buf = append(buf[:0], bytes.Clone(buf[len(buf)-256:])...) // what is looked for may begin here
	}
}
