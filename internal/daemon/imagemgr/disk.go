package imagemgr

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/daemon/ext4"
	"banger/internal/daemon/imagemgr/oci"
	"banger/internal/daemon/imagemgr/ociwrite"
	"banger/internal/errdefs"
	"banger/internal/model"
)

// openRootfs opens a root filesystem for reading, by nothing but the ext4 reader: a guest
// may have written it. The caller closes the file.
func openRootfs(path string) (*os.File, *ext4.FS, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // a fifo would have us wait
	if errors.Is(err, os.ErrPermission) {
		return nil, nil, errdefs.Permission("%w", err).WithHint("the daemon must be able to read the file")
	}
	if err != nil {
		return nil, nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = errdefs.Invalid("%s is not a regular file", path)
	}
	var fsys *ext4.FS
	if err == nil {
		fsys, err = ext4.Open(f, st.Size())
	}
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return f, fsys, nil
}

// withRootfs has use read the root filesystem of an image.
func withRootfs(i model.Image, use func(*os.File, *ext4.FS) error) error {
	f, fsys, err := openRootfs(i.Path)
	if err == nil {
		err = errors.Join(use(f, fsys), f.Close())
	}
	switch class := errdefs.ClassOf(err); {
	case class == errdefs.ClassFailedPrecondition && !i.Managed:
		return errdefs.Precondition("%w", err).WithHint("nothing here repairs a file of yours; you can, while no VM uses it: e2fsck -f %q", i.Path)
	case class == errdefs.ClassInvalidArgument && !i.Managed:
		return orTry(err, "look what is wrong with the file: e2fsck -fn "+i.Path)
	case class == errdefs.ClassInvalidArgument:
		return orTry(err, "make the image again: "+remake(i))
	}
	return err
}

// written is how an image is made of a root filesystem.
func (s *Service) written(i model.Image, p model.Progress) (ociwrite.Options, error) {
	platform, err := platformOf(i)
	count := paced(p)
	return ociwrite.Options{
		Config: i.Config, Platform: platform, Created: i.CreatedAt.Truncate(time.Second),
		Limits:   ociwrite.Limits{Entries: s.Sources.Tree.Entries, Bytes: s.Sources.Tree.Bytes},
		Progress: func(done int64) { count(done, 0) },
	}, err
}

// paced tells of bytes now and then, and of the last ones. It is for one caller at a time.
func paced(p model.Progress) func(done, total int64) {
	var last time.Time
	return func(done, total int64) {
		if now := time.Now(); done == total || now.Sub(last) >= tellEvery {
			last = now
			p.Count(done, total, "bytes")
		}
	}
}

// platformOf is what the programs in an image are for.
func platformOf(i model.Image) (oci.Platform, error) {
	if i.Config.Platform == "" {
		return oci.HostPlatform(), nil
	}
	return oci.ParsePlatform(i.Config.Platform)
}

// tellLeftOut says what an image cannot have.
func tellLeftOut(made *ociwrite.Image, p model.Progress) {
	if made.Sockets > 0 {
		p.Detail(fmt.Sprintf("sockets that are left out: %d", made.Sockets))
	}
}
