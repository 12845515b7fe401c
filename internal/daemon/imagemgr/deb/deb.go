// Package deb reads Debian's binary packages without dpkg: an ar archive of a version,
// what dpkg wants to know, and the package's files as a tar archive.
package deb

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"banger/internal/daemon/imagemgr/decompress"
	"banger/internal/errdefs"
)

// Bounds of a package.
const (
	maxMember  = 8 << 30 // bytes, of one member of the archive
	maxControl = 16 << 20
	maxMembers = 16 // before the files
)

const (
	magic      = "!<arch>\n"
	headerSize = 60
	headerEnd  = "`\n"
)

// Data returns the tar archive of the package's files, unpacked while it is read. A
// file that is no package is an error of class invalid_argument; one that is packed in
// a way not known, unsupported. The caller bounds what it reads.
func Data(r io.Reader) (io.ReadCloser, error) {
	in := bufio.NewReaderSize(r, 64<<10)
	var head [len(magic)]byte
	if _, err := io.ReadFull(in, head[:]); err != nil || string(head[:]) != magic {
		return nil, bad(err, "it is no Debian package: it does not begin as an ar archive")
	}
	control := false
	for i := range maxMembers {
		name, size, err := header(in)
		if err != nil {
			return nil, err
		}
		switch {
		case i == 0 && name == "debian-binary":
			text := make([]byte, min(size, 32))
			if _, err := io.ReadFull(in, text); err != nil || size > 32 || !strings.HasPrefix(string(text), "2.") {
				return nil, bad(err, "it is a package of version %q, and known is 2", strings.TrimSpace(string(text)))
			}
			if size%2 == 1 {
				_, err = in.Discard(1)
			}
			if err != nil {
				return nil, bad(err, "it ends early")
			}
			continue
		case i == 0:
			return nil, errdefs.Invalid("it is no Debian package: it begins with %q instead of debian-binary", name)
		case name == "control.tar" || strings.HasPrefix(name, "control.tar."):
			if control || size > maxControl {
				return nil, errdefs.Invalid("entry %q is there twice, or has more than %d bytes (%d)", name, maxControl, size)
			}
			control = true
		case name == "data.tar" || strings.HasPrefix(name, "data.tar."):
			if !control {
				return nil, errdefs.Invalid("entry %q comes before control.tar", name)
			}
			return open(name, &member{r: in, left: size})
		case !strings.HasPrefix(name, "_"): // which readers pass over
			return nil, errdefs.Invalid("entry %q has no place in a Debian package", name)
		}
		if _, err := io.CopyN(io.Discard, in, size+size%2); err != nil {
			return nil, bad(err, "it ends within %q", name)
		}
	}
	return nil, errdefs.Invalid("it has more than %d entries before its files", maxMembers)
}

// bad is what is wrong with a package, unless it could not be read.
func bad(err error, format string, args ...any) error {
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("read package: %w", err)
	}
	return errdefs.Invalid(format, args...)
}

// header reads the header of a member.
func header(r io.Reader) (name string, size int64, err error) {
	var h [headerSize]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return "", 0, bad(err, "it has no data.tar")
	}
	if string(h[58:]) != headerEnd {
		return "", 0, errdefs.Invalid("an entry's header is damaged")
	}
	name = strings.TrimSuffix(strings.TrimRight(string(h[:16]), " "), "/")
	digits := strings.TrimRight(string(h[48:58]), " ")
	n, err := strconv.ParseUint(digits, 10, 63)
	if err != nil {
		return "", 0, errdefs.Invalid("entry %q has a size of %q", name, digits)
	}
	if n > maxMember {
		return "", 0, errdefs.Exhausted("entry %q has %d bytes, more than %d", name, n, int64(maxMember))
	}
	return name, int64(n), nil
}

// member is the content of one entry; that it ends early is an error.
type member struct {
	r    io.Reader
	left int64
}

func (m *member) Read(p []byte) (int, error) {
	if m.left == 0 {
		return 0, io.EOF
	}
	n, err := m.r.Read(p[:min(int64(len(p)), m.left)])
	if m.left -= int64(n); err == io.EOF && m.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func open(name string, r io.Reader) (io.ReadCloser, error) {
	if name == "data.tar" {
		return io.NopCloser(r), nil
	}
	z, err := decompress.NewReader(r)
	if errors.Is(err, decompress.ErrFormat) {
		return nil, errdefs.Unsupported("entry %q is packed with none of gzip, xz and zstd", name)
	}
	if err != nil {
		return nil, errdefs.Invalid("entry %q: %w", name, err)
	}
	return z, nil
}
