// Package ociwrite makes an image of one layer from a filesystem that a guest has
// written: an OCI layout, which is saved as it is or as an archive, or pushed.
//
// What comes of one disk is always the same, byte for byte. Of the filesystem everything
// is kept that a tar of OCI's can say: owners, modes, times of modification to the
// nanosecond, extended attributes with ACLs, device nodes, fifos, hard links, and names of
// any bytes; holes become zeros, which compress to nothing. Sockets are left out, as they
// are by other tools, and the attributes of the root itself, which unpackers set. What
// would mean something else in a layer (a file called .wh.NAME) is refused.
package ociwrite

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"banger/internal/daemon/ext4"
	"banger/internal/daemon/imagemgr/blobs"
	"banger/internal/daemon/imagemgr/oci"
	"banger/internal/daemon/imagemgr/outfile"
	"banger/internal/errdefs"
	"banger/internal/model"
)

// Compression is how a layer is stored.
type Compression string

// The compressions. Every tool reads gzip; zstd is smaller and faster.
const (
	Gzip Compression = "gzip"
	Zstd Compression = "zstd"
	None Compression = "none" // which archives in Docker's format need
)

// Limits bound an image. Zero values stand for the defaults, which are those of pulls.
type Limits struct {
	Entries int64 // 2,000,000
	Bytes   int64 // of the layer's tar, holes as zeros; 128 GiB
}

// Options says what an image is like.
type Options struct {
	Config      model.ImageConfig
	Platform    oci.Platform // zero: oci.HostPlatform
	Compression Compression  // "": Gzip
	Created     time.Time    // zero: 1970, so that the same disk is the same image
	// Skip leaves a path out, with all below it. The root's lost+found is, if it is empty.
	Skip     func(path string) bool
	Target   outfile.Options // of Save
	Limits   Limits
	Progress func(done int64) // told the bytes of the layer's tar so far; may be nil
}

// Image is an image in a directory, which is an OCI layout.
type Image struct {
	Dir      string
	Manifest v1.Descriptor
	Config   v1.Descriptor
	Layer    v1.Descriptor
	DiffID   blobs.Digest // of the layer's tar
	Size     int64        // of the layer's tar, bytes
	Sockets  int64        // that were left out
}

// Open opens a blob of the image.
func (i *Image) Open(d blobs.Digest) (*os.File, error) { return os.Open(i.file(d)) }

func (i *Image) file(d blobs.Digest) string { return filepath.Join(i.Dir, "blobs", "sha256", d.Hex()) }

// Descriptors returns the layer, the config and the manifest: each needs those before it.
func (i *Image) Descriptors() []v1.Descriptor {
	return []v1.Descriptor{i.Layer, i.Config, i.Manifest}
}

// Upload is the image as it is pushed.
func (i *Image) Upload() (oci.Upload, error) {
	manifest, err := os.ReadFile(i.file(blobs.Digest(i.Manifest.Digest.String())))
	u := oci.Upload{Manifest: manifest, MediaType: string(i.Manifest.MediaType)}
	for _, d := range []v1.Descriptor{i.Layer, i.Config} {
		digest := blobs.Digest(d.Digest.String())
		u.Blobs = append(u.Blobs, oci.Blob{
			Layer: oci.Layer{Digest: digest, Size: d.Size, MediaType: string(d.MediaType)},
			Open:  func() (io.ReadSeekCloser, error) { return i.Open(digest) },
		})
	}
	return u, err
}

// Build makes an image of fsys in dir, which is empty, and the caller's to remove.
func Build(ctx context.Context, fsys *ext4.FS, dir string, o Options) (*Image, error) {
	if o.Platform == (oci.Platform{}) {
		o.Platform = oci.HostPlatform()
	}
	if o.Compression == "" {
		o.Compression = Gzip
	}
	if o.Limits.Entries == 0 {
		o.Limits.Entries = 2_000_000
	}
	if o.Limits.Bytes == 0 {
		o.Limits.Bytes = 128 << 30
	}
	if o.Created.IsZero() {
		o.Created = time.Unix(0, 0)
	}
	i := &Image{Dir: dir}
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o755); err != nil {
		return nil, errdefs.Wrap(err, "make room for an image")
	}
	if err := i.layer(ctx, fsys, o); err != nil {
		return nil, errdefs.Wrap(err, "make the image's layer")
	}
	if err := i.describe(o); err != nil {
		return nil, errdefs.Wrap(err, "describe the image")
	}
	return i, nil
}

// counted counts and hashes what is written.
type counted struct {
	w    io.Writer
	hash hash.Hash
	n    int64
	tell func(int64) // may be nil
}

func newCounted(w io.Writer) *counted { return &counted{w: w, hash: sha256.New()} }

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.hash.Write(p[:n])
	c.n += int64(n)
	if c.tell != nil {
		c.tell(c.n)
	}
	return n, err
}

func (c *counted) digest() blobs.Digest {
	return blobs.Digest(fmt.Sprintf("sha256:%x", c.hash.Sum(nil)))
}

var layerTypes = map[Compression]types.MediaType{Gzip: types.OCILayer, Zstd: types.OCILayerZStd, None: types.OCIUncompressedLayer}

// layer writes the layer to a file, whose name is known at the end.
func (i *Image) layer(ctx context.Context, fsys *ext4.FS, o Options) error {
	media, ok := layerTypes[o.Compression]
	if !ok {
		return errdefs.Invalid("a layer cannot be compressed by %q", o.Compression)
	}
	f, err := os.CreateTemp(filepath.Dir(i.file("")), "layer-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails once it has its own name
	defer f.Close()
	buffered := bufio.NewWriterSize(f, 256<<10)
	stored := newCounted(buffered)
	packed, err := packer(stored, o.Compression)
	if err != nil {
		return err
	}
	plain := newCounted(packed)
	plain.tell = o.Progress
	if o.Compression == None {
		plain.w, stored = buffered, plain // it need not be hashed twice
	}
	if i.Sockets, err = writeTar(ctx, plain, fsys, o); err != nil {
		return err
	}
	if err := errors.Join(packed.Close(), buffered.Flush(), f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	i.DiffID, i.Size = plain.digest(), plain.n
	i.Layer = v1.Descriptor{MediaType: media, Size: stored.n, Digest: hashOf(stored.digest())}
	return os.Rename(f.Name(), i.file(stored.digest()))
}

func packer(w io.Writer, c Compression) (io.WriteCloser, error) {
	switch c {
	case Gzip:
		return gzip.NewWriterLevel(w, gzip.DefaultCompression)
	case Zstd:
		return zstd.NewWriter(w, zstd.WithEncoderConcurrency(2))
	}
	return plainCloser{w}, nil
}

type plainCloser struct{ io.Writer }

func (plainCloser) Close() error { return nil }

func hashOf(d blobs.Digest) v1.Hash { return v1.Hash{Algorithm: "sha256", Hex: d.Hex()} }

// describe writes config, manifest and index.
func (i *Image) describe(o Options) error {
	config := v1.ConfigFile{
		Architecture: o.Platform.Architecture, OS: o.Platform.OS, Variant: o.Platform.Variant,
		Config:  configOf(o.Config),
		RootFS:  v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{hashOf(i.DiffID)}},
		History: []v1.History{{Created: v1.Time{Time: o.Created.UTC()}, CreatedBy: "banger"}},
		Created: v1.Time{Time: o.Created.UTC()},
	}
	var err error
	if i.Config, err = i.put(types.OCIConfigJSON, config); err != nil {
		return err
	}
	i.Manifest, err = i.put(types.OCIManifestSchema1, v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Config: i.Config, Layers: []v1.Descriptor{i.Layer},
	})
	if err != nil {
		return err
	}
	i.Manifest.Platform = &v1.Platform{OS: o.Platform.OS, Architecture: o.Platform.Architecture, Variant: o.Platform.Variant}
	return i.index("")
}

const refName = "org.opencontainers.image.ref.name"

// index writes what makes the directory a layout. The image is called tag there, if that
// is not empty.
func (i *Image) index(tag string) error {
	m := i.Manifest
	if tag != "" {
		m.Annotations = map[string]string{refName: tag}
	}
	index, err := json.Marshal(v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{m}})
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(i.Dir, "index.json"), index, 0o644),
		os.WriteFile(filepath.Join(i.Dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644))
}

// put stores a description of the image.
func (i *Image) put(media types.MediaType, v any) (v1.Descriptor, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return v1.Descriptor{}, err
	}
	d := blobs.Of(raw)
	return v1.Descriptor{MediaType: media, Size: int64(len(raw)), Digest: hashOf(d)}, os.WriteFile(i.file(d), raw, 0o644)
}

// configOf translates how the image's author wants commands to run.
func configOf(c model.ImageConfig) v1.Config {
	set := func(all []string) map[string]struct{} {
		if len(all) == 0 {
			return nil
		}
		m := map[string]struct{}{}
		for _, s := range all {
			m[s] = struct{}{}
		}
		return m
	}
	return v1.Config{
		User: c.User, WorkingDir: c.Workdir, Env: c.Env, Entrypoint: c.Entrypoint, Cmd: c.Cmd, StopSignal: c.StopSignal,
		ExposedPorts: set(c.ExposedPorts), Volumes: set(c.Volumes), Labels: c.Labels,
	}
}
