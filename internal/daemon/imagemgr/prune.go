package imagemgr

import (
	"context"
	"os"
	"syscall"

	"banger/internal/model"
)

// Pruned is what a prune removed, or would.
type Pruned struct {
	Images []Unused
	Bytes  int64 // of the host's disk; what other images share does not count
}

// Unused is an image that no VM uses.
type Unused struct {
	model.Image
	UsedBytes int64 // of the host's disk, whoever shares them
}

// Prune removes images that no VM uses: what lost its name to another image, and with all
// set managed ones with a name as well. Files of the user's stay, and so do the names they
// are registered by. With dryRun it only says what would go.
func (s *Service) Prune(ctx context.Context, all, dryRun bool) (Pruned, error) {
	images, err := s.Store.ListImages(ctx)
	if err != nil {
		return Pruned{}, err
	}
	var gone Pruned
	files := freed{}
	for _, i := range images {
		if i.Name != "" && !(all && i.Managed) {
			continue
		}
		users, err := s.Store.ImageUsers(ctx, i.ID)
		if err != nil {
			return gone, err
		}
		if len(users) > 0 {
			continue
		}
		file, used := statFile(i), allocated(i.Path)
		if !dryRun {
			taken := false
			free := func() error {
				users, err := s.Store.ImageUsers(ctx, i.ID)
				taken = len(users) > 0
				return inUse("image", i.Name, users, err)
			}
			err := s.retire(s.Layout.Image(i.ID), free, func() error { return s.Store.DeleteImage(ctx, i.ID) })
			if taken { // since a moment ago
				continue
			}
			if err != nil {
				return gone, err
			}
		}
		gone.Images = append(gone.Images, Unused{i, used})
		gone.Bytes += files.remove(file)
	}
	return gone, nil
}

// statFile looks at the file of a managed image; nil: it has none.
func statFile(i model.Image) *syscall.Stat_t {
	if !i.Managed {
		return nil
	}
	fi, err := os.Stat(i.Path)
	if err != nil {
		return nil
	}
	st, _ := fi.Sys().(*syscall.Stat_t)
	return st
}

// freed are files by their inode, and how many names they have left when those that were
// removed are gone.
type freed map[[2]uint64]uint64

// remove notes that a name of a file goes and returns what that frees, in bytes: all with
// the last one.
func (f freed) remove(st *syscall.Stat_t) int64 {
	if st == nil {
		return 0
	}
	key := [2]uint64{uint64(st.Dev), st.Ino}
	if _, known := f[key]; !known {
		f[key] = uint64(st.Nlink)
	}
	if f[key]--; f[key] > 0 {
		return 0
	}
	return st.Blocks * 512
}
