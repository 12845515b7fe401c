package debian

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"banger/internal/daemon/imagemgr/deb"
	"banger/internal/daemon/imagemgr/kmod"
	"banger/internal/errdefs"
	"banger/internal/sysexec"
)

// kernelPackage is the package that depends on the newest kernel for clouds: no
// drivers of real hardware, so small.
const kernelPackage = "linux-image-cloud-amd64"

// Bounds of what is taken from a kernel package.
const (
	maxKernelBytes = 2 << 30
	maxKernelFiles = 50_000
)

// Kernel is an unpacked kernel package.
type Kernel struct {
	Release     string
	BzImage     string // path of the compressed kernel
	Config      string // path of its configuration
	ModulesRoot string // directory that holds lib/modules/<release>
	Package     string // name_version_arch of the package it is from
	Source      string // for people
}

// download is run by mmdebstrap once apt knows the archive: it fetches the real
// package that the kernel's meta package depends on. $1 is the target directory.
const download = `set -eu
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
real=$(apt-cache depends --important ` + kernelPackage + ` | sed -n 's/^ *Depends: \(linux-image-[^ ]*\)$/\1/p' | head -n 1)
[ -n "$real" ] || { echo "E: Unable to locate package ` + kernelPackage + `" >&2; exit 1; }
mkdir "$1/download"
cd "$1/download"
apt-get -o APT::Sandbox::User=root download "$real"`

// FetchKernel downloads the kernel of a suite and unpacks it below dir, which
// must be a fresh directory. It needs neither root nor user namespaces: nothing
// of the package is run.
func FetchKernel(ctx context.Context, src Sources, dir string, p Progress) (Kernel, error) {
	if err := checkTools(ctx); err != nil {
		return Kernel{}, err
	}
	p.Stage("resolve")
	opts, err := hostOptions(ctx)
	if err != nil {
		return Kernel{}, err
	}
	deb, err := downloadKernel(ctx, src, opts, dir, p)
	if err != nil {
		return Kernel{}, err
	}
	p.Stage("unpack")
	k, err := unpackKernel(ctx, deb, dir, p)
	if err != nil {
		return k, errdefs.Wrap(err, "unpack %s", filepath.Base(deb))
	}
	k.Source = src.Describe()
	k.Package = strings.TrimSuffix(filepath.Base(deb), ".deb")
	return k, os.Remove(deb)
}

func downloadKernel(ctx context.Context, src Sources, opts []string, dir string, p Progress) (string, error) {
	target, tmp := filepath.Join(dir, "apt"), filepath.Join(dir, "tmp")
	if err := os.MkdirAll(tmp, 0o700); err != nil {
		return "", fmt.Errorf("make temporary directory: %w", err)
	}
	b := bootstrap{
		sources: src, options: opts, variant: "custom", mode: "chrootless", target: target,
		// From 1.4 on it refuses this mode to root outside of a chroot, because packages
		// would be set up on the host. Here none is.
		extra: []string{"--skip=check/chrootless", "--customize-hook=" + download},
	}
	if len(src.Archives) > 0 {
		b.file = filepath.Join(dir, "debian.sources")
		if err := src.writeSources(b.file); err != nil {
			return "", err
		}
	}
	t := &tracker{p: p, stage: "resolve"}
	out := &lines{each: t.line}
	alive, end, err := os.Pipe()
	if err != nil {
		return "", fmt.Errorf("make pipe: %w", err)
	}
	defer alive.Close()
	defer end.Close()
	err = sysexec.Run(ctx, sysexec.Cmd{
		Path: "sh", Args: append([]string{"-c", script, "sh", "plain", "mmdebstrap"}, b.args()...),
		Dir: dir, Env: append(os.Environ(), "TMPDIR="+tmp), Stdin: alive, Stdout: out, Stderr: out,
	})
	if err != nil {
		return "", explain(ctx, "download the kernel package", out.last(), err)
	}
	debs, err := filepath.Glob(filepath.Join(target, "download", "*.deb"))
	if err != nil || len(debs) != 1 {
		return "", errdefs.Internal("download the kernel package: got %d packages instead of one", len(debs))
	}
	deb := filepath.Join(dir, filepath.Base(debs[0]))
	if err := os.Rename(debs[0], deb); err != nil {
		return "", fmt.Errorf("keep the kernel package: %w", err)
	}
	return deb, os.RemoveAll(target)
}

// unpackKernel reads the package as a stream and writes only what is wanted.
func unpackKernel(ctx context.Context, deb, dir string, p Progress) (Kernel, error) {
	k := Kernel{ModulesRoot: filepath.Join(dir, "tree")}
	pr, pw := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := sysexec.Run(ctx, sysexec.Cmd{Path: "dpkg-deb", Args: []string{"--fsys-tarfile", deb}, Stdout: pw})
		_ = pw.CloseWithError(err)
		done <- err
	}()
	err := k.readTar(tar.NewReader(pr), dir, p)
	if err == nil {
		_, err = io.Copy(io.Discard, pr) // the padding, or dpkg-deb sees a broken pipe
	}
	_ = pr.CloseWithError(errors.New("reading ended"))
	if runErr := <-done; err == nil {
		err = runErr
	}
	if err != nil {
		return k, err
	}
	if k.BzImage == "" || k.Release == "" {
		return k, errdefs.Unsupported("the package holds no kernel image with modules")
	}
	return k, nil
}

// releaseName is of what names a directory below lib/modules, and is handed to depmod.
var releaseName = regexp.MustCompile(`^[0-9][0-9A-Za-z.+~_-]{0,127}$`)

// UnpackDeb takes a kernel out of a Debian package: boot/vmlinuz-RELEASE, its
// configuration, and lib/modules/RELEASE. Nothing of it is run, no other program reads
// it, and it need not be from Debian. Release and ModulesRoot are empty when it has no
// modules. Errors about what is in the package are of class invalid_argument,
// unsupported or exhausted.
func UnpackDeb(ctx context.Context, file io.Reader, dir string, p Progress) (Kernel, error) {
	k := Kernel{ModulesRoot: filepath.Join(dir, "tree")}
	data, err := deb.Data(&contextReader{ctx, file})
	if err != nil {
		return k, err
	}
	defer data.Close()
	if err := k.readTar(tar.NewReader(data), dir, p); err != nil {
		return k, inPackage(ctx, err)
	}
	if k.BzImage == "" {
		return k, errdefs.Unsupported("the package holds no kernel: it has no boot/vmlinuz-RELEASE").
			WithHint("on Debian kernels are in packages like linux-image-6.1.0-18-cloud-amd64; linux-image-cloud-amd64 only depends on one")
	}
	if k.Release == "" {
		k.ModulesRoot = ""
	}
	return k, nil
}

// inPackage gives an error of reading a package its class: unless it is one of this
// host's, it is the package's fault. That names collide, or are too long, is.
func inPackage(ctx context.Context, err error) error {
	var (
		classed *errdefs.Error
		errno   syscall.Errno
	)
	if ctx.Err() != nil || errors.As(err, &classed) {
		return err
	}
	if errors.As(err, &errno) && !slices.Contains([]syscall.Errno{syscall.EEXIST, syscall.ENOTDIR, syscall.EISDIR, syscall.ENAMETOOLONG}, errno) {
		return err
	}
	return errdefs.Invalid("%w", err)
}

type contextReader struct {
	ctx context.Context // of this one package
	r   io.Reader
}

func (r *contextReader) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.r.Read(p)
}

// ReadModules reads the tar archive of a tree of modules, lib/modules/RELEASE, as one
// of UnpackDeb's is read, and writes it below dir.
func ReadModules(ctx context.Context, file io.Reader, dir string, p Progress) (Kernel, error) {
	k := Kernel{ModulesRoot: filepath.Join(dir, "tree")}
	if err := k.readTar(tar.NewReader(&contextReader{ctx, file}), dir, p); err != nil {
		return k, inPackage(ctx, err)
	}
	if k.BzImage != "" || k.Config != "" || k.Release == "" {
		return k, errdefs.Invalid("it holds something else than lib/modules/RELEASE")
	}
	return k, nil
}

func (k *Kernel) readTar(tr *tar.Reader, dir string, p Progress) error {
	var files, size int64
	plain := int64(0) // of modules, unpacked
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read package: %w", err)
		}
		if files, size = files+1, size+h.Size; files > maxKernelFiles || size > maxKernelBytes || h.Size < 0 {
			return errdefs.Exhausted("it holds more than %d files or %d bytes", maxKernelFiles, int64(maxKernelBytes))
		}
		if h.Typeflag != tar.TypeReg {
			continue // directories are made as needed; links lead out of the tree
		}
		name := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
		base := path.Base(name)
		switch {
		case strings.HasPrefix(name, "boot/vmlinuz-"):
			k.BzImage = filepath.Join(dir, "bzImage")
			err = writeFile(k.BzImage, tr)
		case strings.HasPrefix(name, "boot/config-"):
			k.Config = filepath.Join(dir, "config")
			err = writeFile(k.Config, tr)
		default:
			name = strings.TrimPrefix(name, "usr/")
			rel, ok := strings.CutPrefix(name, "lib/modules/")
			release, inner, _ := strings.Cut(rel, "/")
			if !ok || inner == "" {
				continue
			}
			if k.Release == "" {
				k.Release = release
			}
			if !releaseName.MatchString(release) {
				return errdefs.Invalid("it holds modules of a release %q", release)
			}
			if release != k.Release {
				return errdefs.Unsupported("it holds modules of two kernels, %s and %s", k.Release, release)
			}
			dst := filepath.Join(k.ModulesRoot, "lib/modules", release, filepath.FromSlash(inner))
			if n, isModule := kmod.ModuleName(base); isModule {
				p.Detail(n)
				// Plain modules load without a decompressor in the guest, whatever its tools.
				var n int64
				n, err = writeModule(filepath.Join(filepath.Dir(dst), base[:strings.Index(base, ".ko")]+".ko"), tr)
				if plain += n; plain > maxKernelBytes {
					return errdefs.Exhausted("its modules have more than %d bytes", int64(maxKernelBytes))
				}
			} else {
				err = writeFile(dst, tr)
			}
		}
		if err != nil {
			return err
		}
	}
}

func writeModule(dst string, r io.Reader) (int64, error) {
	data, err := kmod.Plain(r)
	if err != nil {
		return 0, fmt.Errorf("unpack %s: %w", filepath.Base(dst), err)
	}
	return int64(len(data)), writeFile(dst, bytes.NewReader(data))
}

func writeFile(dst string, r io.Reader) (err error) {
	if err := os.MkdirAll(filepath.Dir(dst), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := io.Copy(f, r); err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(dst), err)
	}
	return nil
}

// Depmod indexes the modules of a release below root for modprobe, unless
// somebody did that already.
func Depmod(ctx context.Context, root, release string) error {
	if _, err := os.Stat(filepath.Join(root, "lib/modules", release, "modules.dep.bin")); err == nil {
		return nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("look for the module index: %w", err)
	}
	// kmod looks in lib/modules or usr/lib/modules, depending on how it was built.
	usr := filepath.Join(root, "usr")
	if err := os.MkdirAll(usr, 0o755); err != nil {
		return fmt.Errorf("make usr: %w", err)
	}
	if err := os.Symlink("../lib", filepath.Join(usr, "lib")); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("link usr/lib: %w", err)
	}
	out := &lines{}
	if err := sysexec.Run(ctx, sysexec.Cmd{Path: "depmod", Args: []string{"-b", root, release}, Stdout: out, Stderr: out}); err != nil {
		return explain(ctx, "index the kernel modules", out.last(), err)
	}
	return nil
}
