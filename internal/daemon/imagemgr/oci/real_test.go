package oci_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"banger/internal/daemon/imagemgr/blobs"
	"banger/internal/daemon/imagemgr/oci"
	"banger/internal/daemon/imagemgr/ocitest"
	"banger/internal/errdefs"
)

func registryOptions(t testing.TB, d *ocitest.Registry) oci.Options {
	t.Helper()
	auth := writeFile(t, filepath.Join(t.TempDir(), "auth.json"), fmt.Appendf(nil, `{"auths":{%q:{"auth":%q}}}`,
		d.Host, base64.StdEncoding.EncodeToString([]byte("me:secret"))))
	return oci.Options{
		Cache: openCache(t, t.TempDir()), Platform: amd64, Keychain: oci.Files{Paths: []string{auth}},
		Transport: &http.Transport{TLSClientConfig: tlsConfig(d.Pool)},
		Retry:     oci.Retry{Attempts: 2, Pause: time.Millisecond},
	}
}

// writeLayout writes images as an OCI layout, and returns its directory.
func writeLayout(t testing.TB, images map[string]*made) string {
	t.Helper()
	dir := t.TempDir()
	var entries []map[string]any
	for tag, m := range images {
		for d, data := range m.blobs {
			writeFile(t, filepath.Join(dir, "blobs/sha256", d.Hex()), data)
		}
		writeFile(t, filepath.Join(dir, "blobs/sha256", blobs.Of(m.manifest).Hex()), m.manifest)
		e := map[string]any{"mediaType": m.media, "digest": blobs.Of(m.manifest), "size": len(m.manifest)}
		if tag != "" {
			e["annotations"] = map[string]string{"org.opencontainers.image.ref.name": tag}
		}
		entries = append(entries, e)
	}
	writeFile(t, filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`))
	writeFile(t, filepath.Join(dir, "index.json"), toJSON(t, map[string]any{"schemaVersion": 2, "manifests": entries}))
	return dir
}

// inspect is what skopeo says of an image.
type inspect struct {
	Digest blobs.Digest
	Layers []blobs.Digest
}

func TestRealRegistry(t *testing.T) {
	d := ocitest.StartRegistry(t)
	m := makeImage(t, amd64, 80, 1_000_000, 10, 300_000)
	dir := writeLayout(t, map[string]*made{"1": m})
	for _, format := range []string{"oci", "v2s2"} {
		t.Run(format, func(t *testing.T) {
			to := "some/where:" + format
			d.Push(t, "oci:"+dir+":1", to, "--format="+format)
			o := registryOptions(t, d)
			img := resolve(t, d.Host+"/"+to, o)
			if err := img.Fetch(t.Context(), o.Cache, 0, nil); err != nil {
				t.Fatal(err)
			}
			nothingWrong(t, o.Cache)
			var judge inspect
			if err := json.Unmarshal(d.Skopeo(t, "inspect", "--creds=me:secret", "--cert-dir="+d.Certs, "docker://"+d.Host+"/"+to), &judge); err != nil {
				t.Fatal(err)
			}
			if judge.Digest != img.Digest || len(judge.Layers) != len(img.Layers) {
				t.Fatalf("%+v, skopeo says %+v", img, judge)
			}
			for i, l := range img.Layers {
				if judge.Layers[i] != l.Digest {
					t.Errorf("layer %d: %s, skopeo says %s", i, l.Digest, judge.Layers[i])
				}
			}
			// What skopeo copies is what lies in the cache.
			copied := t.TempDir()
			d.Skopeo(t, "copy", "--src-creds=me:secret", "--src-cert-dir="+d.Certs, "docker://"+d.Host+"/"+to, "dir:"+copied)
			for _, dg := range img.Digests()[2:] {
				want, err := os.ReadFile(filepath.Join(copied, dg.Hex()))
				if err != nil {
					t.Fatal(err)
				}
				if got, err := o.Cache.ReadAll(dg, 1<<30); err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s: %v", dg, err)
				}
			}
			if format == "oci" {
				check(t, img, o.Cache, m)
			}
			resolve(t, d.Host+"/"+to, o) // which HEAD answers

			o.Keychain = keychain{d.Host: "somebody"}
			for _, k := range []oci.Keychain{nil, keychain{d.Host: "somebody"}} {
				o.Keychain, o.Cache = k, openCache(t, t.TempDir())
				if _, err := oci.Resolve(t.Context(), parse(t, d.Host+"/"+to), o); !errors.Is(err, errdefs.ErrPermission) || errdefs.HintOf(err) == "" {
					t.Errorf("with other credentials: %v", err)
				}
			}
			o = registryOptions(t, d)
			if _, err := oci.Resolve(t.Context(), parse(t, d.Host+"/nothing/there"), o); !errors.Is(err, errdefs.ErrNotFound) {
				t.Errorf("%v", err)
			}
			// An interrupted layer goes on there, too.
			ctx, cancel := context.WithCancel(t.Context())
			img = resolve(t, d.Host+"/"+to, o)
			_ = img.Fetch(ctx, o.Cache, 1, func(oci.Progress) { cancel() })
			if err := img.Fetch(t.Context(), o.Cache, 1, nil); err != nil {
				t.Error(err)
			}
			nothingWrong(t, o.Cache)
		})
	}
	t.Run("umoci", func(t *testing.T) {
		ocitest.Need(t, "umoci")
		img := filepath.Join(t.TempDir(), "img")
		ocitest.Run(t, "umoci", "init", "--layout", img)
		ocitest.Run(t, "umoci", "new", "--image", img+":new")
		ocitest.Run(t, "umoci", "config", "--image", img+":new", "--architecture", "amd64", "--os", "linux", "--config.user", "me:you", "--config.env", "A=b", "--config.exposedports", "80/tcp")
		ocitest.Run(t, "umoci", "insert", "--rootless", "--image", img+":new", img+"/oci-layout", "/etc/layout")
		d.Push(t, "oci:"+img+":new", "umoci:1")
		for _, ref := range []string{"oci:" + img + ":new", d.Host + "/umoci:1"} {
			o := registryOptions(t, d)
			i := resolve(t, ref, o)
			if c := i.Config.Config; c.User != "me:you" || len(i.Layers) != 1 || c.Env[0] != "A=b" {
				t.Errorf("%s: %+v", ref, i)
			}
			if err := i.Fetch(t.Context(), o.Cache, 0, nil); err != nil {
				t.Error(err)
			}
		}
	})
}
