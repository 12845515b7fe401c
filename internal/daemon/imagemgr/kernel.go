package imagemgr

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"time"

	"banger/internal/daemon/imagemgr/bundle"
	"banger/internal/daemon/imagemgr/catalog"
	"banger/internal/daemon/imagemgr/debian"
	"banger/internal/errdefs"
	"banger/internal/model"
	"banger/internal/paths"
)

// madeKernel is what a kernel directory is assembled from. Paths lie in the
// staging directory.
type madeKernel struct {
	release string
	vmlinux string // empty: unpacked from bzImage
	bzImage string // may be empty when there is a vmlinux
	config  string // may be empty
	modules string // root that holds lib/modules/<release>; empty: all built in
	source  string
}

// EnsureKernel returns the kernel of that name, and pulls it first when it is not
// there, or its files are gone, and the name says where it comes from.
func (s *Service) EnsureKernel(ctx context.Context, name string, p model.Progress) (model.Kernel, error) {
	return s.PullKernel(ctx, name, false, p)
}

// PullKernel makes a kernel from where its name says, as PullImage does an image.
func (s *Service) PullKernel(ctx context.Context, name string, force bool, p model.Progress) (model.Kernel, error) {
	if err := model.CheckArtifactName("kernel", name); err != nil {
		return model.Kernel{}, err
	}
	if !force {
		k, err := s.presentKernel(ctx, name)
		if err == nil || !errors.Is(err, errdefs.ErrNotFound) {
			return k, err
		}
	}
	fetch, err := s.kernelSource(ctx, name, force)
	if err != nil {
		return model.Kernel{}, err
	}
	return s.kernelPulls.do(ctx, name, p, func(ctx context.Context, p model.Progress) (model.Kernel, error) {
		if !force {
			if k, err := s.presentKernel(ctx, name); err == nil {
				return k, nil
			}
		}
		k, err := s.addKernel(ctx, name, p, func(dir string) (madeKernel, error) { return fetch(ctx, dir, p) })
		if err != nil {
			return k, orTry(errdefs.Wrap(err, "pull kernel %q", name), pullHint)
		}
		return k, nil
	})
}

// kernelSource says how a kernel of that name is pulled: from Debian, or as a catalog
// has it.
func (s *Service) kernelSource(ctx context.Context, name string, force bool) (fetcher, error) {
	suite, known, err := suiteOf(name)
	if err != nil {
		return nil, err
	}
	if known {
		return func(ctx context.Context, dir string, p model.Progress) (madeKernel, error) {
			return s.makeKernel(ctx, suite, dir, p)
		}, nil
	}
	names := s.kernelNames(ctx)
	found, err := s.catalogs.Find(ctx, bundle.Kernel, name)
	if err == nil {
		return s.catalogKernel(found), nil
	}
	if !errors.Is(err, errdefs.ErrNotFound) {
		return nil, err
	}
	names = append(names, s.catalogs.Names(bundle.Kernel)...)
	if _, err := s.Store.KernelByName(ctx, name); force && err == nil {
		return nil, errdefs.Invalid("kernel %q was imported; there is nothing to pull it from", name).
			WithHint("import it again: banger kernel import %s --from DIR", name)
	}
	return nil, unknown("kernel", name, names)
}

// presentKernel returns the kernel if it is there. One with files gone that can be made
// again counts as not there.
func (s *Service) presentKernel(ctx context.Context, name string) (model.Kernel, error) {
	k, err := s.Store.KernelByName(ctx, name)
	if err != nil {
		return k, err
	}
	err = checkKernel(k)
	if err != nil && pulled(k) {
		return k, errdefs.NotFound("%w", err)
	}
	return k, err
}

// pulled reports whether a kernel can be pulled again, as far as its row tells.
func pulled(k model.Kernel) bool {
	_, known, _ := suiteOf(k.Name)
	return known || catalog.IsOrigin(k.Source)
}

// checkKernel reports a kernel with files gone.
func checkKernel(k model.Kernel) error {
	for _, path := range []string{k.VmlinuxPath, k.BzImagePath, k.EarlyDir, k.ModulesPath} {
		if path == "" {
			continue
		}
		if _, err := os.Stat(path); err != nil {
			e := errdefs.Precondition("kernel %q is broken: %w", k.Name, err)
			if pulled(k) {
				return e.WithHint("make it again: banger kernel pull --force %s", k.Name)
			}
			return e.WithHint("import it again: banger kernel import %s --from DIR", k.Name)
		}
	}
	return nil
}

// addKernel makes, assembles and publishes a kernel.
func (s *Service) addKernel(ctx context.Context, name string, p model.Progress, fetch func(dir string) (madeKernel, error)) (model.Kernel, error) {
	dir, remove, err := s.stage(s.Layout.Kernels())
	if err != nil {
		return model.Kernel{}, err
	}
	defer remove()
	var made madeKernel
	if err := s.step("make", func() (err error) { made, err = fetch(dir); return err }); err != nil {
		return model.Kernel{}, err
	}
	final, id := filepath.Join(dir, "final"), ""
	err = s.step("assemble", func() (err error) {
		if id, err = assemble(ctx, name, made, final, p); err != nil {
			return spaceError(err, "assemble kernel")
		}
		p.Stage("publish")
		return spaceError(syncTree(final), "write kernel")
	})
	if err != nil {
		return model.Kernel{}, err
	}
	if ctx.Err() != nil {
		return model.Kernel{}, context.Cause(ctx)
	}
	k := kernelRow(s.Layout, id, name, made, final)
	return k, s.publishKernel(context.WithoutCancel(ctx), k, final)
}

// kernelRow describes the kernel in final as it will be under its final name.
func kernelRow(layout paths.Layout, id, name string, made madeKernel, final string) model.Kernel {
	at := func(file string) string {
		if _, err := os.Stat(filepath.Join(final, file)); err != nil {
			return ""
		}
		return filepath.Join(layout.Kernel(id), file)
	}
	return model.Kernel{
		ID: id, Name: name, Release: made.release, VmlinuxPath: at(paths.VmlinuxFile), BzImagePath: at(paths.BzImageFile),
		EarlyDir: at(paths.EarlyModulesDir), ModulesPath: at(paths.ModulesImageFile), Source: made.source, CreatedAt: time.Now(),
	}
}

// publishKernel puts the kernel in place.
func (s *Service) publishKernel(ctx context.Context, k model.Kernel, final string) error {
	old, err := s.Store.KernelByName(ctx, k.Name)
	switch {
	case errors.Is(err, errdefs.ErrNotFound):
		old = model.Kernel{}
	case err != nil:
		return err
	}
	if old.ID == k.ID && checkKernel(old) == nil {
		// The same content again: running VMs keep their files.
		return s.step("record", func() error { return s.Store.PutKernel(ctx, k) })
	}
	err = s.publish(publication{
		from: final, to: s.Layout.Kernel(k.ID), put: func() error { return s.Store.PutKernel(ctx, k) },
		known: func() (bool, error) {
			all, err := s.Store.ListKernels(ctx)
			return slices.ContainsFunc(all, func(other model.Kernel) bool { return other.ID == k.ID && other.Name == k.Name }), err
		},
	})
	if err != nil {
		return err
	}
	return errors.Join(s.collect(ctx), s.pruneInitramfs(ctx))
}

// debianKernel makes the kernel of a suite.
func (s *Service) debianKernel(ctx context.Context, suite, dir string, p model.Progress) (madeKernel, error) {
	src, err := debian.HostSources("/", suite)
	if err != nil {
		return madeKernel{}, err
	}
	k, err := debian.FetchKernel(ctx, src, dir, p)
	if err != nil {
		return madeKernel{}, err
	}
	return madeKernel{
		release: k.Release, bzImage: k.BzImage, config: k.Config, modules: k.ModulesRoot, source: k.Source + ", " + k.Package,
	}, nil
}

// ListKernels returns all kernels that have a name, by name.
func (s *Service) ListKernels(ctx context.Context) ([]model.Kernel, error) {
	all, err := s.Store.ListKernels(ctx)
	if err != nil {
		return nil, err
	}
	var out []model.Kernel
	for _, k := range all {
		if k.Name != "" {
			out = append(out, k)
		}
	}
	return out, nil
}

// GetKernel returns the kernel of that name. Its error says so when it is broken.
func (s *Service) GetKernel(ctx context.Context, name string) (model.Kernel, error) {
	k, err := s.kernelNamed(ctx, name)
	if err != nil {
		return k, err
	}
	return k, checkKernel(k)
}

func (s *Service) kernelNamed(ctx context.Context, name string) (model.Kernel, error) {
	if err := model.CheckArtifactName("kernel", name); err != nil {
		return model.Kernel{}, err
	}
	k, err := s.Store.KernelByName(ctx, name)
	if errors.Is(err, errdefs.ErrNotFound) {
		return k, unknown("kernel", name, s.kernelNames(ctx))
	}
	return k, err
}

// RemoveKernel removes a kernel that no VM uses and no image prefers.
func (s *Service) RemoveKernel(ctx context.Context, name string) error {
	k, err := s.kernelNamed(ctx, name)
	if err != nil {
		return err
	}
	free := func() error {
		users, err := s.Store.KernelUsers(ctx, k.ID)
		if err = inUse("kernel", name, users, err); err != nil {
			return err
		}
		images, err := s.Store.KernelImages(ctx, k.ID)
		if err == nil && len(images) > 0 {
			err = errdefs.Precondition("kernel %q is the one image %q boots with", name, images[0]).
				WithHint("remove the image first: banger image rm %s", images[0])
		}
		return err
	}
	if err := s.retire(s.Layout.Kernel(k.ID), free, func() error { return s.Store.DeleteKernel(ctx, k.ID) }); err != nil {
		return err
	}
	return s.pruneInitramfs(ctx)
}
