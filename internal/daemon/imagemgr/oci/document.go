package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"banger/internal/daemon/imagemgr/blobs"
	"banger/internal/errdefs"
)

// Bounds of what describes an image.
const (
	maxManifest = 4 << 20 // bytes, of a manifest or an index
	maxConfig   = 8 << 20 // bytes
	maxJSON     = 64      // levels
	maxValues   = 200_000 // of an object or array, in all of a description: {} takes 2 bytes, and a hundred when it is decoded
	maxEntries  = 10_000  // of an index
)

// document is a manifest or an index, as it came.
type document struct {
	raw   []byte
	media types.MediaType // normalised to the four kinds there are
}

func (d document) index() bool { return d.media.IsIndex() }

// newDocument finds out what raw is. The declared type comes from a header or a
// descriptor; where that says nothing, the content has to. That nothing can pass for an
// index here and for a manifest elsewhere, one that is both is refused.
func newDocument(raw []byte, declared string) (document, error) {
	if err := checkJSON(raw, maxManifest); err != nil {
		return document{}, err
	}
	var head struct {
		SchemaVersion int             `json:"schemaVersion"`
		MediaType     types.MediaType `json:"mediaType"`
		Manifests     json.RawMessage `json:"manifests"`
		Layers        json.RawMessage `json:"layers"`
		Config        json.RawMessage `json:"config"`
		FSLayers      json.RawMessage `json:"fsLayers"`
	}
	if err := json.Unmarshal(raw, &head); err != nil {
		return document{}, errdefs.Invalid("read manifest: %w", &tamed{err})
	}
	declared, _, _ = strings.Cut(declared, ";")
	media := types.MediaType(strings.ToLower(strings.TrimSpace(declared)))
	if media.IsSchema1() || head.MediaType.IsSchema1() || head.SchemaVersion == 1 || head.FSLayers != nil {
		return document{}, errdefs.Unsupported("the image is in Docker's first format (schema 1)").
			WithHint("copy it once, in a newer format: skopeo copy --format v2s2 docker://REF docker://OTHER")
	}
	switch media {
	case "", "application/json", "application/octet-stream", "text/plain":
		media = head.MediaType // the server does not know
	}
	if media == "" {
		switch {
		case head.Manifests != nil:
			media = types.OCIImageIndex
		case head.Config != nil:
			media = types.OCIManifestSchema1
		}
	}
	if head.MediaType != "" && head.MediaType != media {
		return document{}, errdefs.Invalid("the manifest is declared as %.100q and says it is %.100q", media, head.MediaType)
	}
	if !media.IsImage() && !media.IsIndex() {
		return document{}, errdefs.Unsupported("%.100q is no image, or one of a kind that is not known", media).
			WithHint("take the reference of a container image")
	}
	if media.IsIndex() && (head.Layers != nil || head.Config != nil) || media.IsImage() && head.Manifests != nil {
		return document{}, errdefs.Invalid("the manifest is an image and an index at once")
	}
	return document{raw: raw, media: media}, nil
}

// checkJSON bounds what the decoder gets to see.
func checkJSON(raw []byte, limit int) error {
	if len(raw) > limit {
		return errdefs.Invalid("a description of the image has more than %d bytes", limit)
	}
	depth, values, quoted := 0, 0, false
	for i := 0; i < len(raw); i++ {
		switch c := raw[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			if depth++; depth > maxJSON {
				return errdefs.Invalid("a description of the image is nested more than %d levels deep", maxJSON)
			}
		case c == '}' || c == ']':
			depth--
		case c == ',':
			if values++; values > maxValues {
				return errdefs.Invalid("a description of the image has more than %d values", maxValues)
			}
		}
	}
	return nil
}

func decode(raw []byte, what string, v any) error {
	if err := json.Unmarshal(raw, v); err != nil {
		return errdefs.Invalid("read %s: %w", what, &tamed{err})
	}
	return nil
}

// candidates returns the entries of an index that may lead to an image for p, the best
// first. Entries without a platform come last: only what they lead to can tell.
func candidates(doc document, p Platform) (best []v1.Descriptor, have []string, err error) {
	var idx v1.IndexManifest
	if err := decode(doc.raw, "index", &idx); err != nil {
		return nil, nil, err
	}
	if len(idx.Manifests) > maxEntries {
		return nil, nil, errdefs.Invalid("the index has %d entries, more than %d", len(idx.Manifests), maxEntries)
	}
	type ranked struct {
		v1.Descriptor
		rank int
	}
	var all []ranked
	for _, m := range idx.Manifests {
		if m.ArtifactType != "" || !m.MediaType.IsImage() && !m.MediaType.IsIndex() {
			continue // signatures, statements and the like
		}
		if m.Platform == nil || m.Platform.OS == "" && m.Platform.Architecture == "" {
			all = append(all, ranked{m, 0})
			continue
		}
		its := platformOf(m.Platform)
		if rank := p.runs(its); rank > 0 {
			all = append(all, ranked{m, rank})
		} else if its.OS != "unknown" && len(have) < 20 && !slices.Contains(have, its.String()) {
			have = append(have, its.String())
		}
	}
	slices.SortStableFunc(all, func(a, b ranked) int { return b.rank - a.rank })
	for _, r := range all {
		best = append(best, r.Descriptor)
	}
	return best, have, nil
}

// layerTypes are the kinds of layers that can be unpacked. How one is compressed, its
// first bytes say.
var layerTypes = []types.MediaType{
	types.OCILayer, types.OCILayerZStd, types.OCIUncompressedLayer,
	types.OCIRestrictedLayer, types.OCIUncompressedRestrictedLayer,
	"application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
	types.DockerLayer, types.DockerUncompressedLayer, types.DockerForeignLayer,
	"application/vnd.docker.image.rootfs.diff.tar.zstd",
}

// parseManifest reads the manifest of an image and checks what can be checked before
// its config is there.
func parseManifest(doc document, l Limits) (v1.Manifest, error) {
	var m v1.Manifest
	if err := decode(doc.raw, "manifest", &m); err != nil {
		return m, err
	}
	switch t := m.Config.MediaType; {
	case t.IsConfig():
	case t == "application/octet-stream" && doc.media == types.DockerManifestSchema2: // of 2016
	default:
		kind := string(t)
		if m.ArtifactType != "" {
			kind = m.ArtifactType
		}
		return m, errdefs.Unsupported("this is an artifact (%.100q) and no image: it has no root file system", kind).
			WithHint("take the reference of a container image")
	}
	if _, err := sized(m.Config, "config", maxConfig); err != nil {
		return m, err
	}
	if len(m.Layers) > l.Layers {
		return m, errdefs.Invalid("the image has %d layers, more than %d", len(m.Layers), l.Layers)
	}
	var total int64
	sizes := map[blobs.Digest]int64{}
	for i, d := range m.Layers {
		what := fmt.Sprintf("layer %d", i+1)
		if !slices.Contains(layerTypes, d.MediaType) {
			return m, errdefs.Unsupported("%s is of an unknown kind, %.100q", what, d.MediaType)
		}
		digest, err := sized(d, what, l.Bytes)
		if err != nil {
			return m, err
		}
		if size, again := sizes[digest]; again && size != d.Size {
			return m, errdefs.Invalid("%s has %d bytes and %d", what, d.Size, size)
		} else if !again {
			total += d.Size // cannot overflow: none is larger than the bound, nor is the sum before
		}
		sizes[digest] = d.Size
		if total > l.Bytes {
			return m, errdefs.Invalid("the image has more than %d bytes", l.Bytes).WithHint("larger images are allowed by a limit in the configuration")
		}
	}
	return m, nil
}

// sized checks digest and size of a descriptor.
func sized(d v1.Descriptor, what string, limit int64) (blobs.Digest, error) {
	digest, err := blobs.ParseDigest(d.Digest.String())
	if errors.Is(err, blobs.ErrAlgorithm) {
		return "", errdefs.Unsupported("%s: %w", what, err)
	}
	if err != nil {
		return "", errdefs.Invalid("%s: %w", what, err)
	}
	if d.Size < 0 || d.Size > limit {
		return "", errdefs.Invalid("%s %s: a size of %d bytes is not between 0 and %d", what, digest.Short(), d.Size, limit)
	}
	return digest, nil
}

// parseConfig reads the config of an image with that many layers, for p.
func parseConfig(raw []byte, layers int, p Platform) (v1.ConfigFile, error) {
	var c v1.ConfigFile
	if err := checkJSON(raw, maxConfig); err != nil {
		return c, err
	}
	if err := decode(raw, "config", &c); err != nil {
		return c, err
	}
	if len(c.RootFS.DiffIDs) != layers {
		return c, errdefs.Invalid("the image has %d layers, and its config speaks of %d", layers, len(c.RootFS.DiffIDs))
	}
	for i, h := range c.RootFS.DiffIDs {
		if _, err := blobs.ParseDigest(h.String()); err != nil {
			return c, errdefs.Unsupported("layer %d, unpacked: %w", i+1, err)
		}
	}
	if c.OS == "" && c.Architecture == "" {
		return c, nil // made by hand; there is nothing else to go by
	}
	if its := (Platform{c.OS, c.Architecture, c.Variant}); p.runs(its) == 0 {
		return c, noPlatform(p, []string{its.normal().String()})
	}
	return c, nil
}

// noPlatform names of what there is instead only what a platform can be called.
func noPlatform(p Platform, have []string) error {
	have = slices.DeleteFunc(have, func(s string) bool {
		_, err := ParsePlatform(s)
		return err != nil
	})
	if len(have) == 0 {
		return errdefs.NotFound("there is no image for %s", p)
	}
	slices.Sort(have)
	return errdefs.NotFound("there is no image for %s, only for %s", p, strings.Join(have, ", ")).
		WithHint("choose one of them with --platform, if this host can run it")
}
