package imagemgr

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"hash"
	"io"
	"os"
	"path/filepath"
	"strings"

	"banger/internal/daemon/ext4"
	"banger/internal/daemon/imagemgr/blobs"
	"banger/internal/daemon/imagemgr/bundle"
	"banger/internal/daemon/imagemgr/catalog"
	"banger/internal/daemon/imagemgr/outfile"
	"banger/internal/errdefs"
	"banger/internal/model"
)

// bundleTarget is where a bundle is saved.
type bundleTarget struct {
	path string // absolute
	name string // of the image in a catalog; "": as it is called here
}

// parseBundle reads FILE[:NAME].
func parseBundle(to string) (t bundleTarget, err error) {
	path, name, named := strings.Cut(to, ":")
	if path == "" {
		return t, errdefs.Invalid("bundle %q names no file", bundlePrefix+to).WithHint(saveHint)
	}
	if named {
		if err := bundle.CheckName(name); err != nil {
			return t, err
		}
	}
	return bundleTarget{path, name}, checkAbsolute(path)
}

// saveBundle packs the disk and the config of an image as a bundle, and returns what a
// catalog has to say of it, as JSON. The disk is what is on it, byte for byte.
func (s *Service) saveBundle(ctx context.Context, i model.Image, to string, force bool, p model.Progress) (string, error) {
	t, err := parseBundle(to)
	if err != nil {
		return "", err
	}
	if t.name == "" {
		if t.name = strings.TrimPrefix(i.Name, catalogPrefix); bundle.CheckName(t.name) != nil {
			return "", errdefs.Invalid("image name %q is none for a catalog", i.Name).
				WithHint("say which it has there: %s%s:NAME", bundlePrefix, t.path)
		}
	}
	if i.Config.Platform != "" {
		return "", errdefs.Unsupported("image %q is for %s, and bundles are for %s", i.Name, i.Config.Platform, bundle.Arch).
			WithHint("save it as an OCI image: oci-archive:FILE")
	}
	kernels, err := s.kernelsByID(ctx)
	if err != nil {
		return "", err
	}
	m := bundle.Manifest{Kind: bundle.Image, Name: t.name, Version: i.CreatedAt.UTC().Format("20060102-150405"), Config: &i.Config}
	p.Stage("write")
	entry := catalog.Entry{URL: filepath.Base(t.path), Kernel: kernels[i.KernelID]}
	target, end, err := s.target(force)
	if err != nil {
		return "", err
	}
	defer end()
	err = withRootfs(i, func(disk *os.File, _ *ext4.FS) error {
		work, err := outfile.Begin(t.path, false, target)
		if err != nil {
			return err
		}
		sum := &summing{sum: sha256.New(), count: paced(p)}
		err = s.step("write", func() error {
			return work.File(func(w io.Writer) (err error) {
				m, err = bundle.PackFiles(ctx, io.MultiWriter(w, sum), m, map[string]*os.File{bundle.Rootfs: disk})
				return err
			})
		})
		entry.Digest, entry.Size = sum.digest(), sum.n
		return errors.Join(err, work.End())
	})
	if err != nil {
		return "", saveError(errdefs.Wrap(err, "save %s%s", bundlePrefix, t.path), t.path)
	}
	entry.Kind, entry.Name, entry.Arch, entry.Unpacked = m.Kind, m.Name, m.Arch, m.Unpacked()
	text, err := json.MarshalIndent(entry, "", "  ")
	return string(text), err
}

// summing counts and hashes what is written.
type summing struct {
	sum   hash.Hash
	n     int64
	count func(done, total int64)
}

func (w *summing) Write(p []byte) (int, error) {
	w.n += int64(len(p))
	w.count(w.n, 0)
	return w.sum.Write(p)
}

func (w *summing) digest() blobs.Digest {
	return blobs.Digest("sha256:" + hex.EncodeToString(w.sum.Sum(nil)))
}
