package imagemgr

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"banger/internal/daemon/imagemgr/kmod"
	"banger/internal/daemon/imagemgr/vmlinux"
	"banger/internal/errdefs"
	"banger/internal/model"
)

// Bounds of an imported kernel.
const (
	maxImportFiles = 50_000
	maxImportBytes = 8 << 30
)

// found is what an import directory holds; empty fields are not there.
type found struct {
	vmlinux, bzImage, config, modules string
}

const (
	importHint = "give a directory with an x86-64 vmlinux or bzImage, and lib/modules/RELEASE when the kernel has modules"
	fileHint   = "give a package like Debian's linux-image-RELEASE, or a bundle with its signature beside it"
)

// KernelFrom says where a kernel is taken from: one of the first three, an absolute path
// each.
type KernelFrom struct {
	Dir    string // vmlinux or bzImage (also vmlinuz), perhaps config and modules
	Deb    string // a Debian package
	Bundle string // a bundle; its signature is in the file beside it that has ".minisig" after the name
	Key    string // the public key it is signed with
}

// ImportKernel takes in a kernel of the user's. In a directory that is vmlinux or bzImage
// (also vmlinuz, and with a release after a dash), optionally config, and the
// modules as lib/modules/RELEASE or modules. Files are copied. A kernel of that
// name is replaced.
func (s *Service) ImportKernel(ctx context.Context, name string, from KernelFrom, p model.Progress) (model.Kernel, error) {
	fetch, err := importer(name, from)
	if err != nil {
		return model.Kernel{}, err
	}
	k, err := s.kernelPulls.do(ctx, name, p, func(ctx context.Context, p model.Progress) (model.Kernel, error) {
		return s.addKernel(ctx, name, p, func(staging string) (madeKernel, error) { return fetch(ctx, staging, p) })
	})
	if err != nil {
		hint := fileHint
		if from.Dir != "" {
			hint = importHint
		}
		return k, orTry(errdefs.Wrap(err, "import kernel %q", name), hint)
	}
	return k, nil
}

// fetcher brings what a kernel is made of into a fresh directory.
type fetcher func(ctx context.Context, staging string, p model.Progress) (madeKernel, error)

// importer checks what can be checked before anything is copied.
func importer(name string, from KernelFrom) (fetcher, error) {
	if err := model.CheckArtifactName("kernel", name); err != nil {
		return nil, orTry(err, importHint)
	}
	if err := ownName("kernel", name); err != nil {
		return nil, err
	}
	paths := slices.DeleteFunc([]string{from.Dir, from.Deb, from.Bundle}, func(s string) bool { return s == "" })
	if len(paths) != 1 {
		return nil, errdefs.Invalid("a kernel is imported from one of directory, package and bundle, not from %d", len(paths)).WithHint("%s", importHint)
	}
	if !filepath.IsAbs(paths[0]) {
		return nil, errdefs.Invalid("path %q is not absolute", paths[0]).WithHint("%s", importHint)
	}
	switch {
	case from.Deb != "":
		return packagedKernel(from.Deb)
	case from.Bundle != "":
		return signedBundle(from.Bundle, from.Key)
	}
	src, err := look(from.Dir)
	if err != nil {
		return nil, orTry(err, importHint)
	}
	return func(ctx context.Context, staging string, p model.Progress) (madeKernel, error) {
		p.Stage("copy")
		return copyKernel(ctx, src, staging, p)
	}, nil
}

// look finds the parts of a kernel in dir.
func look(dir string) (found, error) {
	if st, err := os.Stat(dir); err != nil {
		return found{}, errdefs.NotFound("look for a kernel: %w", err)
	} else if !st.IsDir() {
		return found{}, errdefs.Invalid("%s is not a directory", dir)
	}
	var f found
	var err error
	if f.vmlinux, err = one(dir, "vmlinux", "vmlinux-*"); err != nil {
		return f, err
	}
	if f.bzImage, err = one(dir, "bzImage", "vmlinuz", "vmlinuz-*", "arch/x86/boot/bzImage"); err != nil {
		return f, err
	}
	if f.config, err = one(dir, "config", "config-*", ".config"); err != nil {
		return f, err
	}
	if f.vmlinux == "" && f.bzImage == "" {
		return f, errdefs.NotFound("no kernel in %s: neither vmlinux nor bzImage", dir)
	}
	for _, parent := range []string{"lib/modules", "usr/lib/modules", "modules"} {
		if f.modules, err = one(filepath.Join(dir, parent), "*/modules.order", "modules.order", "*/kernel", "kernel"); err != nil {
			return f, err
		}
		if f.modules != "" {
			f.modules = filepath.Dir(f.modules)
			break
		}
		matches, _ := filepath.Glob(filepath.Join(dir, parent, "*.ko*"))
		if len(matches) > 0 {
			f.modules = filepath.Join(dir, parent)
			break
		}
	}
	return f, nil
}

// one returns the only file that the first matching pattern names.
func one(dir string, patterns ...string) (string, error) {
	for _, p := range patterns {
		matches, err := filepath.Glob(filepath.Join(escapeGlob(dir), p))
		if err != nil {
			return "", err
		}
		if len(matches) > 1 {
			return "", errdefs.Invalid("%s holds several kernels: %s", dir, strings.Join(matches, ", ")).
				WithHint("make a directory with the files of one of them")
		}
		if len(matches) == 1 {
			return matches[0], nil
		}
	}
	return "", nil
}

func escapeGlob(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}

// copyKernel copies what was found into staging.
func copyKernel(ctx context.Context, src found, staging string, p model.Progress) (madeKernel, error) {
	made := madeKernel{source: "imported from " + filepath.Dir(src.vmlinux+src.bzImage)}
	b := &budget{ctx: ctx}
	for _, part := range []struct {
		from string
		name string
		to   *string
	}{{src.vmlinux, "in-vmlinux", &made.vmlinux}, {src.bzImage, "in-bzimage", &made.bzImage}, {src.config, "in-config", &made.config}} {
		if part.from == "" {
			continue
		}
		*part.to = filepath.Join(staging, part.name)
		if err := b.copy(part.from, *part.to); err != nil {
			return made, err
		}
	}
	if err := checkCopied(&made); err != nil {
		return made, err
	}
	if src.modules == "" {
		return made, nil
	}
	if rel := filepath.Base(src.modules); rel != made.release && strings.Contains(src.modules, "lib/modules/") {
		return made, errdefs.Invalid("the modules are of release %s, the kernel is %s", rel, made.release).
			WithHint("give the modules of the kernel beside it: lib/modules/%s", made.release)
	}
	made.modules = filepath.Join(staging, "tree")
	return made, b.copyModules(src.modules, filepath.Join(made.modules, "lib/modules", made.release), p)
}

// checkCopied judges the kernel's files, the copies, which nobody changes any more.
func checkCopied(made *madeKernel) error {
	image := made.bzImage
	if made.vmlinux != "" {
		image = made.vmlinux
		f, err := os.Open(made.vmlinux)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := vmlinux.Check(f); err != nil {
			return err
		}
	}
	var err error
	made.release, err = vmlinux.Release(image)
	return err
}

// budget bounds what an import copies.
type budget struct {
	ctx   context.Context // of the one import it is for
	files int
	bytes int64
}

func (b *budget) copy(from, to string) error {
	in, err := b.open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// open opens a regular file and counts it.
func (b *budget) open(path string) (*os.File, error) {
	if b.ctx.Err() != nil {
		return nil, context.Cause(b.ctx)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = errdefs.Invalid("%s is not a regular file", path)
	}
	if err == nil {
		if b.files, b.bytes = b.files+1, b.bytes+st.Size(); b.files > maxImportFiles || b.bytes > maxImportBytes {
			err = errdefs.Exhausted("it holds more than %d files or %d bytes", maxImportFiles, int64(maxImportBytes))
		}
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// copyModules copies the modules, unpacked, and the lists that the build of the
// kernel made; those that depmod makes are made again.
func (b *budget) copyModules(from, to string, p model.Progress) error {
	count := int64(0)
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		dst := filepath.Join(to, rel)
		_, isModule := kmod.ModuleName(d.Name())
		switch {
		case d.IsDir():
			return os.MkdirAll(dst, 0o755)
		case !d.Type().IsRegular(): // build and source lead to the sources
			return nil
		case isModule:
			in, err := b.open(path)
			if err != nil {
				return err
			}
			defer in.Close()
			data, err := kmod.Plain(in)
			if err != nil {
				return errdefs.Wrap(err, "read module %s", rel)
			}
			count++
			p.Count(count, 0, "modules")
			return os.WriteFile(dst[:strings.LastIndex(dst, ".ko")]+".ko", data, 0o644)
		case rel == "modules.order" || strings.HasPrefix(rel, "modules.builtin") && !strings.HasSuffix(rel, ".bin"):
			return b.copy(path, dst)
		}
		return nil
	})
}
