package imagemgr

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"banger/internal/daemon/imagemgr/oci"
	"banger/internal/errdefs"
	"banger/internal/guest"
	"banger/internal/model"
)

// A Dockerfile is built in a VM, which a client makes, fills and deletes. Here is what
// only the daemon can do for it: know the images, send one in, and take the result out.

// OpenAgent opens a stream to the agent of a running VM, whose ref is given, and sends a
// request on it.
type OpenAgent func(ctx context.Context, ref string, req guest.Request) (net.Conn, error)

// fromBuild is the source of an image that was built.
const fromBuild = "built from a Dockerfile"

// Build says what a Dockerfile is built to, and from which images here.
type Build struct {
	Names  []string // of the result, one at least
	Force  bool     // take names from images that were not built
	Images []string // that it uses
}

// BuildPlan is where to build.
type BuildPlan struct {
	Image      string // for the VM; pulled by its name
	Registries string // registries.conf, as images are pulled here
	DiskBytes  int64  // of the VM's disk, if nothing else is asked for
}

// PrepareBuild checks a build before anything is made for it.
func (s *Service) PrepareBuild(ctx context.Context, b Build) (BuildPlan, error) {
	names, err := buildNames(b.Names)
	if err != nil {
		return BuildPlan{}, err
	}
	for _, name := range names {
		if err := s.mayBuild(ctx, name, b.Force); err != nil {
			return BuildPlan{}, err
		}
	}
	for _, name := range b.Images {
		if _, err := s.GetImage(ctx, name); err != nil {
			return BuildPlan{}, err
		}
	}
	return BuildPlan{Image: builderImage(), Registries: registriesConf(s.Sources.Mirrors, s.Sources.Insecure), DiskBytes: s.DiskBytes}, nil
}

// maxBuildNames bounds how many names a build gives.
const maxBuildNames = 100

// buildNames are the names of what is built, as they are written.
func buildNames(names []string) ([]string, error) {
	if len(names) == 0 || len(names) > maxBuildNames {
		return nil, errdefs.Invalid("an image that is built has between 1 and %d names, not %d", maxBuildNames, len(names)).WithHint("say what to call it: -t NAME")
	}
	var all []string
	for _, name := range names {
		name, err := furtherName(name)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(all, name) {
			all = append(all, name)
		}
	}
	return all, nil
}

// mayBuild refuses the name of an image that was not built: to build again is what builds
// are for, but only an older build may go for that.
func (s *Service) mayBuild(ctx context.Context, name string, force bool) error {
	i, err := s.Store.ImageByName(ctx, name)
	switch {
	case errors.Is(err, errdefs.ErrNotFound):
		return nil
	case err != nil || force || i.Managed && i.Source == fromBuild:
		return err
	}
	return taken(name)
}

// SendImage says which image to write into a VM, and where.
type SendImage struct {
	Name string
	VM   string // a running one
	Path string // absolute, of the archive in the VM
	As   string // what the image is called there: NAME:TAG
}

func (o SendImage) check() error {
	if err := checkAbsolute(o.Path); err != nil {
		return err
	}
	if ref, err := oci.Parse(o.As); err != nil || ref.Kind != oci.Registry || ref.Digest != "" {
		return errdefs.Invalid("an image in a VM cannot be called %q", o.As).WithHint("call it HOST/NAME:TAG")
	}
	return nil
}

// Send writes an image into a VM, as an archive of an OCI layout.
func (s *Service) Send(ctx context.Context, o SendImage, p model.Progress) error {
	if err := o.check(); err != nil {
		return err
	}
	i, err := s.GetImage(ctx, o.Name)
	if err != nil {
		return err
	}
	dir, remove, err := s.stage(s.Layout.Images())
	if err != nil {
		return err
	}
	defer remove()
	file := filepath.Join(dir, "image.tar")
	p.Stage("write")
	if _, err := s.saveTo(ctx, i, oci.Reference{Kind: oci.LayoutArchive, Path: file, Tag: o.As}, false, p); err != nil {
		return errdefs.Wrap(err, "send image %q", o.Name)
	}
	p.Stage("send")
	return errdefs.Wrap(s.sendFile(ctx, o, file, p), "send image %q", o.Name)
}

func (s *Service) sendFile(ctx context.Context, o SendImage, file string, p model.Progress) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	conn, err := s.OpenAgent(ctx, o.VM, guest.Request{Kind: guest.KindCopyIn, CopyIn: &guest.CopyIn{Dest: o.Path, File: true}})
	if err != nil {
		return err
	}
	count := paced(p)
	return guest.FeedTar(ctx, conn, func(w io.Writer) error {
		out := tar.NewWriter(w)
		if err := out.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: filepath.Base(o.Path), Mode: 0o600, Size: st.Size()}); err != nil {
			return err
		}
		if err := copyCounted(out, f, st.Size(), count); err != nil {
			return err
		}
		return out.Close()
	})
}

// Built says where the result of a build is, and what to make of it.
type Built struct {
	VM    string   // a running one
	Path  string   // absolute, of an archive of an OCI layout in it
	Names []string // as of Build
	Force bool
}

func (o *Built) check() (err error) {
	if err = checkAbsolute(o.Path); err == nil {
		o.Names, err = buildNames(o.Names)
	}
	return err
}

// FinishBuild makes an image of an archive in a VM, and returns its names. The archive is
// fetched first, whole: a VM may do with it what it likes, and be gone.
func (s *Service) FinishBuild(ctx context.Context, o Built, p model.Progress) ([]string, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	for _, name := range o.Names {
		if err := s.mayBuild(ctx, name, o.Force); err != nil {
			return nil, err
		}
	}
	dir, remove, err := s.stage(s.Layout.Images())
	if err != nil {
		return nil, err
	}
	defer remove()
	file := filepath.Join(dir, "image.tar")
	p.Stage("fetch")
	if err := s.fetchFile(ctx, o, file, p); err != nil {
		return nil, orTry(errdefs.Wrap(err, "fetch %s from the VM", o.Path), "build it again")
	}
	i, err := s.takeBuilt(ctx, o, file, p)
	if err != nil {
		return nil, err
	}
	for n, name := range o.Names[1:] {
		if err := s.mayBuild(ctx, name, o.Force); err != nil {
			return nil, errdefs.Wrap(err, "made %s, then", strings.Join(o.Names[:n+1], ", "))
		}
		if _, err := s.Tag(ctx, i.Name, name, true); err != nil {
			return nil, errdefs.Wrap(err, "made %s, then", strings.Join(o.Names[:n+1], ", "))
		}
	}
	return o.Names, nil
}

// takeBuilt makes an image of an archive that a guest has written.
func (s *Service) takeBuilt(ctx context.Context, o Built, file string, p model.Progress) (model.Image, error) {
	pl := plan{
		Pull: Pull{As: o.Names[0]}, name: o.Names[0], platform: oci.HostPlatform(), source: fromBuild,
		ref: &oci.Reference{Kind: oci.LayoutArchive, Path: file},
	}
	img, err := s.resolve(ctx, pl, p)
	if img != nil {
		defer func() { _ = img.Close() }()
	}
	if err == nil {
		var i model.Image
		i, err = s.makeOfLayers(ctx, pl, img, p, func(ctx context.Context, i *model.Image) error {
			if err := s.mayBuild(ctx, i.Name, o.Force); err != nil {
				return err
			}
			return s.Store.PutImage(ctx, *i)
		})
		if err == nil {
			return i, nil
		}
	}
	return model.Image{}, s.explain(ctx, pl, errdefs.Wrap(err, "take image %q", pl.name))
}

// fetchFile copies a file out of a VM to a new one.
func (s *Service) fetchFile(ctx context.Context, o Built, to string, p model.Progress) (err error) {
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	conn, err := s.OpenAgent(ctx, o.VM, guest.Request{Kind: guest.KindCopyOut, CopyOut: &guest.CopyOut{Path: o.Path}})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r, w := io.Pipe()
	received := make(chan error, 1)
	s.wg.Go(func() {
		err := guest.FollowTar(ctx, conn, w)
		_ = w.CloseWithError(err)
		received <- err
	})
	err = s.onlyFile(r, f, p)
	if err != nil {
		cancel(err)
	}
	_ = r.CloseWithError(err)
	if rerr := <-received; err == nil || rerr != nil && errors.Is(err, rerr) {
		err = rerr
	}
	return spaceError(err, "write what the VM sends")
}

// maxArchive is how large an archive from a VM may be, in bytes, where nothing is
// configured.
const maxArchive = 128 << 30

// onlyFile writes the one file of a guest's tar stream.
func (s *Service) onlyFile(r io.Reader, to io.Writer, p model.Progress) error {
	limit := int64(maxArchive)
	if s.Sources.Layers.Bytes > 0 {
		limit = s.Sources.Layers.Bytes
	}
	in := tar.NewReader(r)
	h, err := in.Next()
	switch {
	case err != nil:
		return errdefs.Invalid("read what the VM sends: %w", err)
	case h.Typeflag != tar.TypeReg:
		return errdefs.Invalid("the VM sends no regular file, but %q of type %q", h.Name, h.Typeflag)
	case h.Size > limit:
		return errdefs.Exhausted("the VM sends %d bytes; an image may have %d", h.Size, limit).WithHint("%s", limitHint)
	}
	switch err := copyCounted(to, in, h.Size, paced(p)); {
	case errors.Is(err, io.ErrUnexpectedEOF):
		return errdefs.Invalid("read what the VM sends: %w", err)
	case err != nil:
		return err
	}
	switch h, err := in.Next(); {
	case err == nil:
		return errdefs.Invalid("the VM sends more than one file: %q", h.Name)
	case !errors.Is(err, io.EOF):
		return errdefs.Invalid("read what the VM sends: %w", err)
	}
	return nil
}

// copyCounted copies exactly n bytes and tells how far it is.
func copyCounted(to io.Writer, from io.Reader, n int64, count func(done, total int64)) error {
	var done int64
	_, err := io.CopyN(writerFunc(func(b []byte) (int, error) {
		k, err := to.Write(b)
		done += int64(k)
		count(done, n)
		return k, err
	}), from, n)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return err
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }
