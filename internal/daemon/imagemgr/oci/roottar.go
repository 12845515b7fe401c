package oci

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"banger/internal/daemon/imagemgr/blobs"
	"banger/internal/daemon/imagemgr/decompress"
	"banger/internal/errdefs"
)

// rootTar is a root file system in a tar file: an image of one layer.
type rootTar struct {
	stored
	doc document
	raw []byte // the config
}

// openRootTar reads the file through once, for the digests of it and of what is in it.
func openRootTar(ctx context.Context, ref Reference, o Options) (source, error) {
	f, size, err := openFile(ref.Path)
	if err != nil {
		return nil, err
	}
	t := &rootTar{stored: stored{fs: &single{f: f, size: size}}}
	if size > o.Limits.Bytes {
		err = errdefs.Invalid("it has %d bytes, more than %d", size, o.Limits.Bytes)
	} else {
		err = t.read(ctx, f, size, o)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return t, nil
}

// single is the one file of such an image.
type single struct {
	f interface {
		io.ReaderAt
		io.Closer
	}
	size int64
}

func (s *single) open(string) (io.ReadSeekCloser, int64, error) {
	return section{io.NewSectionReader(s.f, 0, s.size)}, s.size, nil
}

func (s *single) close() error { return s.f.Close() }

func (t *rootTar) read(ctx context.Context, f io.ReaderAt, size int64, o Options) error {
	outer := sha256.New()
	all := io.TeeReader(blobs.Until(ctx, io.NewSectionReader(f, 0, size)), outer)
	compressed, err := packed(io.NewSectionReader(f, 0, size))
	if err != nil {
		return err
	}
	layer := v1.Descriptor{Size: size, MediaType: types.DockerUncompressedLayer}
	inner := sha256.New()
	head := &tarHead{}
	var content io.Reader = all
	if compressed {
		layer.MediaType = types.DockerLayer
		z, err := decompress.NewReader(all)
		if err != nil {
			return errdefs.Invalid("unpack: %w", err)
		}
		defer z.Close()
		content = z
	}
	n, err := io.CopyBuffer(io.MultiWriter(inner, head), io.LimitReader(content, o.Limits.Bytes+1), make([]byte, copyBuffer))
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return errdefs.Invalid("unpack: %w", err)
	}
	if n > o.Limits.Bytes {
		return errdefs.Invalid("unpacked it has more than %d bytes", o.Limits.Bytes)
	}
	if !head.ok() {
		return errdefs.Invalid("it is no tar file").WithHint("give a tar file of a root file system, plain or compressed with gzip, zstd or xz")
	}
	if _, err := io.Copy(io.Discard, all); err != nil { // what is behind the packed content
		return fmt.Errorf("read: %w", err)
	}
	layer.Digest = hashOf(sum(outer))
	t.raw, err = json.Marshal(map[string]any{ // v1.ConfigFile would say that it is of the year 1
		"os": o.Platform.OS, "architecture": o.Platform.Architecture, "variant": o.Platform.Variant,
		"rootfs": v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{hashOf(sum(inner))}},
	})
	if err != nil {
		return err
	}
	t.doc, err = madeUp(t.raw, []v1.Descriptor{layer})
	return err
}

func (t *rootTar) document(context.Context, blobs.Digest) (document, error) { return t.doc, nil }

func (t *rootTar) config(context.Context, blobs.Digest, int64) ([]byte, error) { return t.raw, nil }

func sum(h hash.Hash) blobs.Digest {
	return blobs.Digest(fmt.Sprintf("sha256:%x", h.Sum(nil)))
}

func digestOf(r io.Reader) (blobs.Digest, error) {
	h := sha256.New()
	_, err := io.CopyBuffer(struct{ io.Writer }{h}, r, make([]byte, copyBuffer))
	return sum(h), err
}

// tarHead looks for the mark of a tar header in the first bytes it is given.
type tarHead struct{ head []byte }

func (t *tarHead) Write(p []byte) (int, error) {
	t.head = append(t.head, p[:min(len(p), max(0, 512-len(t.head)))]...)
	return len(p), nil
}

func (t *tarHead) ok() bool {
	return len(t.head) == 512 && string(t.head[257:262]) == "ustar"
}
