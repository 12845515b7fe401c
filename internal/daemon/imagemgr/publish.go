package imagemgr

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"banger/internal/daemon/imagemgr/debian"
	"banger/internal/daemon/steps"
	"banger/internal/errdefs"
	"banger/internal/logkey"
	"banger/internal/paths"
)

// publication is a finished directory on the way to its final name.
type publication struct {
	from, to string
	old      string               // what lay there before, set aside
	put      func() error         // puts its row
	known    func() (bool, error) // reports whether its row is there
}

// publishing is how it gets there. The database may have put a row and say that it has
// not: what a row knows stays where it is.
func publishing() []steps.Step[*publication] {
	return []steps.Step[*publication]{{
		Name: "set aside",
		Do: func(_ context.Context, p *publication) (err error) {
			p.old, err = setAside(p.to)
			return spaceError(err, "make room")
		},
		Undo: func(_ context.Context, p *publication) error {
			if p.old == "" {
				return nil
			}
			err := os.Rename(p.old, p.to)
			if err == nil {
				p.old = ""
			}
			return errdefs.Wrap(err, "bring back what was there")
		},
	}, {
		Name: "publish",
		Do: func(_ context.Context, p *publication) error {
			return spaceError(os.Rename(p.from, p.to), "publish")
		},
		Undo: func(_ context.Context, p *publication) error {
			err := os.Rename(p.to, p.from)
			if errors.Is(err, fs.ErrNotExist) {
				err = nil // it never got there
			}
			return errdefs.Wrap(err, "take back %s", filepath.Base(p.to)) // Restore removes it: no row knows it
		},
	}, {
		Name: "record",
		Do:   func(_ context.Context, p *publication) error { return p.put() },
		Undo: func(_ context.Context, p *publication) error {
			known, err := p.known()
			if err == nil && known {
				err = errdefs.Internal("it is recorded all the same")
			}
			return err
		},
	}}
}

// publish renames a finished directory to its final name and puts its row. What
// lay there before goes; when the row cannot be put it comes back.
func (s *Service) publish(p publication) error {
	s.imageOpsMu.Lock()
	err := steps.Run(context.WithoutCancel(s.ctx), steps.Runner{Log: s.Log, Faults: s.Faults}, &p, publishing())
	s.imageOpsMu.Unlock()
	s.removeAll(p.old)
	return err
}

// retire deletes a row and then its directory, when free has nothing against it: it is
// asked under imageOpsMu, so no image begins to boot with a kernel in between. A VM may
// begin to use it all the same; the database refuses then, and free says who it is.
func (s *Service) retire(dir string, free, forget func() error) error {
	s.imageOpsMu.Lock()
	err := free()
	if err != nil {
		s.imageOpsMu.Unlock()
		return err
	}
	aside := ""
	if err = s.step("forget", forget); err == nil {
		err = s.step("set aside", func() (err error) { aside, err = setAside(dir); return err })
	}
	s.imageOpsMu.Unlock()
	s.removeAll(aside)
	if errdefs.ClassOf(err) == errdefs.ClassExhausted {
		err = s.retireFull(dir, free, forget)
	}
	if err == nil {
		return nil
	}
	if ferr := free(); ferr != nil {
		return ferr
	}
	return errdefs.Wrap(err, "remove %s", filepath.Base(dir))
}

// retireFull retires on a disk that has not even room to forget a row: files first.
// A crash in between leaves a row without files, which is reported as broken.
func (s *Service) retireFull(dir string, free, forget func() error) error {
	s.imageOpsMu.Lock()
	aside, err := setAside(dir)
	if err == nil && aside != "" {
		// A VM that has its disk by now has its row too; one that is being made does
		// not find the files from here on, and is undone.
		if ferr := free(); ferr != nil {
			err = errors.Join(ferr, os.Rename(aside, dir))
			aside = ""
		}
	}
	s.imageOpsMu.Unlock()
	s.removeAll(aside)
	if err != nil {
		return err
	}
	return forget() // which refuses when there are users
}

// collect removes rows that lost their name and their last user, and directories
// that no row knows.
func (s *Service) collect(ctx context.Context) error {
	s.imageOpsMu.Lock()
	var aside []string
	err := s.step("collect", func() (err error) { aside, err = s.collectLocked(ctx); return err })
	s.imageOpsMu.Unlock()
	for _, dir := range aside {
		if err := s.step("remove", func() error { return debian.Remove(ctx, dir) }); err != nil {
			s.Log.WarnContext(ctx, "leaving an unused directory", logkey.Dir, filepath.Base(dir), logkey.Err, err)
		}
	}
	return err
}

func (s *Service) collectLocked(ctx context.Context) (aside []string, err error) {
	images, err := s.Store.ListImages(ctx)
	if err != nil {
		return nil, err
	}
	keep := map[string]bool{}
	for _, i := range images {
		gone, err := dropUnnamed(ctx, i.ID, i.Name, s.Store.ImageUsers, s.Store.DeleteImage)
		if err != nil {
			return nil, err
		}
		keep[i.ID] = !gone
	}
	known, err := s.rowsAreAll()
	if err != nil {
		return nil, err
	}
	if known {
		if aside, err = setAsideUnknown(s.Layout.Images(), keep); err != nil {
			return aside, err
		}
	}
	kernels, err := s.Store.ListKernels(ctx)
	if err != nil {
		return aside, err
	}
	keep = map[string]bool{}
	for _, k := range kernels {
		gone, err := dropUnnamed(ctx, k.ID, k.Name, s.needKernel, s.Store.DeleteKernel)
		if err != nil {
			return aside, err
		}
		keep[k.ID] = !gone
	}
	if !known {
		return aside, nil
	}
	more, err := setAsideUnknown(s.Layout.Kernels(), keep)
	return append(aside, more...), err
}

// rowsAreAll reports whether a directory without a row is ours to remove. It is
// not while a database that could not be read lies beside the one in use: the
// VMs that one knows have disks that are views of these images.
func (s *Service) rowsAreAll() (bool, error) {
	entries, err := os.ReadDir(s.Layout.State)
	if err != nil {
		return false, fmt.Errorf("look for a kept database: %w", err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), paths.DatabaseFile+paths.CorruptSuffix) {
			s.Log.Warn("unknown images and kernels are kept: a database that could not be read lies here", logkey.File, e.Name())
			return false, nil
		}
	}
	return true, nil
}

// needKernel names the VMs that use a kernel and the images that prefer it.
func (s *Service) needKernel(ctx context.Context, id string) ([]string, error) {
	vms, err := s.Store.KernelUsers(ctx, id)
	if err != nil {
		return nil, err
	}
	images, err := s.Store.KernelImages(ctx, id)
	return append(vms, images...), err
}

func dropUnnamed(ctx context.Context, id, name string, users func(context.Context, string) ([]string, error), remove func(context.Context, string) error) (bool, error) {
	if name != "" {
		return false, nil
	}
	u, err := users(ctx, id)
	if err != nil || len(u) > 0 {
		return false, err
	}
	return true, remove(ctx, id)
}

func setAsideUnknown(parent string, keep map[string]bool) (aside []string, err error) {
	entries, err := os.ReadDir(parent)
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", parent, err)
	}
	for _, e := range entries {
		if keep[e.Name()] || strings.HasPrefix(e.Name(), paths.StagingPrefix) {
			continue
		}
		dir, err := setAside(filepath.Join(parent, e.Name()))
		if err != nil {
			return aside, fmt.Errorf("set aside %s: %w", e.Name(), err)
		}
		aside = append(aside, dir)
	}
	return aside, nil
}
