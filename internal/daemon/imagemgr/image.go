package imagemgr

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"banger/internal/daemon/imagemgr/debian"
	"banger/internal/daemon/imagemgr/oci"
	"banger/internal/errdefs"
	"banger/internal/model"
	"banger/internal/paths"
)

// pullHint is for images of Debian's packages.
const pullHint = "banger doctor checks what a pull needs; another release may do, e.g. debian:SUITE, or one of your own: see banger image register, banger kernel import"

// madeImage is a root filesystem that is ready to be published.
type madeImage struct {
	path   string // in the staging directory
	config model.ImageConfig
	digest string
	source string
	layers []model.ImageLayer
	kernel string // the name of the one it prefers; "": it has no preference
}

// EnsureImage returns the image of that name, and pulls it first when it is not
// there, or its files are gone, and the name says where it comes from.
func (s *Service) EnsureImage(ctx context.Context, name string, p model.Progress) (model.Image, error) {
	pl, err := s.plan(Pull{From: name})
	if err != nil {
		return model.Image{}, err
	}
	return s.pull(ctx, pl, p)
}

// PullImage makes an image from where its name says. One that is there already is
// returned as it is, if it still is what its reference leads to, unless force is set.
// One pull per name runs at a time, and everybody who asks meanwhile shares it.
func (s *Service) PullImage(ctx context.Context, pull Pull, p model.Progress) (model.Image, error) {
	pl, err := s.plan(pull)
	if err != nil {
		return model.Image{}, err
	}
	pl.look = pl.moves()
	return s.pull(ctx, pl, p)
}

func (s *Service) pull(ctx context.Context, pl plan, p model.Progress) (model.Image, error) {
	if i, here, err := s.here(ctx, pl); here || err != nil {
		return i, err
	}
	if !pl.known() {
		return model.Image{}, unknown("image", pl.name, s.imageNames(ctx))
	}
	return s.imagePulls.do(ctx, pl.key(), p, func(ctx context.Context, p model.Progress) (model.Image, error) {
		if i, here, err := s.here(ctx, pl); here || err != nil { // somebody may have finished it in between
			return i, err
		}
		i, err := s.pullImage(ctx, pl, p)
		if pl.moves() {
			s.trimCache(context.WithoutCancel(ctx))
		}
		if err != nil {
			return i, s.explain(ctx, pl, errdefs.Wrap(err, "pull image %q", pl.name))
		}
		return i, nil
	})
}

// here returns the image of a plan when it is here and that is all that is wanted. Its
// error says that something else has the name.
func (s *Service) here(ctx context.Context, pl plan) (i model.Image, here bool, err error) {
	for _, name := range pl.names() {
		if i, err = s.presentImage(ctx, name, pl); !errors.Is(err, errdefs.ErrNotFound) {
			break
		}
	}
	switch {
	case errors.Is(err, errdefs.ErrNotFound):
		return i, false, nil
	case err != nil:
		return i, false, err
	case !i.Managed && pl.As != "":
		return i, false, errdefs.AlreadyExists("image %q is your own file", pl.name).
			WithHint("choose another name, or remove it first: banger image rm %s", pl.name)
	case pl.Force && !i.Managed:
		return i, false, errdefs.Invalid("image %q is your own file; there is nothing to pull it from", pl.name).
			WithHint("put a new file in its place, or remove it and register another: banger image rm %s", pl.name)
	case pl.Force && !pl.madeBy(i):
		return i, false, errdefs.Invalid("image %q has a name of its own, which does not say what to make it from", pl.name).
			WithHint("say it again: %s", remake(i))
	}
	return i, !pl.Force && !(pl.look && pl.madeBy(i)), nil
}

// madeBy reports whether an image that is here is what the plan makes, perhaps an older
// one: a name given to something else says nothing of where it comes from.
func (p plan) madeBy(i model.Image) bool {
	switch {
	case !i.Managed:
		return false
	case p.As != "" && p.known() || p.debian != nil:
		return true
	case p.offer != "":
		return offerOf(i) == p.offer
	}
	return p.ref != nil && i.Source == p.ref.String()
}

// remake is the command that makes a managed image again.
func remake(i model.Image) string {
	if again := promoted(i); again != "" {
		return again
	}
	if offer := offerOf(i); offer != "" {
		if from := catalogPrefix + offer; from != i.Name {
			return "banger image pull --force --name " + i.Name + " " + from
		}
		return "banger image pull --force " + i.Name
	}
	if i.Source == fromBuild {
		return "banger image build -t " + i.Name + " …"
	}
	named := saysWhat(i.Name)
	ref, err := oci.Parse(i.Source)
	switch elsewhere := err == nil && ref.String() == i.Source; {
	case named, elsewhere && imageNameOf(ref) == i.Name:
		return "banger image pull --force " + i.Name
	case elsewhere:
		return "banger image pull --force --name " + i.Name + " " + i.Source
	}
	return "banger image pull --force --name " + i.Name + " --include … " + debianName
}

// presentImage returns the image when its row and its file are there. A row
// without a file counts as absent when the plan makes the image again.
func (s *Service) presentImage(ctx context.Context, name string, pl plan) (model.Image, error) {
	i, err := s.Store.ImageByName(ctx, name)
	if err != nil {
		return i, err
	}
	err = checkImage(i)
	if err != nil && pl.madeBy(i) {
		return i, errdefs.NotFound("%w", err)
	}
	return i, err
}

// checkImage reports an image whose file is gone.
func checkImage(i model.Image) error {
	st, err := os.Stat(i.Path)
	if err == nil && st.Mode().IsRegular() && st.Size() > 0 {
		return nil
	}
	e := errdefs.Precondition("image %q is broken: its file %s is gone", i.Name, i.Path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		e = errdefs.Precondition("image %q is broken: %w", i.Name, err)
	}
	if i.Managed {
		return e.WithHint("make it again: %s; or forget it: banger image rm %s", remake(i), i.Name)
	}
	return e.WithHint("put the file back, or forget the image: banger image rm %s", i.Name)
}

// pullImage makes an image and publishes it.
func (s *Service) pullImage(ctx context.Context, pl plan, p model.Progress) (model.Image, error) {
	switch {
	case pl.ref != nil:
		return s.pullRef(ctx, pl, p)
	case pl.offer != "":
		return s.pullOffer(ctx, pl, p)
	}
	return s.assembleImage(ctx, pl.name, p, s.put, func(dir string) (madeImage, error) {
		return s.makeImage(ctx, *pl.debian, dir, p)
	})
}

// put puts the row of an image, whatever has its name.
func (s *Service) put(ctx context.Context, i *model.Image) error { return s.Store.PutImage(ctx, *i) }

// assembleImage has an image made in a staging directory, and publishes it; put is as with
// publishImage.
func (s *Service) assembleImage(ctx context.Context, name string, p model.Progress, put func(context.Context, *model.Image) error, make func(dir string) (madeImage, error)) (model.Image, error) {
	dir, remove, err := s.stage(s.Layout.Images())
	if err != nil {
		return model.Image{}, err
	}
	defer remove()
	var made madeImage
	if err := s.step("make", func() (err error) { made, err = make(dir); return err }); err != nil {
		return model.Image{}, err
	}
	p.Stage("publish")
	return s.publishImage(ctx, dir, made.path, model.Image{
		Name: name, Config: made.config, Digest: made.digest, Source: made.source, Layers: made.layers, CreatedAt: time.Now(),
	}, func(ctx context.Context, i *model.Image) error {
		if made.kernel != "" { // another one may have the name since
			k, err := s.kernelNamed(ctx, made.kernel)
			if err != nil {
				return err
			}
			i.KernelID = k.ID
		}
		return put(ctx, i)
	})
}

// publishImage publishes a root filesystem that lies in a staging directory as a managed
// image, whose row put puts under imageOpsMu.
func (s *Service) publishImage(ctx context.Context, dir, rootfs string, i model.Image, put func(context.Context, *model.Image) error) (model.Image, error) {
	st, err := os.Stat(rootfs)
	if err != nil {
		return model.Image{}, errdefs.Wrap(err, "look at the root filesystem")
	}
	final := filepath.Join(dir, "final")
	err = s.step("assemble", func() error {
		if err := os.Mkdir(final, 0o755); err != nil {
			return spaceError(err, "make image directory")
		}
		if err := os.Rename(rootfs, filepath.Join(final, paths.RootfsFile)); err != nil {
			return spaceError(err, "move the root filesystem")
		}
		return spaceError(syncTree(final), "write image")
	})
	if err != nil {
		return model.Image{}, err
	}
	if err := ctx.Err(); err != nil {
		return model.Image{}, context.Cause(ctx)
	}
	i.ID, i.Managed = model.NewID(), true
	i.Path, i.SizeBytes = filepath.Join(s.Layout.Image(i.ID), paths.RootfsFile), st.Size()
	// From here on it happens as a whole, whoever goes away.
	ctx = context.WithoutCancel(ctx)
	err = s.publish(publication{
		from: final, to: s.Layout.Image(i.ID), put: func() error { return put(ctx, &i) },
		known: func() (bool, error) {
			all, err := s.Store.ListImages(ctx)
			return slices.ContainsFunc(all, func(other model.Image) bool { return other.ID == i.ID }), err
		},
	})
	if err != nil {
		return model.Image{}, err
	}
	return i, s.collect(ctx)
}

// debianImage makes an image of Debian's packages.
func (s *Service) debianImage(ctx context.Context, r recipe, dir string, p model.Progress) (madeImage, error) {
	src, err := debian.HostSources("/", r.suite)
	if err != nil {
		return madeImage{}, err
	}
	i, err := debian.BuildImage(ctx, src, dir, s.DiskBytes, r.include, p)
	if err != nil {
		return madeImage{}, err
	}
	return madeImage{
		path: i.Path, digest: i.Digest, source: i.Source,
		config: model.ImageConfig{User: i.User, Env: []string{"LANG=C.UTF-8"}},
	}, nil
}

// ListImages returns all images that have a name, by name.
func (s *Service) ListImages(ctx context.Context) ([]model.Image, error) {
	all, err := s.Store.ListImages(ctx)
	if err != nil {
		return nil, err
	}
	var out []model.Image
	for _, i := range all {
		if i.Name != "" { // else replaced, and kept only for the VMs that use it
			out = append(out, i)
		}
	}
	return out, nil
}

// GetImage returns the image of that name. Its error says so when the image is
// broken.
func (s *Service) GetImage(ctx context.Context, name string) (model.Image, error) {
	i, err := s.imageNamed(ctx, name)
	if err != nil {
		return i, err
	}
	return i, checkImage(i)
}

// imageNamed finds an image by its name, or by another way to write the reference that
// this is.
func (s *Service) imageNamed(ctx context.Context, name string) (model.Image, error) {
	i, err := s.Store.ImageByName(ctx, name)
	if !errors.Is(err, errdefs.ErrNotFound) {
		return i, err
	}
	ref, perr := oci.Parse(name)
	if _, catalogs := offered(name); perr == nil && !catalogs {
		i, err = s.Store.ImageByName(ctx, imageNameOf(ref))
	} else if cerr := model.CheckArtifactName("image", name); cerr != nil {
		return i, cerr
	}
	if errors.Is(err, errdefs.ErrNotFound) {
		return i, unknown("image", name, append(s.imageNames(ctx), s.offeredNames()...))
	}
	return i, err
}

// RemoveImage removes an image that no VM uses. A registered image's file stays.
func (s *Service) RemoveImage(ctx context.Context, name string) error {
	i, err := s.imageNamed(ctx, name)
	if err != nil {
		return err
	}
	free := func() error {
		users, err := s.Store.ImageUsers(ctx, i.ID)
		return inUse("image", name, users, err)
	}
	return s.retire(s.Layout.Image(i.ID), free, func() error { return s.Store.DeleteImage(ctx, i.ID) })
}
