// Package imagemgr keeps kernels and images: it pulls them from Debian's
// packages, images also from wherever OCI images are, takes in the user's own, and hands
// out what a VM boots from.
//
// Everything is made in a sibling directory with a staging name and published by
// one rename and one store transaction, under imageOpsMu. So a failure or a crash
// at any point leaves either the old state or the new one; debris under a staging
// name, or a directory that no row knows, is removed by Restore.
package imagemgr

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"banger/internal/api/bangerv1"
	"banger/internal/daemon/imagemgr/blobs"
	"banger/internal/daemon/imagemgr/catalog"
	"banger/internal/daemon/imagemgr/debian"
	"banger/internal/daemon/imagemgr/flatten"
	"banger/internal/daemon/imagemgr/initramfs"
	"banger/internal/daemon/imagemgr/oci"
	"banger/internal/doctor"
	"banger/internal/errdefs"
	"banger/internal/lockrank"
	"banger/internal/logkey"
	"banger/internal/model"
	"banger/internal/paths"
)

// Store is what the service needs of the state database. An absent row is an
// error of class not_found. Put replaces the row of that name in one transaction;
// a replaced row that a VM uses stays, without a name. Images that preferred a
// replaced kernel prefer the new one.
type Store interface {
	ListImages(ctx context.Context) ([]model.Image, error)
	ImageByName(ctx context.Context, name string) (model.Image, error)
	PutImage(ctx context.Context, i model.Image) error
	DeleteImage(ctx context.Context, id string) error
	ImageUsers(ctx context.Context, id string) ([]string, error)

	ListKernels(ctx context.Context) ([]model.Kernel, error)
	KernelByName(ctx context.Context, name string) (model.Kernel, error)
	PutKernel(ctx context.Context, k model.Kernel) error
	DeleteKernel(ctx context.Context, id string) error
	KernelUsers(ctx context.Context, id string) ([]string, error)
	KernelImages(ctx context.Context, id string) ([]string, error)
}

// Operations runs long work that outlives the request that began it.
type Operations interface {
	Begin(kind, subject string, work func(ctx context.Context, p model.Progress) (string, error)) *bangerv1.Operation
}

// Deps are the service's collaborators; all are required but Faults.
type Deps struct {
	Store     Store
	Layout    paths.Layout
	AgentPath string // of the binary that becomes /init
	DiskBytes int64  // apparent size of the root filesystems made here
	Sources   Sources
	Ops       Operations
	UseDisk   UseDisk // of a VM
	OpenAgent OpenAgent
	Log       *slog.Logger
	// Faults is a seam for tests; see steps.Runner.
	Faults func(step string, done bool) error
}

// Sources says how images come from elsewhere. Its zero value does for images that need
// no credentials.
type Sources struct {
	Mirrors    map[string][]string // as oci.Options.Mirrors
	Insecure   []string            // hosts, as in references, that http will do for, or TLS that cannot be verified
	Platform   oci.Platform        // zero: the host's
	Keychain   oci.Keychain        // nil: no credentials
	Sockets    []string            // of Docker's and Podman's daemons; nil: where they usually are
	UserAgent  string
	Transport  *http.Transport // nil: proxies from the environment
	Retry      oci.Retry
	Layers     oci.Limits
	Tree       flatten.Limits
	Catalogs   []catalog.Source
	CacheBytes int64 // how much of what was fetched is kept; 0: all
}

// Service owns images, kernels and initramfs files.
type Service struct {
	Deps
	initramfs *initramfs.Builder

	ctx    context.Context // lifetime of pulls; ends at Close
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup

	cache    *blobs.Cache // since Restore
	catalogs *catalog.Set // the same

	imagePulls  flights[model.Image]
	kernelPulls flights[model.Kernel]

	// imageOpsMu guards publication: what lies under the final names and the rows
	// that know it change together. It is held for a rename and one transaction,
	// never over a download or a build.
	imageOpsMu lockrank.Mutex

	// How the two kinds are made, below a fresh staging directory.
	makeImage  func(ctx context.Context, r recipe, dir string, p model.Progress) (madeImage, error)
	makeKernel func(ctx context.Context, suite, dir string, p model.Progress) (madeKernel, error)
}

// New returns a service; Restore must run before it is used.
func New(d Deps) *Service {
	ctx, cancel := context.WithCancelCause(context.Background())
	s := &Service{Deps: d, initramfs: initramfs.New(d.Layout.Initramfs()), ctx: ctx, cancel: cancel}
	s.imagePulls.owner, s.kernelPulls.owner = s, s
	s.makeImage, s.makeKernel = s.debianImage, s.debianKernel
	return s
}

// errClosing is why pulls end when the daemon does.
var errClosing = errdefs.New(errdefs.ClassCanceled, "the daemon is stopping")

// Close cancels running pulls and waits until they have cleaned up.
func (s *Service) Close() error {
	s.cancel(errClosing)
	s.wg.Wait()
	if s.catalogs != nil {
		s.catalogs.Close()
	}
	if s.cache == nil {
		return nil
	}
	return s.cache.Close()
}

// Restore removes what a crash left behind. It assumes that
//
//  1. no pull of an earlier daemon still runs: pulls end with their daemon;
//  2. a directory under a final name without a row was about to be published, or
//     to be removed: in both cases nobody uses it;
//  3. a row without its files lost them to somebody else: the row stays, is
//     reported as broken, and the next pull makes the files again.
func (s *Service) Restore(ctx context.Context) error {
	for _, dir := range []string{s.Layout.Images(), s.Layout.Kernels(), s.Layout.Initramfs()} {
		// Searchable, not readable: VMMs with user ids of their own pass through.
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return fmt.Errorf("make %s: %w", dir, err)
		}
	}
	if err := s.openCache(ctx); err != nil {
		return err
	}
	if err := s.openCatalogs(); err != nil {
		return err
	}
	if err := s.collect(ctx); err != nil {
		return err
	}
	for _, dir := range []string{s.Layout.Images(), s.Layout.Kernels()} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return fmt.Errorf("look for unfinished work: %w", err)
		}
		for _, e := range entries {
			if !strings.HasPrefix(e.Name(), paths.StagingPrefix) {
				continue
			}
			// Debris that cannot be removed now costs space; it must not cost the start.
			unfinished := filepath.Join(dir, e.Name())
			if err := errors.Join(removeElsewhere(unfinished), debian.Remove(ctx, unfinished)); err != nil {
				s.Log.WarnContext(ctx, "leaving unfinished work", logkey.Dir, e.Name(), logkey.Err, err)
			}
		}
	}
	if err := s.pruneInitramfs(ctx); err != nil {
		s.Log.WarnContext(ctx, "leaving old initramfs files", logkey.Err, err)
	}
	return s.reportBroken(ctx)
}

func (s *Service) reportBroken(ctx context.Context) error {
	images, err := s.Store.ListImages(ctx)
	if err != nil {
		return err
	}
	for _, i := range images {
		if err := checkImage(i); err != nil {
			s.Log.WarnContext(ctx, "image is broken", logkey.Image, i.Name, logkey.Err, err)
		}
	}
	kernels, err := s.Store.ListKernels(ctx)
	if err != nil {
		return err
	}
	for _, k := range kernels {
		if err := checkKernel(k); err != nil {
			s.Log.WarnContext(ctx, "kernel is broken", logkey.Kernel, k.Name, logkey.Err, err)
		}
	}
	return nil
}

// Tools lists the programs that pulls need on this host.
func Tools() []doctor.Tool { return debian.Tools() }

// Archive says, for people, where pulls take packages from and which keys must
// have signed them. It errors with a hint when they cannot.
func Archive() (string, error) {
	src, err := debian.HostSources("/", "")
	if err != nil {
		return "", err
	}
	return src.Describe() + ", signed by " + src.Keyring, nil
}

// stage makes a staging directory in parent and returns it with its remover.
func (s *Service) stage(parent string) (dir string, remove func(), err error) {
	dir = filepath.Join(parent, paths.StagingPrefix+model.NewID())
	remove = func() {
		// The work's context may be over; leaving debris because of that is no option.
		err := s.step("clean up", func() error { return debian.Remove(context.WithoutCancel(s.ctx), dir) })
		if err != nil {
			s.Log.Warn("leaving unfinished work", logkey.Dir, filepath.Base(dir), logkey.Err, err)
		}
	}
	if err := s.step("stage", func() error { return os.Mkdir(dir, 0o700) }); err != nil {
		remove()
		return "", nil, spaceError(err, "make staging directory")
	}
	return dir, remove, nil
}

// step does a part of a change that has a name in fault tests. Whoever changes something
// in it undoes that: an error may come when it is done.
func (s *Service) step(name string, do func() error) error {
	if s.Faults == nil {
		return do()
	}
	if err := s.Faults(name, false); err != nil {
		return err
	}
	if err := do(); err != nil {
		return err
	}
	return s.Faults(name, true)
}

// setAside renames what lies at path to a staging name, so that removing it is
// not part of a critical section. It returns "" when there is nothing.
func setAside(path string) (string, error) {
	aside := filepath.Join(filepath.Dir(path), paths.StagingPrefix+model.NewID())
	err := os.Rename(path, aside)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return aside, err
}

// removeAll removes what was set aside.
func (s *Service) removeAll(aside ...string) {
	for _, dir := range aside {
		if dir == "" {
			continue
		}
		if err := s.step("remove", func() error { return os.RemoveAll(dir) }); err != nil {
			s.Log.Warn("leaving a replaced directory", logkey.Dir, filepath.Base(dir), logkey.Err, err)
		}
	}
}

// syncTree makes sure that what is renamed into place is on the disk before its
// row says so.
func syncTree(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := f.Sync(); err != nil {
			return fmt.Errorf("write %s to the disk: %w", filepath.Base(path), err)
		}
		return nil
	})
}
