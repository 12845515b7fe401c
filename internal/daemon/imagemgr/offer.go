package imagemgr

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"banger/internal/daemon/imagemgr/bundle"
	"banger/internal/daemon/imagemgr/catalog"
	"banger/internal/errdefs"
	"banger/internal/model"
	"banger/internal/paths"
)

// pullOffer makes an image of a bundle that a catalog has, and pulls the kernel that goes
// with it. Where that is what is here already, nothing is made.
func (s *Service) pullOffer(ctx context.Context, pl plan, p model.Progress) (model.Image, error) {
	p.Stage("resolve")
	var found catalog.Found
	err := s.step("resolve", func() (err error) { found, err = s.catalogs.Find(ctx, bundle.Image, pl.offer); return err })
	if near := model.Near(pl.From, s.offeredNames()); errors.Is(err, errdefs.ErrNotFound) && len(near) > 0 {
		err = errdefs.NotFound("%w", err).WithHint("did you mean %s?", strings.Join(near, ", "))
	}
	if err != nil {
		return model.Image{}, err
	}
	var kernel model.Kernel
	if found.Kernel != "" {
		if kernel, err = s.EnsureKernel(ctx, found.Kernel, p); err != nil {
			return model.Image{}, err
		}
	}
	if !pl.Force {
		i, err := s.presentImage(ctx, pl.name, pl)
		if err == nil && i.Digest == string(found.Digest) && i.KernelID == kernel.ID {
			p.Detail("up to date")
			return i, nil
		}
	}
	defer s.cache.Pin(found.Digest)()
	return s.assembleImage(ctx, pl.name, p, s.put, func(dir string) (madeImage, error) {
		made := madeImage{
			path: filepath.Join(dir, paths.RootfsFile), digest: string(found.Digest), source: offerSource(found), kernel: found.Kernel,
		}
		if !pl.Force && s.linkOffer(ctx, &made, found.Unpacked) {
			return made, nil
		}
		made.config, err = s.unpackOffer(ctx, found, dir, p)
		return made, err
	})
}

// unpackOffer fetches a bundle and unpacks its disk into dir.
func (s *Service) unpackOffer(ctx context.Context, found catalog.Found, dir string, p model.Progress) (config model.ImageConfig, err error) {
	p.Stage("download")
	f, err := s.catalogs.Open(ctx, found, p)
	if err != nil {
		return config, err
	}
	defer f.Close()
	p.Stage("unpack")
	want := found.Want()
	want.Data = s.Sources.Tree.Bytes
	count := paced(p)
	m, err := bundle.Unpack(ctx, f, dir, want, counter{p, count})
	if err != nil {
		return config, errdefs.Wrap(err, "unpack bundle")
	}
	if m.Config != nil {
		config = *m.Config
	}
	// Whoever has signed it may have been mistaken.
	disk, _, err := openRootfs(filepath.Join(dir, bundle.Rootfs))
	if err != nil {
		return config, errdefs.Wrap(err, "look at the disk in the bundle")
	}
	return config, disk.Close()
}

// counter is a Progress that tells of bytes by a function of its own.
type counter struct {
	model.Progress
	count func(done, total int64)
}

func (c counter) Count(done, total int64, _ string) { c.count(done, total) }

// linkOffer gives an image the disk and the config of another one that was made of the
// same bundle.
func (s *Service) linkOffer(ctx context.Context, made *madeImage, size int64) bool {
	all, err := s.Store.ListImages(ctx)
	if err != nil {
		return false // whoever publishes will find out
	}
	for _, i := range all {
		if i.Managed && offerOf(i) != "" && i.Digest == made.digest && i.SizeBytes == size && checkImage(i) == nil && os.Link(i.Path, made.path) == nil {
			made.config = i.Config
			return true
		}
	}
	return false
}

// offerSource is the source of an image that was made of a bundle. offerOf reads it.
func offerSource(f catalog.Found) string { return catalogPrefix + f.Name + " of " + f.Origin() }

// offerOf is what a catalog called an image when it was pulled; "" for others.
func offerOf(i model.Image) string {
	offer, ok := offered(i.Source)
	if !ok {
		return ""
	}
	offer, _, _ = strings.Cut(offer, " ")
	return offer
}

// Offers returns what the catalogs have of a kind (bundle.Image, bundle.Kernel).
func (s *Service) Offers(ctx context.Context, kind string) ([]catalog.Found, error) {
	all, err := s.catalogs.Offers(ctx, kind)
	return all, orTry(err, "check images.catalogs in the configuration, and whether this host reaches it")
}

// offeredNames are the names of images that catalogs had when they were last seen.
func (s *Service) offeredNames() []string {
	names := s.catalogs.Names(bundle.Image)
	for i, name := range names {
		names[i] = catalogPrefix + name
	}
	return names
}
