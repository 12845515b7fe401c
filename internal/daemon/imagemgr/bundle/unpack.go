package bundle

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"

	"banger/internal/daemon/imagemgr/blobs"
	"banger/internal/errdefs"
	"banger/internal/model"
)

// Want is what somebody who is to be believed says of a bundle: the signed catalog, or
// whoever has checked the signature of a file. A zero Kind, Name or Unpacked may be
// anything.
type Want struct {
	Digest   blobs.Digest // of the bundle
	Size     int64        // of the bundle, in bytes
	Kind     string
	Name     string
	Unpacked int64 // of all files, in bytes
	Data     int64 // at most so many bytes of the files are written, which holes are not; 0: any number
}

// Unpack writes the files of the bundle that is read from r into dir, which exists and
// has none of them. Zeros become holes in rootfs.ext4. It returns the manifest once all
// was there and every digest right, that of the bundle too; with an error it leaves none
// of its files. A bundle that is not what it should be is an error of class
// invalid_argument, unsupported or exhausted (too large).
func Unpack(ctx context.Context, r io.Reader, dir string, want Want, p model.Progress) (m Manifest, err error) {
	u := &unpacker{ctx: ctx, dir: dir, want: want, p: p}
	defer func() {
		if err != nil {
			m = Manifest{}
			for _, path := range u.made {
				_ = os.Remove(path)
			}
		}
	}()
	in := &source{ctx: ctx, r: r, want: want, left: want.Size, hash: sha256.New()}
	var magic [4]byte
	if _, err := io.ReadFull(in, magic[:]); err != nil {
		return m, in.explain(err)
	}
	if !bytes.Equal(magic[:], []byte{0x28, 0xb5, 0x2f, 0xfd}) {
		return m, errdefs.Unsupported("it is not packed with zstd: it begins with % x", magic)
	}
	z, err := zstd.NewReader(io.MultiReader(bytes.NewReader(magic[:]), in),
		zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
	if err != nil {
		return m, fmt.Errorf("open bundle: %w", err)
	}
	defer z.Close()
	if m, err = u.read(z); err != nil {
		return m, in.explain(err)
	}
	return m, in.end()
}

// Verify reads all of r and errors, with class invalid_argument, when that has another
// size or digest.
func Verify(ctx context.Context, r io.Reader, d blobs.Digest, size int64) error {
	in := &source{ctx: ctx, r: r, want: Want{Digest: d}, left: size, hash: sha256.New()}
	return in.end()
}

type unpacker struct {
	ctx  context.Context // of this one bundle
	dir  string
	want Want
	p    model.Progress
	made []string // files
	data int64    // what was written
}

// localError is one of this host, not of the bundle.
type localError struct{ error }

func (e *localError) Unwrap() error { return e.error }

func (u *unpacker) read(plain io.Reader) (m Manifest, err error) {
	tr := tar.NewReader(plain)
	if m, err = u.manifest(tr); err != nil {
		return m, err
	}
	var done int64
	for i, f := range m.Files {
		h, err := tr.Next()
		if err == io.EOF {
			return m, errdefs.Invalid("it ends before %q", f.Name)
		}
		if err != nil {
			return m, err
		}
		if err := regular(h); err != nil {
			return m, err
		}
		switch {
		case h.Name == f.Name:
		case h.Name == ManifestFile || slices.ContainsFunc(m.Files[:i], func(f File) bool { return f.Name == h.Name }):
			return m, errdefs.Invalid("entry %q is there twice", h.Name)
		case m.Has(h.Name):
			return m, errdefs.Invalid("entry %q comes before %q", h.Name, f.Name)
		default:
			return m, errdefs.Invalid("entry %q is not in the manifest", h.Name)
		}
		if h.Size != f.Size {
			return m, errdefs.Invalid("entry %q has %d bytes, and the manifest says %d", f.Name, h.Size, f.Size)
		}
		count := func(n int64) { u.p.Count(done+n, m.Unpacked(), "bytes") }
		if err := u.file(tr, f, count); err != nil {
			return m, err
		}
		done += f.Size
	}
	if h, err := tr.Next(); err == nil {
		return m, errdefs.Invalid("entry %q is not in the manifest, or there twice", h.Name)
	} else if err != io.EOF {
		return m, err
	}
	return m, padding(plain)
}

// manifest reads the first entry and compares it with what is wanted.
func (u *unpacker) manifest(tr *tar.Reader) (Manifest, error) {
	h, err := tr.Next()
	if err == io.EOF {
		return Manifest{}, errdefs.Invalid("it is empty")
	}
	if err != nil {
		return Manifest{}, err
	}
	if err := regular(h); err != nil {
		return Manifest{}, err
	}
	if h.Name != ManifestFile {
		return Manifest{}, errdefs.Invalid("it begins with %q instead of %s", h.Name, ManifestFile)
	}
	if h.Size > maxManifest {
		return Manifest{}, errdefs.Exhausted("the manifest has %d bytes, more than %d", h.Size, maxManifest)
	}
	raw, err := io.ReadAll(tr)
	if err != nil {
		return Manifest{}, err
	}
	m, err := DecodeManifest(raw)
	switch w := u.want; {
	case err != nil:
		return Manifest{}, err
	case w.Kind != "" && m.Kind != w.Kind:
		return m, errdefs.Invalid("it holds the %s %q, and should be of kind %s", m.Kind, m.Name, w.Kind)
	case w.Name != "" && m.Name != w.Name:
		return m, errdefs.Invalid("it holds the %s %q, and should be %q", m.Kind, m.Name, w.Name)
	case w.Unpacked != 0 && m.Unpacked() != w.Unpacked:
		return m, errdefs.Invalid("it unpacks to %d bytes, and should to %d", m.Unpacked(), w.Unpacked)
	}
	return m, nil
}

// regular refuses what is no plain file of a bundle: everything that could lead
// elsewhere, and headers that other readers may read otherwise.
func regular(h *tar.Header) error {
	switch {
	case h.Typeflag != tar.TypeReg:
		return errdefs.Invalid("entry %q is no regular file (type %q)", h.Name, h.Typeflag)
	case h.Format&(tar.FormatUSTAR|tar.FormatGNU) == 0 || len(h.PAXRecords) > 0:
		return errdefs.Invalid("entry %q has an extended header", h.Name)
	case h.Name == "" || strings.ContainsAny(h.Name, "/\\\x00") || h.Name == "." || h.Name == "..":
		return errdefs.Invalid("entry %q is no plain name", h.Name)
	}
	return nil
}

// file writes one file and judges it.
func (u *unpacker) file(r io.Reader, f File, count func(int64)) (err error) {
	u.p.Detail(f.Name)
	path := filepath.Join(u.dir, f.Name)
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return &localError{fmt.Errorf("make %s: %w", f.Name, err)}
	}
	u.made = append(u.made, path)
	defer func() {
		if cerr := out.Close(); err == nil && cerr != nil {
			err = &localError{fmt.Errorf("write %s: %w", f.Name, cerr)}
		}
	}()
	sum, at, sparse := sha256.New(), int64(0), f.Name == Rootfs
	buf := make([]byte, 1<<20)
	for at < f.Size {
		if u.ctx.Err() != nil {
			return context.Cause(u.ctx)
		}
		n, err := io.ReadFull(r, buf[:min(int64(len(buf)), f.Size-at)])
		if err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		sum.Write(buf[:n])
		if err := u.writeData(out, buf[:n], at, sparse); err != nil {
			return err
		}
		at += int64(n)
		count(at)
	}
	if err := out.Truncate(f.Size); err != nil {
		return &localError{fmt.Errorf("write %s: %w", f.Name, err)}
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != f.SHA256 {
		return errdefs.Invalid("file %q is damaged: its SHA-256 is %s, and the manifest says %s", f.Name, got, f.SHA256)
	}
	return nil
}

// block is what a hole is made of, in bytes: a block of ext4.
const block = 4096

var zeros [block]byte

// writeData writes data at an offset that is a multiple of block; of a sparse file only
// the blocks that hold something.
func (u *unpacker) writeData(out *os.File, data []byte, at int64, sparse bool) error {
	if !sparse {
		return u.write(out, data, at)
	}
	begin := 0 // of a run of blocks to be written
	for i := 0; i < len(data); i += block {
		end := min(i+block, len(data))
		if !bytes.Equal(data[i:end], zeros[:end-i]) {
			continue
		}
		if err := u.write(out, data[begin:i], at+int64(begin)); err != nil {
			return err
		}
		begin = end
	}
	return u.write(out, data[begin:], at+int64(begin))
}

func (u *unpacker) write(out *os.File, data []byte, at int64) error {
	if len(data) == 0 {
		return nil
	}
	u.data += int64(len(data))
	if u.want.Data != 0 && u.data > u.want.Data {
		return errdefs.Exhausted("%s has more than %d bytes of data", filepath.Base(out.Name()), u.want.Data)
	}
	if _, err := out.WriteAt(data, at); err != nil {
		return &localError{fmt.Errorf("write %s: %w", filepath.Base(out.Name()), err)}
	}
	return nil
}

// padding reads the zeros that may follow an archive.
func padding(r io.Reader) error {
	var total int
	buf := make([]byte, block)
	for {
		n, err := r.Read(buf)
		total += n
		if total > maxPadding || !bytes.Equal(buf[:n], zeros[:n]) {
			return errdefs.Invalid("something follows the end of its archive")
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// source is the bundle as it comes: it hashes what was read, and ends where the size
// says.
type source struct {
	ctx  context.Context // of this one bundle
	r    io.Reader
	want Want
	left int64
	hash hash.Hash
	err  error // of r, or that it has another size: not the decoder's
}

func (s *source) Read(p []byte) (int, error) {
	if s.ctx.Err() != nil {
		s.err = context.Cause(s.ctx)
	}
	if s.err != nil {
		return 0, s.err
	}
	if len(p) == 0 {
		return 0, nil
	}
	if s.left == 0 {
		var one [1]byte
		n, err := io.ReadFull(s.r, one[:])
		if n > 0 {
			s.err = errdefs.Invalid("it has more bytes than it should")
		} else if err != io.EOF {
			s.err = err
		} else {
			return 0, io.EOF
		}
		return 0, s.err
	}
	n, err := s.r.Read(p[:min(int64(len(p)), s.left)])
	s.hash.Write(p[:n])
	s.left -= int64(n)
	if err == io.EOF {
		if err = nil; s.left > 0 {
			s.err = errdefs.Invalid("it ends %d bytes early", s.left)
			err = s.err
		}
	} else if err != nil {
		s.err = err
	}
	return n, err
}

// end reports whether all was read, and was what it should be.
func (s *source) end() error {
	if _, err := io.Copy(io.Discard, s); err != nil {
		return s.explain(err)
	}
	if got := blobs.Digest("sha256:" + hex.EncodeToString(s.hash.Sum(nil))); got != s.want.Digest {
		return errdefs.Invalid("%w: it is %s", blobs.ErrDigest, got)
	}
	return nil
}

// explain gives what went wrong a class: the fault of the file's, of this host's, or of
// the bundle's.
func (s *source) explain(err error) error {
	var (
		local   *localError
		classed *errdefs.Error
	)
	switch {
	case s.err != nil:
		return s.err
	case errors.As(err, &local):
		return local.error
	case errors.As(err, &classed), s.ctx.Err() != nil:
		return err
	case errors.Is(err, zstd.ErrWindowSizeExceeded), errors.Is(err, zstd.ErrDecoderSizeExceeded):
		return errdefs.Exhausted("unpacking it takes more memory than a bundle may: %w", err)
	case errors.Is(err, zstd.ErrMagicMismatch):
		return errdefs.Invalid("something that is not zstd follows")
	}
	return errdefs.Invalid("it is damaged: %w", err)
}
