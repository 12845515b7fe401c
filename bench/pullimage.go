package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/klauspost/compress/gzip"
)

// pullShares is how an image's bytes and files are spread over its layers, the lowest
// first.
var pullShares = []float64{0.7, 0.2, 0.1}

// program is a file that an image has besides.
type program struct {
	path    string
	content []byte
}

// writeImage makes an image of so many bytes in so many files as an OCI layout, tagged 1,
// and returns the files of its layers. Half of a file is words, half is noise, which
// packs about as programs and libraries do. The lowest layer has the programs.
func writeImage(dir string, size int64, files int, programs ...program) (layers []string, err error) {
	if err := os.MkdirAll(filepath.Join(dir, "blobs/sha256"), 0o755); err != nil {
		return nil, err
	}
	type descriptor struct {
		MediaType   string            `json:"mediaType"`
		Digest      string            `json:"digest"`
		Size        int64             `json:"size"`
		Annotations map[string]string `json:"annotations,omitempty"`
	}
	const oci = "application/vnd.oci.image."
	var descriptors []descriptor
	var plain []string
	for i, share := range pullShares {
		file := filepath.Join(dir, fmt.Sprint("layer-", i))
		diff, packed, n, err := writeLayer(file, i, int64(float64(size)*share), max(1, int(float64(files)*share)), programs)
		programs = nil
		if err != nil {
			return nil, err
		}
		blob := filepath.Join(dir, "blobs/sha256", packed)
		if err := os.Rename(file, blob); err != nil {
			return nil, err
		}
		layers, plain = append(layers, blob), append(plain, "sha256:"+diff)
		descriptors = append(descriptors, descriptor{MediaType: oci + "layer.v1.tar+gzip", Digest: "sha256:" + packed, Size: n})
	}
	put := func(kind string, v any) (descriptor, error) {
		data, err := json.Marshal(v)
		sum := sha256.Sum256(data)
		name := hex.EncodeToString(sum[:])
		return descriptor{MediaType: oci + kind + ".v1+json", Digest: "sha256:" + name, Size: int64(len(data))},
			errors.Join(err, os.WriteFile(filepath.Join(dir, "blobs/sha256", name), data, 0o644))
	}
	config, err := put("config", map[string]any{
		"architecture": "amd64", "os": "linux", "config": map[string]any{}, "rootfs": map[string]any{"type": "layers", "diff_ids": plain},
	})
	if err != nil {
		return nil, err
	}
	manifest, err := put("manifest", map[string]any{
		"schemaVersion": 2, "mediaType": oci + "manifest.v1+json", "config": config, "layers": descriptors,
	})
	if err != nil {
		return nil, err
	}
	manifest.Annotations = map[string]string{"org.opencontainers.image.ref.name": "1"}
	index, err := json.Marshal(map[string]any{"schemaVersion": 2, "manifests": []descriptor{manifest}})
	return layers, errors.Join(err, os.WriteFile(filepath.Join(dir, "index.json"), index, 0o644),
		os.WriteFile(filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644))
}

// writeLayer writes a layer of so many bytes in so many files: most are small, and every
// hundredth has half of the bytes.
func writeLayer(path string, seed int, size int64, files int, programs []program) (diff, packed string, n int64, err error) {
	f, err := os.Create(path)
	if err != nil {
		return "", "", 0, err
	}
	defer f.Close()
	outer, inner := sha256.New(), sha256.New()
	z, err := gzip.NewWriterLevel(io.MultiWriter(f, outer), gzip.DefaultCompression)
	if err != nil {
		return "", "", 0, err
	}
	tw := tar.NewWriter(io.MultiWriter(z, inner))
	put := func(name string, mode int64, content []byte) error {
		err := tw.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: int64(len(content)), ModTime: time.Unix(1_700_000_000, 0)})
		if err == nil {
			_, err = tw.Write(content)
		}
		return err
	}
	for _, p := range programs {
		if err := put(p.path, 0o755, p.content); err != nil {
			return "", "", 0, err
		}
	}
	random := rand.New(rand.NewPCG(uint64(seed), 7))
	large := max(1, files/100)
	content := make([]byte, max(size/2/int64(large), size/2/int64(files))+1)
	for i := range files {
		each := size / 2 / int64(files)
		if i%100 == 0 {
			each = size / 2 / int64(large)
		}
		fillContent(content[:each], random)
		if err := put(fmt.Sprintf("usr/l%d/d%d/f%d", seed, i/50, i), 0o644, content[:each]); err != nil {
			return "", "", 0, err
		}
	}
	if err := errors.Join(tw.Close(), z.Close()); err != nil {
		return "", "", 0, err
	}
	info, err := f.Stat()
	if err != nil {
		return "", "", 0, err
	}
	return hex.EncodeToString(inner.Sum(nil)), hex.EncodeToString(outer.Sum(nil)), info.Size(), f.Close()
}

var pullWords = bytes.Fields([]byte("the of mov call push return static const func error string 0x00 0xff struct text data\n main lib include"))

// fillContent makes content in runs of words and of noise.
func fillContent(b []byte, random *rand.Rand) {
	for len(b) > 0 {
		run := b[:min(len(b), 256)]
		b = b[len(run):]
		if random.IntN(2) == 0 {
			for i := range run {
				run[i] = byte(random.Uint32())
			}
			continue
		}
		for len(run) > 0 {
			run = run[copy(run, pullWords[random.IntN(len(pullWords))]):]
		}
	}
}
