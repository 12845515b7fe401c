package oci_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"banger/internal/daemon/imagemgr/ocitest"
)

// BenchmarkFetch gets an image of 300 MB from a registry on this host, with nothing in
// the cache, and has skopeo copy the same to a directory beside it.
func BenchmarkFetch(b *testing.B) {
	d := ocitest.StartRegistry(b)
	m := makeImage(b, amd64, 200, 120_000_000, 80_000_000, 60_000_000, 30_000_000, 10_000_000)
	d.Push(b, "oci:"+writeLayout(b, map[string]*made{"1": m})+":1", "big:1")
	var ours, theirs time.Duration
	for b.Loop() {
		o := registryOptions(b, d)
		begun := time.Now()
		img := resolve(b, d.Host+"/big:1", o)
		if err := img.Fetch(b.Context(), o.Cache, 0, nil); err != nil {
			b.Fatal(err)
		}
		ours += time.Since(begun)
		dir := filepath.Join(b.TempDir(), "copy")
		begun = time.Now()
		d.Skopeo(b, "copy", "--src-creds=me:secret", "--src-cert-dir="+d.Certs, "docker://"+d.Host+"/big:1", "dir:"+dir)
		theirs += time.Since(begun)
		if err := os.RemoveAll(dir); err != nil {
			b.Fatal(err)
		}
		if _, err := o.Cache.Prune(b.Context(), zeroPrune); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(ours.Milliseconds())/float64(b.N), "ms/fetch")
	b.ReportMetric(float64(theirs.Milliseconds())/float64(b.N), "ms/skopeo")
}
