package imagemgr

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/daemon/ext4"
	"banger/internal/daemon/imagemgr/oci"
	"banger/internal/daemon/imagemgr/ociwrite"
	"banger/internal/errdefs"
	"banger/internal/model"
)

// PushImage says where to push an image, and how.
type PushImage struct {
	Name     string
	To       string // HOST/NAME[:TAG]; empty: what its name says
	Insecure bool   // allow http, and TLS that cannot be verified, for the registry
}

// checkPush checks it. A name without a host or a directory is one that only an image here
// has, whatever Docker Hub would make of it.
func (o PushImage) checkPush() (oci.Reference, error) {
	to := o.To
	if to == "" {
		to = o.Name
	}
	ref, err := oci.Parse(to)
	switch {
	case o.To == "" && (err != nil || ref.Kind != oci.Registry || !strings.Contains(o.Name, "/")):
		return ref, errdefs.Invalid("image name %q does not say where to push it", o.Name).
			WithHint("banger image push %s HOST/NAME:TAG", o.Name)
	case err != nil:
		return ref, err
	case ref.Kind != oci.Registry:
		return ref, errdefs.Invalid("push to %s: that is no registry", ref).
			WithHint("give the name of a repository, such as HOST/NAME:TAG; to a file: banger image save")
	case ref.Digest != "":
		return ref, errdefs.Invalid("push to %s: which digest it has, the image says", ref.Familiar()).WithHint("give a tag")
	}
	return ref, nil
}

// Push sends an image to a registry, with its config, and returns its digest.
func (s *Service) Push(ctx context.Context, o PushImage, p model.Progress) (string, error) {
	ref, err := o.checkPush()
	if err != nil {
		return "", err
	}
	i, err := s.GetImage(ctx, o.Name)
	if err != nil {
		return "", err
	}
	options, err := s.written(i, p)
	if err != nil {
		return "", err
	}
	dir, remove, err := s.stage(s.Layout.Images())
	if err != nil {
		return "", err
	}
	defer remove()
	p.Stage("write")
	var made *ociwrite.Image
	err = withRootfs(i, func(_ *os.File, fsys *ext4.FS) (err error) {
		made, err = ociwrite.Build(ctx, fsys, dir, options)
		return err
	})
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return "", spaceError(err, "write the image")
	}
	if err != nil {
		return "", orTry(errdefs.Wrap(err, "push image %q", o.Name), limitHint)
	}
	tellLeftOut(made, p)
	upload, err := made.Upload()
	if err != nil {
		return "", errdefs.Wrap(err, "push image %q", o.Name)
	}
	p.Stage("upload")
	count := paced(p)
	digest, err := oci.Push(ctx, ref, upload, oci.Options{
		Insecure: o.Insecure || slices.Contains(s.Sources.Insecure, ref.Host), Keychain: s.Sources.Keychain,
		UserAgent: s.Sources.UserAgent, Transport: s.Sources.Transport, Retry: s.Sources.Retry,
	}, func(at oci.Progress) { count(at.AllDone, at.All) })
	return string(digest), orTry(err, "check the reference, whether this host reaches the registry, and whether you may write there")
}
