package imagemgr

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"banger/internal/daemon/ext4"
	"banger/internal/daemon/rootdisk"
	"banger/internal/errdefs"
	"banger/internal/model"
	"banger/internal/paths"
)

// UseDisk has use work with the disk of a stopped VM, which does not start meanwhile. use
// is told of the VM and of its image, and has flat write what the guest would see into an
// empty file.
type UseDisk func(ctx context.Context, ref, action string, use func(ctx context.Context, v model.VM, image model.Image, flat func(context.Context, *os.File) error) error) error

// Promotion says what to make a managed image of: a stopped VM's disk, or the file of a
// registered image.
type Promotion struct {
	VM    string // its name or id
	Image string // or this
	Name  string // of the new image
	Force bool   // take the name from another image that has it
}

// What the source of a promoted image begins with.
const (
	fromVM    = "promoted from vm "
	fromImage = "promoted from image "
)

// promoted is the command that makes a promoted image again; "" for others.
func promoted(i model.Image) string {
	if vm, ok := strings.CutPrefix(i.Source, fromVM); ok {
		return "banger image promote --force " + vm + " " + i.Name
	}
	if image, ok := strings.CutPrefix(i.Source, fromImage); ok {
		return "banger image promote --force --image " + image + " " + i.Name
	}
	return ""
}

// check checks it and puts the name as it is written.
func (o *Promotion) check() (err error) {
	if (o.VM == "") == (o.Image == "") {
		return errdefs.Invalid("promote what: a VM or an image").WithHint("name one of them")
	}
	o.Name, err = furtherName(o.Name)
	return err
}

// Promote makes a managed image of a copy of a disk, which shares its blocks where the
// file system can. Config and preferred kernel are those of the image that the disk comes
// from. Nothing is mounted or repaired: a filesystem that needs that is refused.
func (s *Service) Promote(ctx context.Context, o Promotion, p model.Progress) (made model.Image, err error) {
	if err := o.check(); err != nil {
		return made, err
	}
	if !o.Force { // before the work; it is looked at again when it is done
		if err := s.nameIsFree(ctx, o.Name); err != nil {
			return made, err
		}
	}
	if o.Image != "" {
		made, err = s.promoteImage(ctx, o, p)
		return made, errdefs.Wrap(err, "promote image %q", o.Image)
	}
	err = s.UseDisk(ctx, o.VM, "promote", func(ctx context.Context, v model.VM, image model.Image, flat func(context.Context, *os.File) error) error {
		// To the end under the claim: as long as there is the VM there is its image.
		var err error
		made, err = s.promote(ctx, image, fromVM+v.Name, o, p, flat)
		return err
	})
	return made, errdefs.Wrap(err, "promote vm %q", o.VM)
}

func (s *Service) promoteImage(ctx context.Context, o Promotion, p model.Progress) (model.Image, error) {
	i, err := s.GetImage(ctx, o.Image)
	if err != nil {
		return i, err
	}
	if i.Managed {
		return model.Image{}, errdefs.Precondition("it is managed already").WithHint("for a further name: banger image tag %s %s", i.Name, o.Name)
	}
	var made model.Image
	err = withRootfs(i, func(src *os.File, _ *ext4.FS) (err error) { // which refuses before anything is copied
		made, err = s.promote(ctx, i, fromImage+i.Name, o, p, func(ctx context.Context, f *os.File) error { return rootdisk.Copy(ctx, f, src) })
		return err
	})
	return made, err
}

// promote publishes what fill writes into a file, as an image that is otherwise like from.
func (s *Service) promote(ctx context.Context, from model.Image, source string, o Promotion, p model.Progress, fill func(context.Context, *os.File) error) (model.Image, error) {
	dir, remove, err := s.stage(s.Layout.Images())
	if err != nil {
		return model.Image{}, err
	}
	defer remove()
	p.Stage("copy")
	rootfs := filepath.Join(dir, paths.RootfsFile)
	if err := s.step("copy", func() error { return fillFile(ctx, rootfs, fill) }); err != nil {
		return model.Image{}, spaceError(err, "copy the disk")
	}
	f, _, err := openRootfs(rootfs)
	if err != nil {
		return model.Image{}, orTry(err, "what is on the disk is of no use as an image: look at it in the VM")
	}
	if err := f.Close(); err != nil {
		return model.Image{}, err
	}
	p.Stage("publish")
	i := model.Image{Name: o.Name, Config: from.Config, Source: source, CreatedAt: time.Now()}
	return s.publishImage(ctx, dir, rootfs, i, func(ctx context.Context, i *model.Image) error { return s.putDerived(ctx, from, i, o.Force) })
}

// fillFile makes a file of what fill writes.
func fillFile(ctx context.Context, path string, fill func(context.Context, *os.File) error) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	return errors.Join(fill(ctx, f), f.Close())
}
