package imagemgr

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"

	"banger/internal/daemon/imagemgr/oci"
	"banger/internal/errdefs"
	"banger/internal/model"
	"banger/internal/paths"
)

// Tag gives an image a further name and returns it under that. Both names are equal from
// then on: either can be removed, or made to lead elsewhere. A name that another image has
// is refused unless force is set; that one then loses its name as with a pull.
func (s *Service) Tag(ctx context.Context, source, name string, force bool) (model.Image, error) {
	name, err := furtherName(name)
	if err != nil {
		return model.Image{}, err
	}
	src, err := s.GetImage(ctx, source)
	if err != nil {
		return model.Image{}, err
	}
	if now, err := s.Store.ImageByName(ctx, name); err == nil && sameImage(src, now) {
		return now, nil
	}
	i := src
	i.Name = name
	if !src.Managed {
		s.imageOpsMu.Lock()
		i.ID = model.NewID()
		err := s.step("record", func() error { return s.putDerived(ctx, src, &i, force) })
		s.imageOpsMu.Unlock()
		if err != nil {
			return model.Image{}, err
		}
		return i, s.collect(ctx)
	}
	dir, remove, err := s.stage(s.Layout.Images())
	if err != nil {
		return model.Image{}, err
	}
	defer remove()
	rootfs := filepath.Join(dir, paths.RootfsFile)
	if err := s.step("share", func() error { return os.Link(src.Path, rootfs) }); err != nil {
		return model.Image{}, spaceError(err, "share the root filesystem")
	}
	return s.publishImage(ctx, dir, rootfs, i, func(ctx context.Context, i *model.Image) error {
		return s.putDerived(ctx, src, i, force)
	})
}

// furtherName checks a name for an image that is here already, and returns it as it is
// written where it is a reference.
func furtherName(name string) (string, error) {
	if err := model.CheckArtifactName("image", name); err != nil {
		return "", err
	}
	if err := ownName("image", name); err != nil {
		return "", err
	}
	ref, err := oci.Parse(name)
	if err != nil {
		return name, nil // one that only an image here can have
	}
	if ref.Digest != "" {
		return "", errdefs.Invalid("image name %q says what is in the image", name).WithHint("leave the digest away, or choose another name")
	}
	return imageNameOf(ref), nil
}

// sameImage reports whether two rows are of one image.
func sameImage(a, b model.Image) bool {
	if a.ID == b.ID {
		return true
	}
	one, err := os.Stat(a.Path)
	if err != nil {
		return false
	}
	other, err := os.Stat(b.Path)
	return err == nil && os.SameFile(one, other) && a.Managed == b.Managed && a.KernelID == b.KernelID && reflect.DeepEqual(a.Config, b.Config)
}

// putDerived puts the row of an image that was made from another one, with imageOpsMu
// held. What that one prefers may have been replaced while it was made.
func (s *Service) putDerived(ctx context.Context, from model.Image, i *model.Image, force bool) error {
	all, err := s.Store.ListImages(ctx)
	if err != nil {
		return err
	}
	found := false
	for _, other := range all {
		if other.ID == from.ID {
			found, i.KernelID = true, other.KernelID
		}
	}
	if !found {
		return errdefs.NotFound("image %q was removed meanwhile", from.Name)
	}
	if !force {
		if err := s.nameIsFree(ctx, i.Name); err != nil {
			return err
		}
	}
	return s.Store.PutImage(ctx, *i)
}

// nameIsFree refuses a name that an image has, for what replaces one with --force.
func (s *Service) nameIsFree(ctx context.Context, name string) error {
	_, err := s.Store.ImageByName(ctx, name)
	if errors.Is(err, errdefs.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return taken(name)
}

func taken(name string) error {
	return errdefs.AlreadyExists("image %q exists", name).WithHint("choose another name, or replace it: add --force")
}
