package oci

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"banger/internal/daemon/imagemgr/blobs"
	"banger/internal/errdefs"
)

// Annotations of a layout's index that name its images.
const (
	refName       = "org.opencontainers.image.ref.name"
	containerName = "io.containerd.image.name"
)

// maxListed is how long a name may be to be listed in an error, in bytes.
const maxListed = 200

// layout is an image in OCI layout, in a directory or a tar file.
type layout struct {
	stored
	ref Reference
}

func openLayout(ctx context.Context, ref Reference, o Options) (source, error) {
	fs, err := openFiles(ctx, ref, o)
	if err != nil {
		return nil, err
	}
	l := &layout{stored: stored{fs: fs}, ref: ref}
	if err := l.check(); err != nil {
		return nil, errors.Join(err, fs.close())
	}
	return l, nil
}

func openFiles(ctx context.Context, ref Reference, o Options) (files, error) {
	if ref.Kind == Layout {
		return openDirectory(ref.Path)
	}
	f, _, err := openFile(ref.Path)
	if err != nil {
		return nil, err
	}
	a, err := openArchive(ctx, f, o)
	if err != nil {
		return nil, err
	}
	return a, nil
}

func (l *layout) check() error {
	raw, err := readFile(l.fs, "oci-layout", 4096)
	if err != nil {
		return err
	}
	var head struct {
		Version string `json:"imageLayoutVersion"`
	}
	if json.Unmarshal(raw, &head) != nil || !strings.HasPrefix(head.Version, "1.") {
		return errdefs.Unsupported("it is no OCI layout of version 1")
	}
	return nil
}

// document returns the index of the layout, or of it the one entry with the name that
// was asked for.
func (l *layout) document(_ context.Context, want blobs.Digest) (document, error) {
	if want != "" {
		return l.byDigest(want)
	}
	raw, err := readFile(l.fs, "index.json", maxManifest)
	if err != nil {
		return document{}, err
	}
	top, err := newDocument(raw, "")
	if err != nil {
		return document{}, err
	}
	if !top.index() {
		return document{}, errdefs.Invalid("its index.json is no index")
	}
	var idx v1.IndexManifest
	if err := decode(raw, "index.json", &idx); err != nil {
		return document{}, err
	}
	return l.choose(top, idx)
}

func (l *layout) byDigest(d blobs.Digest) (document, error) {
	raw, err := readFile(l.fs, l.name(d), maxManifest)
	if err != nil {
		return document{}, err
	}
	if blobs.Of(raw) != d {
		return document{}, errdefs.Invalid("manifest %s: %w", d.Short(), blobs.ErrDigest)
	}
	return newDocument(raw, "")
}

func (l *layout) choose(top document, idx v1.IndexManifest) (document, error) {
	var names []string
	var found *v1.Descriptor
	for i, m := range idx.Manifests {
		for _, n := range []string{m.Annotations[refName], m.Annotations[containerName]} {
			if n != "" && len(n) <= maxListed && len(names) < 20 && !slices.Contains(names, n) {
				names = append(names, n)
			}
			if n != "" && n == l.ref.Tag && found == nil {
				found = &idx.Manifests[i]
			}
		}
	}
	switch {
	case found != nil:
	case l.ref.Tag != "" && len(names) > 0:
		return document{}, errdefs.NotFound("it has no image %q, but %q", l.ref.Tag, names)
	case l.ref.Tag != "":
		return document{}, errdefs.NotFound("none of its images has a name").WithHint("leave the name away")
	case len(idx.Manifests) == 1:
		found = &idx.Manifests[0]
	case len(names) > 1:
		return document{}, errdefs.Invalid("it has several images, %q", names).WithHint("say which one: %s:%s:NAME", l.ref.Kind, l.ref.Path)
	default:
		return top, nil // perhaps one for each of several platforms
	}
	digest, err := sized(*found, "manifest", maxManifest)
	if err != nil {
		return document{}, err
	}
	doc, err := l.byDigest(digest)
	if err == nil && int64(len(doc.raw)) != found.Size {
		err = errdefs.Invalid("manifest %s has %d bytes and not %d", digest.Short(), len(doc.raw), found.Size)
	}
	return doc, err
}
