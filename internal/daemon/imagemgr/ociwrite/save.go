package ociwrite

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"banger/internal/daemon/ext4"
	"banger/internal/daemon/imagemgr/blobs"
	"banger/internal/daemon/imagemgr/oci"
	"banger/internal/daemon/imagemgr/outfile"
	"banger/internal/errdefs"
)

// Save makes an image of fsys and stores it where ref says: a new directory
// (oci:DIR[:TAG]), or a file (oci-archive:FILE[:TAG], docker-archive:FILE[:NAME]), which
// takes the place of another one if o.Target says so. It is there as a whole or not at all,
// with the rights of this process.
func Save(ctx context.Context, fsys *ext4.FS, ref oci.Reference, o Options) (_ *Image, err error) {
	defer func() { err = errdefs.Wrap(err, "save %s", ref) }()
	switch ref.Kind {
	case oci.Layout:
	case oci.DockerArchive:
		o.Compression = None
	case oci.LayoutArchive:
	default:
		return nil, errdefs.Invalid("an image cannot be saved there").WithHint("save it to oci:DIR[:TAG], oci-archive:FILE[:TAG] or docker-archive:FILE[:NAME]")
	}
	work, err := outfile.Begin(ref.Path, ref.Kind == oci.Layout, o.Target)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, work.End()) }()
	i, err := Build(ctx, fsys, work.Dir, o)
	if err != nil {
		return nil, err
	}
	if ref.Kind != oci.Layout {
		err := work.File(func(w io.Writer) error { return i.Archive(ctx, w, ref.Kind, ref.Tag) })
		if err != nil {
			return nil, err
		}
		return i, nil
	}
	if err := errors.Join(i.index(ref.Tag), syncAll(i)); err != nil {
		return nil, err
	}
	if err := work.Directory(); err != nil {
		return nil, err
	}
	i.Dir = filepath.Clean(ref.Path)
	return i, nil
}

// Archive writes the image as a tar file: an oci-archive, in which it is called name, or a
// docker-archive, where that is NAME:TAG. It may be "". For a docker-archive the layer must
// be stored as it is.
func (i *Image) Archive(ctx context.Context, out io.Writer, kind oci.Kind, name string) error {
	switch {
	case kind == oci.LayoutArchive:
		if err := i.index(name); err != nil {
			return err
		}
		return i.writeLayout(ctx, out)
	case kind == oci.DockerArchive && i.Layer.MediaType == layerTypes[None]:
		return i.writeDocker(ctx, out, name)
	}
	return errdefs.Internal("write an image with a layer of type %q as %q", i.Layer.MediaType, kind)
}

func syncAll(i *Image) error {
	names := []string{"index.json", "oci-layout", "blobs/sha256", "."}
	for _, d := range i.Descriptors() {
		names = append(names, filepath.Join("blobs/sha256", d.Digest.Hex))
	}
	var errs []error
	for _, name := range names {
		errs = append(errs, outfile.Sync(filepath.Join(i.Dir, name)))
	}
	return errors.Join(errs...)
}

// member is a file of an archive, or a directory.
type member struct {
	name string // of a directory: with a slash at its end
	from string // a file's path; "": data is the content
	data []byte
	size int64
}

func (i *Image) blob(name string, d v1.Descriptor) member {
	return member{name: name, from: i.file(blobs.Digest(d.Digest.String())), size: d.Size}
}

// writeLayout writes the layout as a tar, descriptions first.
func (i *Image) writeLayout(ctx context.Context, out io.Writer) error {
	var all []member
	for _, name := range []string{"oci-layout", "index.json"} {
		data, err := os.ReadFile(filepath.Join(i.Dir, name))
		if err != nil {
			return err
		}
		all = append(all, member{name: name, data: data})
	}
	// Directories are entries too: skopeo gives those that it makes unasked to root, which
	// an ordinary user may not do.
	all = append(all, member{name: "blobs/"}, member{name: "blobs/sha256/"})
	for _, d := range []v1.Descriptor{i.Manifest, i.Config, i.Layer} {
		all = append(all, i.blob("blobs/sha256/"+d.Digest.Hex, d))
	}
	return archive(ctx, out, all)
}

// writeDocker writes the image as `docker save` did before it knew layouts. Name is
// NAME:TAG, or "" for an image without one.
func (i *Image) writeDocker(ctx context.Context, out io.Writer, name string) error {
	config, layer := i.Config.Digest.Hex+".json", i.DiffID.Hex()+".tar"
	type entry struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	e := entry{Config: config, Layers: []string{layer}}
	if name != "" {
		e.RepoTags = []string{name}
	}
	manifest, err := json.Marshal([]entry{e})
	if err != nil {
		return err
	}
	return archive(ctx, out, []member{{name: "manifest.json", data: manifest}, i.blob(config, i.Config), i.blob(layer, i.Layer)})
}

func archive(ctx context.Context, out io.Writer, all []member) error {
	w := tar.NewWriter(out)
	for _, m := range all {
		if m.from == "" {
			m.size = int64(len(m.data))
		}
		h := &tar.Header{Typeflag: tar.TypeReg, Name: m.name, Mode: 0o644, Size: m.size}
		if strings.HasSuffix(m.name, "/") {
			h.Typeflag, h.Mode = tar.TypeDir, 0o755
		}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		if err := m.copy(ctx, w); err != nil {
			return err
		}
	}
	return w.Close()
}

func (m *member) copy(ctx context.Context, w io.Writer) error {
	if m.from == "" {
		_, err := w.Write(m.data)
		return err
	}
	f, err := os.Open(m.from)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, &contextReader{ctx, f})
	return err
}

// contextReader ends with its context.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (r *contextReader) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.r.Read(p)
}
