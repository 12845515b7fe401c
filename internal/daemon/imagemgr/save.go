package imagemgr

import (
	"context"
	"errors"
	"os"

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
	To    string // oci:DIR[:TAG], oci-archive:FILE[:TAG] or docker-archive:FILE[:NAME], with absolute paths
	Force bool   // replace a file that is there
}

// checkSave checks it.
func (o SaveImage) checkSave() (oci.Reference, error) {
	const hint = "save it to oci:DIR[:TAG], oci-archive:FILE[:TAG] or docker-archive:FILE[:NAME]"
	ref, err := oci.Parse(o.To)
	if err != nil {
		return ref, errdefs.Invalid("%w", err).WithHint(hint)
	}
	switch ref.Kind {
	case oci.Layout, oci.LayoutArchive, oci.DockerArchive:
		return ref, checkAbsolute(ref.Path)
	}
	return ref, errdefs.Invalid("an image cannot be saved to %q", o.To).WithHint(hint)
}

// Save writes an image as others read it, with its config, and returns its digest. In an
// archive it is called by its name here, if nothing else is asked for.
func (s *Service) Save(ctx context.Context, o SaveImage, p model.Progress) (string, error) {
	ref, err := o.checkSave()
	if err != nil {
		return "", err
	}
	i, err := s.GetImage(ctx, o.Name)
	if err != nil {
		return "", err
	}
	if ref.Kind != oci.Layout && ref.Tag == "" {
		ref.Tag = nameElsewhere(i.Name)
	}
	options, err := s.written(i, p)
	if err != nil {
		return "", err
	}
	options.Replace = o.Force
	p.Stage("write")
	var saved *ociwrite.Image
	err = withRootfs(i, func(_ *os.File, fsys *ext4.FS) (err error) {
		saved, err = ociwrite.Save(ctx, fsys, ref, options)
		return err
	})
	switch {
	case errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT):
		return "", errdefs.Exhausted("%w", err).WithHint("free some space, or name a place on a larger disk than that of %s: an archive is written in two steps and takes room for both", ref.Path)
	case errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.EROFS) || errors.Is(err, unix.ENAMETOOLONG):
		return "", errdefs.Invalid("%w", err).WithHint("check the path")
	case errdefs.ClassOf(err) == errdefs.ClassPermission:
		return "", orTry(err, "the daemon's user has to be able to write there")
	case errdefs.ClassOf(err) == errdefs.ClassExhausted:
		return "", orTry(err, limitHint)
	case err != nil:
		return "", err
	}
	tellLeftOut(saved, p)
	return saved.Manifest.Digest.String(), nil
}

// nameElsewhere is what other tools may call an image; "" where they have no such names,
// or mean something else by it.
func nameElsewhere(name string) string {
	ref, err := oci.Parse(name)
	if _, debians, _ := suiteOf(name); debians || err != nil || ref.Kind != oci.Registry || ref.Digest != "" {
		return ""
	}
	return ref.Familiar()
}
