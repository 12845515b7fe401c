package oci

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"

	"banger/internal/daemon/imagemgr/blobs"
	"banger/internal/daemon/imagemgr/decompress"
	"banger/internal/errdefs"
)

const (
	maxMembers = 100_000 // of an archive
	maxName    = 4096    // bytes, of a member's name and of where it links to
	maxLinks   = 8       // from one member to another
)

// files are the files of a layout or an archive. Names lead to nothing outside.
type files interface {
	// open opens a regular file and says how large it is.
	open(name string) (io.ReadSeekCloser, int64, error)
	close() error
}

// readFile returns a file of at most limit bytes.
func readFile(fs files, name string, limit int64) ([]byte, error) {
	f, size, err := fs.open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if size > limit {
		return nil, errdefs.Invalid("%q has %d bytes, more than %d", name, size, limit)
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = errdefs.Invalid("%q has more than %d bytes", name, limit)
	}
	return data, err
}

// directory is a directory: links in it lead nowhere outside.
type directory struct{ root *os.Root }

func openDirectory(name string) (*directory, error) {
	fi, err := os.Stat(name)
	if err == nil && !fi.IsDir() {
		return nil, errdefs.NotFound("%q is no directory", name).WithHint("for a tar file of a layout: oci-archive:FILE")
	}
	if err != nil {
		return nil, hostErr(err)
	}
	root, err := os.OpenRoot(name)
	if err != nil {
		return nil, hostErr(err)
	}
	return &directory{root}, nil
}

func (d *directory) open(name string) (io.ReadSeekCloser, int64, error) {
	f, size, err := openRegular(d.root.OpenFile, name)
	if err != nil {
		return nil, 0, err
	}
	return f, size, nil
}

func (d *directory) close() error { return d.root.Close() }

// hostErr classifies an error with a file of this host.
func hostErr(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return errdefs.NotFound("%w", err).WithHint("check the path")
	case strings.Contains(err.Error(), "escapes from parent"): // package os has no name for it
		return errdefs.Invalid("%w", err)
	}
	return err
}

// openFile opens a regular file of the user's.
func openFile(name string) (*os.File, int64, error) { return openRegular(os.OpenFile, name) }

// openRegular opens a file for reading that has to be a regular one, and returns its size.
func openRegular(open func(name string, flag int, perm os.FileMode) (*os.File, error), name string) (*os.File, int64, error) {
	f, err := open(name, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a fifo would have us wait
	if err != nil {
		return nil, 0, hostErr(err)
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = errdefs.Invalid("%q is no regular file", name)
	}
	if err != nil {
		_ = f.Close()
		return nil, 0, err
	}
	return f, fi.Size(), nil
}

// archive is a tar file whose members are read where they lie.
type archive struct {
	f       *os.File
	members map[string]member
}

type member struct {
	offset, size int64
	link         string // the name of another member
}

// openArchive reads a tar file through once, and closes it with the archive or when that
// fails. One that is compressed is unpacked into a scratch file first, as nothing can be
// found in it otherwise.
func openArchive(ctx context.Context, f *os.File, o Options) (_ *archive, err error) {
	a := &archive{f: f, members: map[string]member{}}
	defer func() {
		if err != nil {
			_ = a.close()
		}
	}()
	compressed, err := packed(io.NewSectionReader(f, 0, 16))
	if err != nil {
		return nil, fmt.Errorf("read archive: %w", err)
	}
	if compressed {
		if a.f, err = unpack(ctx, f, o); err != nil {
			a.f = f
			return nil, err
		}
		if err := f.Close(); err != nil {
			return nil, err
		}
	}
	size, err := a.f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, fmt.Errorf("read archive: %w", err)
	}
	if size > o.Limits.Bytes {
		return nil, errdefs.Invalid("the archive has %d bytes, more than %d", size, o.Limits.Bytes)
	}
	return a, a.index(ctx, size)
}

// unpack writes what is packed in f to a scratch file.
func unpack(ctx context.Context, f *os.File, o Options) (*os.File, error) {
	z, err := decompress.NewReader(blobs.Until(ctx, f))
	if err != nil {
		return nil, errdefs.Invalid("unpack the archive: %w", err)
	}
	defer z.Close()
	out, err := spool(z, o)
	if errors.Is(err, errSource) && ctx.Err() == nil {
		err = errdefs.Invalid("unpack the archive: %w", err)
	}
	return out, err
}

// errSource marks errors of what is read, not of what is written.
var errSource = errors.New("it is damaged or cut off")

// sourceReader remembers what went wrong with it.
type sourceReader struct {
	r   io.Reader
	err error
}

func (s *sourceReader) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

// spool writes what r has to a scratch file.
func spool(r io.Reader, o Options) (*os.File, error) {
	out, err := o.Cache.Scratch()
	if err != nil {
		return nil, err
	}
	in := &sourceReader{r: r}
	n, err := io.CopyBuffer(struct{ io.Writer }{out}, io.LimitReader(in, o.Limits.Bytes+1), make([]byte, copyBuffer))
	if in.err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %w", errSource, in.err), out.Close())
	}
	if err == nil && n > o.Limits.Bytes {
		err = errdefs.Invalid("the archive has more than %d bytes", o.Limits.Bytes)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("write the archive to a temporary file: %w", err), out.Close())
	}
	return out, nil
}

func (a *archive) index(ctx context.Context, size int64) error {
	at := &countingReader{ctx: ctx, r: io.NewSectionReader(a.f, 0, size)}
	tr := tar.NewReader(at)
	for n := 0; ; n++ {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			return errdefs.Invalid("read the archive: %w", err)
		}
		if n == maxMembers {
			return errdefs.Invalid("the archive has more than %d members", maxMembers)
		}
		if len(h.Name) > maxName || len(h.Linkname) > maxName {
			return errdefs.Invalid("the archive has a member whose name or link has more than %d bytes, %.100q", maxName, h.Name)
		}
		name := path.Clean(h.Name)
		if path.IsAbs(name) || name == ".." || strings.HasPrefix(name, "../") {
			return errdefs.Invalid("the archive has a member outside of it, %.200q", h.Name)
		}
		switch h.Typeflag {
		case tar.TypeReg:
			if sparse(h) || h.Size > size-at.n {
				return errdefs.Invalid("member %.200q of the archive is not stored in one piece", h.Name)
			}
			a.members[name] = member{offset: at.n, size: h.Size}
		case tar.TypeSymlink:
			a.members[name] = member{link: path.Join(path.Dir(name), h.Linkname)}
		case tar.TypeLink:
			a.members[name] = member{link: path.Clean(h.Linkname)}
		}
	}
}

func sparse(h *tar.Header) bool {
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// countingReader knows where it is, and ends with a context: before one member there can
// be any number of headers. It seeks, so that no content is read.
type countingReader struct {
	ctx context.Context
	r   *io.SectionReader
	n   int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

func (c *countingReader) Seek(offset int64, whence int) (int64, error) {
	n, err := c.r.Seek(offset, whence)
	if err == nil {
		c.n = n
	}
	return n, err
}

func (a *archive) open(name string) (io.ReadSeekCloser, int64, error) {
	at := path.Clean(name)
	for range maxLinks {
		m, ok := a.members[at]
		if !ok {
			break
		}
		if m.link == "" {
			return section{io.NewSectionReader(a.f, m.offset, m.size)}, m.size, nil
		}
		at = m.link
	}
	return nil, 0, errdefs.NotFound("the archive has no file %.200q", name).WithHint("it is damaged, or of another kind: oci-archive:FILE is an OCI layout, docker-archive:FILE is of docker save")
}

func (a *archive) close() error { return a.f.Close() }

// section is a piece of an open file.
type section struct{ *io.SectionReader }

func (section) Close() error { return nil }

// packed reports whether a file is compressed.
func packed(r io.Reader) (bool, error) {
	head, err := bufio.NewReaderSize(r, 16).Peek(6)
	if err != nil && err != io.EOF {
		return false, err
	}
	return decompress.Detect(head) != "", nil
}

// stored is an image whose blobs are files of a layout or an archive.
type stored struct {
	fs    files
	names map[blobs.Digest]string // nil: by the rule of OCI layouts
}

func (s *stored) name(d blobs.Digest) string {
	if s.names != nil {
		return s.names[d]
	}
	return "blobs/sha256/" + d.Hex()
}

func (s *stored) local(d blobs.Digest) (io.ReadCloser, error) {
	f, _, err := s.fs.open(s.name(d))
	return f, err
}

func (s *stored) fill(ctx context.Context, d blobs.Digest, w *blobs.Writer) error {
	f, size, err := s.fs.open(s.name(d))
	if err != nil {
		return err
	}
	defer f.Close()
	if size != w.Size() {
		return errdefs.Invalid("%q has %d bytes and not %d", s.name(d), size, w.Size())
	}
	if err := copyFrom(ctx, w, f); err != nil {
		return err
	}
	if err := w.Verify(); !errors.Is(err, blobs.ErrDigest) {
		return err
	}
	// The beginning may be of an earlier attempt.
	if err := copyFrom(ctx, w, f); err != nil {
		return err
	}
	if err := w.Verify(); err != nil {
		return errdefs.Invalid("%q: %w", s.name(d), err)
	}
	return nil
}

// copyFrom writes what f has from w.Offset() on.
func copyFrom(ctx context.Context, w *blobs.Writer, f io.ReadSeeker) error {
	if _, err := f.Seek(w.Offset(), io.SeekStart); err != nil {
		return err
	}
	_, err := io.CopyBuffer(struct{ io.Writer }{w}, blobs.Until(ctx, f), make([]byte, copyBuffer))
	return err
}

func (s *stored) config(_ context.Context, d blobs.Digest, size int64) ([]byte, error) {
	raw, err := readFile(s.fs, s.name(d), size)
	if err == nil && blobs.Of(raw) != d {
		err = errdefs.Invalid("config %s: %w", d.Short(), blobs.ErrDigest)
	}
	return raw, err
}

func (s *stored) close() error { return s.fs.close() }
