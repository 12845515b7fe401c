package oci

import (
	"testing"

	"banger/internal/daemon/imagemgr/blobs"
)

// FuzzDocuments looks for descriptions that break what reads them, or pass unbounded.
func FuzzDocuments(f *testing.F) {
	const digest = `"sha256:0000000000000000000000000000000000000000000000000000000000000000"`
	f.Add([]byte(`{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","size":2,"digest":`+digest+`},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","size":1,"digest":`+digest+`}]}`), "", 1)
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","size":2,"digest":`+digest+`,"platform":{"os":"linux","architecture":"arm","variant":"v7"}}]}`), "application/json; charset=utf-8", 0)
	f.Add([]byte(`{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[`+digest+`]}}`), "", 1)
	l := Options{}.withDefaults().Limits
	p := Platform{OS: "linux", Architecture: "arm"}
	f.Fuzz(func(t *testing.T, raw []byte, media string, layers int) {
		if doc, err := newDocument(raw, media); err == nil {
			if doc.index() {
				_, _, _ = candidates(doc, p)
			} else if m, err := parseManifest(doc, l); err == nil {
				var total int64
				seen := map[string]bool{}
				for _, d := range m.Layers {
					if _, err := blobs.ParseDigest(d.Digest.String()); err != nil || d.Size < 0 {
						t.Errorf("layer %+v", d)
					}
					if !seen[d.Digest.String()] {
						total += d.Size
					}
					seen[d.Digest.String()] = true
				}
				if total < 0 || total > l.Bytes || len(m.Layers) > l.Layers {
					t.Errorf("%d bytes in %d layers", total, len(m.Layers))
				}
			}
		}
		if c, err := parseConfig(raw, layers, p); err == nil && len(c.RootFS.DiffIDs) != layers {
			t.Errorf("%d layers, %d diff IDs", layers, len(c.RootFS.DiffIDs))
		}
	})
}
