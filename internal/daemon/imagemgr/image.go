package imagemgr

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"banger/internal/daemon/imagemgr/debian"
	"banger/internal/errdefs"
	"banger/internal/model"
	"banger/internal/paths"
)

const pullHint = "banger doctor checks what a pull needs; another release may do, e.g. debian:SUITE, or one of your own: see banger image register, banger kernel import"

// madeImage is a root filesystem that is ready to be published.
type madeImage struct {
	path   string // in the staging directory
	config model.ImageConfig
	digest string
	source string
}

// EnsureImage returns the image of that name, and pulls it first when it is not
// there, or its files are gone, and the name says where it comes from.
func (s *Service) EnsureImage(ctx context.Context, name string, p model.Progress) (model.Image, error) {
	return s.PullImage(ctx, Pull{From: name}, p)
}

// Pull says which image to make.
type Pull struct {
	From    string   // what it is made from: "debian" or "debian:SUITE"
	As      string   // its name; empty: From
	Include []string // packages to install besides the usual ones; As is needed then
	Force   bool     // make it again although it is there
}

// recipe is what an image of Debian's packages is made by.
type recipe struct {
	suite   string // "": the default one
	include []string
}

// check returns the name and the recipe of the image; known is false when nothing
// can be pulled for it.
func (p Pull) check() (name string, r recipe, known bool, err error) {
	name, r.include = p.From, p.Include
	if err = model.CheckArtifactName("image", p.From); err != nil {
		return name, r, false, err
	}
	if r.suite, known, err = suiteOf(p.From); err != nil {
		return name, r, known, err
	}
	if err = debian.CheckPackages(p.Include); err != nil {
		return name, r, known, err
	}
	switch {
	case p.As == "" && len(p.Include) > 0:
		err = errdefs.Invalid("an image with other packages than %q has needs a name of its own", p.From).
			WithHint("say which: banger image pull %s --name mine --include …", p.From)
	case p.As != "" && p.As != p.From:
		name = p.As
		if err = model.CheckArtifactName("image", name); err == nil {
			err = ownName("image", name)
		}
	}
	return name, r, known, err
}

// PullImage makes an image from where its name says. One that is there already is
// returned as it is unless force is set. One pull per name runs at a time, and
// everybody who asks meanwhile shares it.
func (s *Service) PullImage(ctx context.Context, pull Pull, p model.Progress) (model.Image, error) {
	name, r, known, err := pull.check()
	if err != nil {
		return model.Image{}, err
	}
	force := pull.Force
	if !force || !known {
		i, err := s.presentImage(ctx, name, known)
		if err == nil && force && i.Managed {
			return i, errdefs.Invalid("image %q has a name of its own, which does not say what to make it from", name).
				WithHint("say it again, with its packages: banger image pull --force --name %s --include … %s", name, debianName)
		}
		if err == nil && force {
			return i, errdefs.Invalid("image %q is your own file; there is nothing to pull it from", name).
				WithHint("put a new file in its place, or remove it and register another: banger image rm %s", name)
		}
		if err == nil || !errors.Is(err, errdefs.ErrNotFound) {
			return i, err
		}
	}
	if !known {
		return model.Image{}, unknown("image", name, s.imageNames(ctx))
	}
	return s.imagePulls.do(ctx, name, p, func(ctx context.Context, p model.Progress) (model.Image, error) {
		if !force { // somebody may have finished it in between
			if i, err := s.presentImage(ctx, name, true); err == nil {
				return i, nil
			}
		}
		i, err := s.pullImage(ctx, name, r, p)
		if err != nil {
			return i, orTry(errdefs.Wrap(err, "pull image %q", name), pullHint)
		}
		return i, nil
	})
}

// presentImage returns the image when its row and its file are there. A row
// without a file counts as absent when the image can be pulled again.
func (s *Service) presentImage(ctx context.Context, name string, pullable bool) (model.Image, error) {
	i, err := s.Store.ImageByName(ctx, name)
	if err != nil {
		return i, err
	}
	err = checkImage(i)
	if err != nil && i.Managed && pullable {
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
	switch _, pullable, _ := suiteOf(i.Name); {
	case i.Managed && pullable:
		return e.WithHint("make it again: banger image pull --force %s", i.Name)
	case i.Managed:
		return e.WithHint("make it again as it was made, or forget it: banger image rm %s", i.Name)
	}
	return e.WithHint("put the file back, or forget the image: banger image rm %s", i.Name)
}

func (s *Service) pullImage(ctx context.Context, name string, r recipe, p model.Progress) (model.Image, error) {
	dir, remove, err := s.stage(s.Layout.Images())
	if err != nil {
		return model.Image{}, err
	}
	defer remove()
	made, err := s.makeImage(ctx, r, dir, p)
	if err != nil {
		return model.Image{}, err
	}
	p.Stage("publish")
	st, err := os.Stat(made.path)
	if err != nil {
		return model.Image{}, errdefs.Wrap(err, "look at the root filesystem")
	}
	final := filepath.Join(dir, "final")
	if err := os.Mkdir(final, 0o755); err != nil {
		return model.Image{}, spaceError(err, "make image directory")
	}
	if err := os.Rename(made.path, filepath.Join(final, paths.RootfsFile)); err != nil {
		return model.Image{}, spaceError(err, "move the root filesystem")
	}
	if err := syncTree(final); err != nil {
		return model.Image{}, spaceError(err, "write image")
	}
	if err := ctx.Err(); err != nil {
		return model.Image{}, context.Cause(ctx)
	}
	id := newID()
	i := model.Image{
		ID: id, Name: name, Managed: true, Path: filepath.Join(s.Layout.Image(id), paths.RootfsFile), SizeBytes: st.Size(),
		Config: made.config, Digest: made.digest, Source: made.source, CreatedAt: time.Now(),
	}
	// From here on it happens as a whole, whoever goes away.
	if err := s.publish(final, s.Layout.Image(id), func() error { return s.Store.PutImage(context.WithoutCancel(ctx), i) }); err != nil {
		return model.Image{}, err
	}
	return i, s.collect(context.WithoutCancel(ctx))
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

func (s *Service) imageNamed(ctx context.Context, name string) (model.Image, error) {
	if err := model.CheckArtifactName("image", name); err != nil {
		return model.Image{}, err
	}
	i, err := s.Store.ImageByName(ctx, name)
	if errors.Is(err, errdefs.ErrNotFound) {
		return i, unknown("image", name, s.imageNames(ctx))
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
