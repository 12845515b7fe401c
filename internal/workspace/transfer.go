package workspace

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"path"

	"banger/internal/errdefs"
)

// TransferOptions say what becomes of the entries of a stream on their way from one VM to
// another.
type TransferOptions struct {
	Strip  bool   // what is in the directory that the stream is of, without itself
	Rename string // takes the place of the first element of every name; empty keeps it
	One    bool   // the stream must hold one regular file
	// Keep passes on set-id bits, devices and named pipes: the VM that the stream comes from
	// is believed.
	Keep     bool
	Progress func(bytes int64) // may be nil
}

// Transfer copies the tar stream of a VM to w, entry by entry: what the other VM gets has
// been checked as if it were for this host. Bytes of files are not kept.
func Transfer(ctx context.Context, r io.Reader, w io.Writer, opts TransferOptions) error {
	names := &extractor{opts: ExtractOptions{Strip: opts.Strip, Rename: opts.Rename}}
	t := transfer{opts: opts, out: tar.NewWriter(w), buf: make([]byte, 256<<10)}
	err := eachEntry(ctx, r, opts.One, func(h *tar.Header, content *tar.Reader) error { return t.entry(names, h, content) })
	if err != nil {
		return err
	}
	return t.out.Close()
}

type transfer struct {
	opts TransferOptions
	out  *tar.Writer
	buf  []byte
	done int64
}

func (t *transfer) entry(names *extractor, h *tar.Header, contents io.Reader) error {
	name, err := names.name(h.Name)
	if err != nil {
		return err
	}
	if name == "" {
		if h.Typeflag != tar.TypeDir {
			return errdefs.Invalid("the stream replaces the destination by %q", h.Name)
		}
		return nil
	}
	if sparse(h) {
		return errdefs.Unsupported("%q is a sparse entry, which can grow without bounds", h.Name)
	}
	to := &tar.Header{
		Typeflag: h.Typeflag, Name: name, Size: h.Size, Mode: h.Mode & 0o7777, Uid: h.Uid, Gid: h.Gid, ModTime: h.ModTime,
	}
	if h.ModTime.Nanosecond() != 0 {
		to.Format = tar.FormatPAX // the only one with fractions of a second
	}
	if !t.opts.Keep {
		to.Mode &^= 0o6000
	}
	switch h.Typeflag {
	case tar.TypeDir:
		to.Name += "/"
	case tar.TypeReg:
	case tar.TypeSymlink:
		to.Linkname = h.Linkname
	case tar.TypeLink:
		if to.Linkname, err = names.name(h.Linkname); err != nil {
			return err
		}
	case tar.TypeFifo:
		if !t.opts.Keep {
			return nil
		}
	case tar.TypeChar, tar.TypeBlock:
		if !t.opts.Keep {
			return errdefs.Permission("%q is a device, which one VM does not make in another", path.Clean(h.Name)).
				WithHint("copy the directories you need one by one, or with --archive all as it is")
		}
		to.Devmajor, to.Devminor = h.Devmajor, h.Devminor
	default:
		return errdefs.Unsupported("%q has entry type %q", h.Name, h.Typeflag)
	}
	if to.Typeflag != tar.TypeReg {
		to.Size = 0
	}
	if err := t.out.WriteHeader(to); err != nil {
		return err
	}
	if to.Typeflag != tar.TypeReg {
		return nil
	}
	return t.copy(contents)
}

func (t *transfer) copy(contents io.Reader) error {
	for {
		n, err := contents.Read(t.buf)
		if n > 0 {
			if _, err := t.out.Write(t.buf[:n]); err != nil {
				return err
			}
			if t.done += int64(n); t.opts.Progress != nil {
				t.opts.Progress(t.done)
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return streamErr(err)
		}
	}
}
