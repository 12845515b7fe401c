// Package ocitest makes images for tests, and starts a real registry to serve them.
package ocitest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"banger/internal/daemon/imagemgr/blobs"
)

// Files are what a layer holds: content by path. A path that ends in "/" is a directory.
type Files map[string]string

// Image is an image to be made, for Linux on x86-64.
type Image struct {
	Layers [][]byte // as Layer makes them, the lowest first
	Config v1.Config
}

// Layer is a layer as it is stored.
func Layer(t testing.TB, files Files) []byte { return Pack(t, tarOf(t, files)) }

func tarOf(t testing.TB, files Files) []byte {
	t.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		h := &tar.Header{Name: name, Mode: 0o644, Size: int64(len(files[name])), ModTime: time.Unix(1_700_000_000, 0)}
		if name[len(name)-1] == '/' {
			h.Typeflag, h.Mode = tar.TypeDir, 0o755
		}
		must(t, tw.WriteHeader(h))
		_, err := tw.Write([]byte(files[name]))
		must(t, err)
	}
	must(t, tw.Close())
	return buf.Bytes()
}

// Pack is a layer as it is stored, of its tar.
func Pack(t testing.TB, plain []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	z := gzip.NewWriter(&buf)
	_, err := z.Write(plain)
	must(t, err)
	must(t, z.Close())
	return buf.Bytes()
}

// Unpack is a layer's tar.
func Unpack(t testing.TB, layer []byte) []byte {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(layer))
	must(t, err)
	var buf bytes.Buffer
	_, err = buf.ReadFrom(z)
	must(t, err)
	return buf.Bytes()
}

// Made is an image as bytes.
type Made struct {
	Manifest []byte
	Blobs    map[blobs.Digest][]byte // config and layers
	Layers   []blobs.Digest
}

// Digest is that of the manifest.
func (m Made) Digest() blobs.Digest { return blobs.Of(m.Manifest) }

// Make makes an image. Change may make its config and its manifest say something else; it
// may be nil.
func Make(t testing.TB, i Image, change func(*v1.ConfigFile, *v1.Manifest)) Made {
	t.Helper()
	m := Made{Blobs: map[blobs.Digest][]byte{}}
	add := func(media types.MediaType, data []byte) v1.Descriptor {
		d := blobs.Of(data)
		m.Blobs[d] = data
		return v1.Descriptor{MediaType: media, Size: int64(len(data)), Digest: hash(d)}
	}
	c := v1.ConfigFile{OS: "linux", Architecture: "amd64", Config: i.Config, RootFS: v1.RootFS{Type: "layers"}}
	man := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1}
	for _, l := range i.Layers {
		man.Layers = append(man.Layers, add(types.OCILayer, l))
		m.Layers = append(m.Layers, blobs.Of(l))
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, hash(blobs.Of(Unpack(t, l))))
	}
	if change != nil {
		change(&c, &man)
	}
	man.Config = add(types.OCIConfigJSON, toJSON(t, c))
	m.Manifest = toJSON(t, man)
	return m
}

// WriteLayout writes images, by their tags, as an OCI layout to a directory.
func WriteLayout(t testing.TB, dir string, images map[string]Made) {
	t.Helper()
	var entries []map[string]any
	for _, tag := range slices.Sorted(maps.Keys(images)) {
		m := images[tag]
		for d, data := range m.Blobs {
			write(t, filepath.Join(dir, "blobs/sha256", d.Hex()), data)
		}
		write(t, filepath.Join(dir, "blobs/sha256", m.Digest().Hex()), m.Manifest)
		entries = append(entries, map[string]any{
			"mediaType": types.OCIManifestSchema1, "digest": m.Digest(), "size": len(m.Manifest),
			"annotations": map[string]string{"org.opencontainers.image.ref.name": tag},
		})
	}
	write(t, filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`))
	write(t, filepath.Join(dir, "index.json"), toJSON(t, map[string]any{"schemaVersion": 2, "manifests": entries}))
}

func hash(d blobs.Digest) v1.Hash { return v1.Hash{Algorithm: "sha256", Hex: d.Hex()} }

func toJSON(t testing.TB, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	must(t, err)
	return data
}

func write(t testing.TB, name string, data []byte) string {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(name), 0o700))
	must(t, os.WriteFile(name, data, 0o600))
	return name
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
