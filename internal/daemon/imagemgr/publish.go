package imagemgr

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"banger/internal/daemon/imagemgr/debian"
	"banger/internal/errdefs"
	"banger/internal/logkey"
	"banger/internal/paths"
)

// publish renames a finished directory to its final name and puts its row. What
// lay there before goes; when the row cannot be put it comes back.
func (s *Service) publish(from, to string, put func() error) error {
	old, err := s.publishLocked(from, to, put)
	s.removeAll(old)
	return err
}

func (s *Service) publishLocked(from, to string, put func() error) (old string, err error) {
	s.imageOpsMu.Lock()
	defer s.imageOpsMu.Unlock()
	if old, err = setAside(to); err != nil {
		return "", spaceError(err, "make room")
	}
	undo := func(err error) (string, error) {
		if old != "" {
			if back := os.Rename(old, to); back != nil {
				return "", errdefs.Wrap(err, "bring back what was there (%v)", back)
			}
		}
		return "", err
	}
	if err := os.Rename(from, to); err != nil {
		return undo(spaceError(err, "publish"))
	}
	if err := put(); err != nil {
		if back := os.Rename(to, from); back != nil { // Restore removes it: no row knows it
			return "", errdefs.Wrap(err, "take back %s (%v)", filepath.Base(to), back)
		}
		return undo(err)
	}
	return old, nil
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
	if err = forget(); err == nil {
		aside, err = setAside(dir)
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
	aside, err := s.collectLocked(ctx)
	s.imageOpsMu.Unlock()
	for _, dir := range aside {
		if err := debian.Remove(ctx, dir); err != nil {
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
