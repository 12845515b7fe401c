package imagemgr

import (
	"context"
	"errors"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/daemon/ext4"
	"banger/internal/daemon/imagemgr/oci"
	"banger/internal/daemon/imagemgr/ociwrite"
	"banger/internal/errdefs"
	"banger/internal/model"
)

// SaveImage says where to save an image, and how.
type SaveImage struct {
	Name  string
	To    string // oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:NAME] or bundle:FILE[:NAME], with absolute paths
	Force bool   // replace a file that is there
}

// bundlePrefix begins where a bundle is saved to.
const bundlePrefix = "bundle:"

const saveHint = "save it to oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:NAME] or bundle:FILE[:NAME]"

// check checks it.
func (o SaveImage) check() error {
	if to, ok := strings.CutPrefix(o.To, bundlePrefix); ok {
		_, err := parseBundle(to)
		return err
	}
	_, err := o.parse()
	return err
}

// parse reads where to save an image that other tools read.
func (o SaveImage) parse() (oci.Reference, error) {
	ref, err := oci.Parse(o.To)
	if err != nil {
		return ref, errdefs.Invalid("%w", err).WithHint(saveHint)
	}
	switch ref.Kind {
	case oci.Layout, oci.LayoutArchive, oci.DockerArchive:
		return ref, checkAbsolute(ref.Path)
	}
	return ref, errdefs.Invalid("an image cannot be saved to %q", o.To).WithHint(saveHint)
}

// Save writes an image as others read it, with its config, and returns its digest. In an
// archive it is called by its name here, if nothing else is asked for. Of a bundle it
// returns the entry for a catalog.
func (s *Service) Save(ctx context.Context, o SaveImage, p model.Progress) (string, error) {
	if err := o.check(); err != nil {
		return "", err
	}
	i, err := s.GetImage(ctx, o.Name)
	if err != nil {
		return "", err
	}
	if to, ok := strings.CutPrefix(o.To, bundlePrefix); ok {
		return s.saveBundle(ctx, i, to, o.Force, p)
	}
	return s.saveLayers(ctx, i, o, p)
}

// saveLayers writes an image as one that other tools read.
func (s *Service) saveLayers(ctx context.Context, i model.Image, o SaveImage, p model.Progress) (string, error) {
	ref, err := o.parse()
	if err != nil {
		return "", err
	}
	if ref.Kind != oci.Layout && ref.Tag == "" {
		ref.Tag = nameElsewhere(i.Name)
	}
	p.Stage("write")
	return s.saveTo(ctx, i, ref, o.Force, p)
}

func (s *Service) saveTo(ctx context.Context, i model.Image, ref oci.Reference, replace bool, p model.Progress) (string, error) {
	options, err := s.written(i, p)
	if err != nil {
		return "", err
	}
	target, end, err := s.target(replace)
	if err != nil {
		return "", err
	}
	defer end()
	options.Target = target
	var saved *ociwrite.Image
	err = withRootfs(i, func(_ *os.File, fsys *ext4.FS) error {
		return s.step("write", func() (err error) { saved, err = ociwrite.Save(ctx, fsys, ref, options); return err })
	})
	if err != nil {
		return "", saveError(err, ref.Path)
	}
	tellLeftOut(saved, p)
	return saved.Manifest.Digest.String(), nil
}

// saveError says what to do about an image that could not be written to path.
func saveError(err error, path string) error {
	switch {
	case errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT):
		return errdefs.Exhausted("%w", err).WithHint("free some space, or name a place on a larger disk than that of %s: an archive is written in two steps and takes room for both", path)
	case errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.EROFS) || errors.Is(err, unix.ENAMETOOLONG):
		return errdefs.Invalid("%w", err).WithHint("check the path")
	case errdefs.ClassOf(err) == errdefs.ClassPermission:
		return orTry(err, "the daemon's user has to be able to write there")
	case errdefs.ClassOf(err) == errdefs.ClassExhausted:
		return orTry(err, limitHint)
	}
	return err
}

// nameElsewhere is what other tools may call an image; "" where they have no such names,
// or mean something else by it.
func nameElsewhere(name string) string {
	ref, err := oci.Parse(name)
	if saysWhat(name) || err != nil || ref.Kind != oci.Registry || ref.Digest != "" {
		return ""
	}
	return ref.Familiar()
}
