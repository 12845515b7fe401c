package imagemgr

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"banger/internal/errdefs"
	"banger/internal/model"
)

// Registration describes a root filesystem of the user's.
type Registration struct {
	Name    string
	Rootfs  string // absolute path of an ext4 file; it is not copied
	Kernel  string // name of the kernel it boots with; empty: the default one
	User    string // commands run as; empty: root
	Workdir string
}

const registerHint = "give the path of a file on this host that holds a bare ext4 filesystem, without a partition table; mkfs.ext4 makes one"

// Register makes the user's file known as an image. It only points at the file:
// VMs write to views of it, and removing the image leaves it alone.
func (s *Service) Register(ctx context.Context, r Registration) (model.Image, error) {
	if err := model.CheckArtifactName("image", r.Name); err != nil {
		return model.Image{}, err
	}
	if err := ownName("image", r.Name); err != nil {
		return model.Image{}, err
	}
	if r.Workdir != "" && !filepath.IsAbs(r.Workdir) {
		return model.Image{}, errdefs.Invalid("working directory %q is not absolute", r.Workdir).
			WithHint("give the path as commands in the guest see it, e.g. /home/me")
	}
	size, err := checkExt4(r.Rootfs)
	if err != nil {
		return model.Image{}, orTry(errdefs.Wrap(err, "register image %q", r.Name), registerHint)
	}
	i := model.Image{
		ID: model.NewID(), Name: r.Name, Path: filepath.Clean(r.Rootfs), SizeBytes: size,
		Config: model.ImageConfig{User: r.User, Workdir: r.Workdir}, Source: "registered file", CreatedAt: time.Now(),
	}
	s.imageOpsMu.Lock()
	defer s.imageOpsMu.Unlock()
	if r.Kernel != "" {
		k, err := s.kernelNamed(ctx, r.Kernel)
		if err != nil {
			return model.Image{}, err
		}
		i.KernelID = k.ID
	}
	if _, err := s.Store.ImageByName(ctx, r.Name); err == nil {
		return model.Image{}, errdefs.AlreadyExists("image %q exists", r.Name).
			WithHint("choose another name, or remove it first: banger image rm %s", r.Name)
	} else if !errors.Is(err, errdefs.ErrNotFound) {
		return model.Image{}, err
	}
	return i, s.Store.PutImage(ctx, i)
}

// Fields of the ext4 superblock, which begins at byte 1024.
const (
	superblock    = 1024
	offBlocksLo   = 0x04
	offLogBlock   = 0x18
	offMagic      = 0x38
	offIncompat   = 0x60
	offBlocksHi   = 0x150
	ext4Magic     = 0xef53
	incompat64Bit = 0x80
	// extents and a journal device of its own tell ext4 from its ancestors and
	// from what is no filesystem at all.
	incompatExtents    = 0x40
	incompatJournalDev = 0x08
)

// checkExt4 reports the size of the ext4 filesystem in a file. It looks at the
// superblock only, and believes nothing that the file's size contradicts.
func checkExt4(path string) (int64, error) {
	if !filepath.IsAbs(path) {
		return 0, errdefs.Invalid("path %q is not absolute", path)
	}
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return 0, errdefs.NotFound("%w", err)
	}
	if errors.Is(err, os.ErrPermission) {
		return 0, errdefs.Permission("%w", err).WithHint("the daemon must be able to read the file")
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if !st.Mode().IsRegular() {
		return 0, errdefs.Invalid("%s is not a regular file", path)
	}
	var b [1024]byte
	if _, err := f.ReadAt(b[:], superblock); err != nil {
		return 0, errdefs.Invalid("%s is no ext4 filesystem: it has only %d bytes", path, st.Size())
	}
	le := binary.LittleEndian
	incompat := le.Uint32(b[offIncompat:])
	if le.Uint16(b[offMagic:]) != ext4Magic || incompat&incompatExtents == 0 || incompat&incompatJournalDev != 0 {
		return 0, errdefs.Invalid("%s is no ext4 filesystem", path)
	}
	blocks := uint64(le.Uint32(b[offBlocksLo:]))
	if incompat&incompat64Bit != 0 {
		blocks |= uint64(le.Uint32(b[offBlocksHi:])) << 32
	}
	shift := le.Uint32(b[offLogBlock:])
	if shift > 6 || blocks == 0 || blocks > uint64(st.Size())>>(10+shift) {
		return 0, errdefs.Invalid("%s is damaged: its ext4 filesystem is larger than the file of %d bytes", path, st.Size()).
			WithHint("check it with: e2fsck -fn %s", fmt.Sprintf("%q", path))
	}
	return int64(blocks) << (10 + shift), nil
}
