package imagemgr

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"banger/internal/daemon/imagemgr/blobs"
	"banger/internal/daemon/imagemgr/bundle"
	"banger/internal/daemon/imagemgr/catalog"
	"banger/internal/daemon/imagemgr/debian"
	"banger/internal/daemon/imagemgr/minisig"
	"banger/internal/errdefs"
	"banger/internal/model"
)

// openRegular opens a file of the user's. It does not wait for a pipe's other end.
func openRegular(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errdefs.NotFound("look for a kernel: %w", err).WithHint("%s", fileHint)
	}
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = errdefs.Invalid("%s is not a regular file", path).WithHint("%s", fileHint)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// packagedKernel takes a kernel out of a Debian package, which nobody has vouched for.
func packagedKernel(path string) (fetcher, error) {
	f, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	_ = f.Close()
	return func(ctx context.Context, staging string, p model.Progress) (madeKernel, error) {
		f, err := openRegular(path)
		if err != nil {
			return madeKernel{}, err
		}
		defer f.Close()
		p.Stage("unpack")
		k, err := debian.UnpackDeb(ctx, f, staging, p)
		if err != nil {
			return madeKernel{}, errdefs.Wrap(err, "%s", filepath.Base(path))
		}
		made := madeKernel{bzImage: k.BzImage, config: k.Config, modules: k.ModulesRoot, source: "imported from " + path}
		if err := checkCopied(&made); err != nil {
			return made, err
		}
		return made, sameRelease(made.release, k.Release)
	}, nil
}

// sameRelease refuses modules of another kernel; none are fine.
func sameRelease(kernel, modules string) error {
	if modules != "" && modules != kernel {
		return errdefs.Invalid("the modules are of release %s, the kernel is %s", modules, kernel)
	}
	return nil
}

// signedBundle takes a kernel out of a bundle that is a file, once its signature is
// known to be right.
func signedBundle(path, key string) (fetcher, error) {
	public, err := minisig.ParseKey(key)
	if err != nil {
		return nil, errdefs.Wrap(err, "key")
	}
	f, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	_ = f.Close()
	return func(ctx context.Context, staging string, p model.Progress) (madeKernel, error) {
		sig, err := openRegular(path + bundle.SignatureSuffix)
		if err != nil {
			return madeKernel{}, err
		}
		defer sig.Close()
		signature, err := io.ReadAll(io.LimitReader(sig, minisig.MaxSize+1))
		if err != nil {
			return madeKernel{}, err
		}
		f, err := openRegular(path)
		if err != nil {
			return madeKernel{}, err
		}
		defer f.Close()
		p.Stage("verify")
		// What is unpacked afterwards is what was signed, or it is refused by its digest.
		sum := sha256.New()
		signed, err := public.VerifyReader(ctx, io.TeeReader(f, sum), signature)
		if err != nil {
			return madeKernel{}, errdefs.Wrap(err, "%s", filepath.Base(path))
		}
		size, err := f.Seek(0, io.SeekCurrent)
		if err == nil {
			_, err = f.Seek(0, io.SeekStart)
		}
		if err != nil {
			return madeKernel{}, err
		}
		want := bundle.Want{Kind: bundle.Kernel, Digest: blobs.Digest("sha256:" + hex.EncodeToString(sum.Sum(nil))), Size: size}
		return bundledKernel(ctx, f, want, "bundle "+path+", signed by "+signed.Key, staging, p)
	}, nil
}

// catalogKernel fetches a kernel that a catalog has.
func (s *Service) catalogKernel(found catalog.Found) fetcher {
	return func(ctx context.Context, staging string, p model.Progress) (madeKernel, error) {
		p.Stage("download")
		f, err := s.catalogs.Open(ctx, found, p)
		if err != nil {
			return madeKernel{}, err
		}
		defer f.Close()
		return bundledKernel(ctx, f, found.Want(), found.Origin(), staging, p)
	}
}

// bundledKernel unpacks a bundle into staging.
func bundledKernel(ctx context.Context, r io.Reader, want bundle.Want, source, staging string, p model.Progress) (madeKernel, error) {
	p.Stage("unpack")
	dir := filepath.Join(staging, "bundle")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return madeKernel{}, err
	}
	m, err := bundle.Unpack(ctx, r, dir, want, p)
	if err != nil {
		return madeKernel{}, errdefs.Wrap(err, "unpack bundle")
	}
	made := madeKernel{source: source}
	for _, part := range []struct {
		name string
		to   *string
	}{{bundle.Vmlinux, &made.vmlinux}, {bundle.BzImage, &made.bzImage}, {bundle.Config, &made.config}} {
		if m.Has(part.name) {
			*part.to = filepath.Join(dir, part.name)
		}
	}
	if err := checkCopied(&made); err != nil {
		return made, err
	}
	if !m.Has(bundle.Modules) {
		return made, nil
	}
	tree, err := os.Open(filepath.Join(dir, bundle.Modules))
	if err != nil {
		return made, err
	}
	defer tree.Close()
	k, err := debian.ReadModules(ctx, tree, staging, p)
	if err != nil {
		return made, errdefs.Wrap(err, "%s", bundle.Modules)
	}
	made.modules = k.ModulesRoot
	return made, sameRelease(made.release, k.Release)
}
