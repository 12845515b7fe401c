package debian

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"banger/internal/errdefs"
	"banger/internal/sysexec"
)

// Shape of the filesystems made here.
const (
	blockSize = 4096
	inodeSize = 256
	// rootFeatures spells out what mke2fs would take from the host's own
	// configuration, so that images are the same everywhere.
	rootFeatures = "has_journal,extent,huge_file,flex_bg,64bit,dir_nlink,extra_isize,metadata_csum,resize_inode"
	rootLabel    = "banger-root"
	modulesLabel = "banger-modules"
)

// ModulesImage writes the tree at dir into a new, read-only ext4 image at dst, as
// small as it can be. Everything in it belongs to root; its identifiers come from
// seed, so that the same kernel looks the same to every guest.
func ModulesImage(ctx context.Context, dir, dst, seed string) error {
	blocks, inodes, err := measure(dir)
	if err != nil {
		return fmt.Errorf("measure the module tree: %w", err)
	}
	sum := sha256.Sum256([]byte("banger modules " + seed))
	uuid := fmt.Sprintf("%x-%x-%x-%x-%x", sum[0:4], sum[4:6], sum[6:8], sum[8:10], sum[10:16])
	inodes += 16
	// Inode tables, bitmaps and group descriptors; a group has 32768 blocks.
	blocks += inodes*inodeSize/blockSize + 64
	blocks += blocks/256 + (blocks/32768+1)*4
	for try := 0; ; try++ {
		out := &lines{}
		err := sysexec.Run(ctx, sysexec.Cmd{
			Path: "mke2fs",
			Args: []string{
				"-q", "-F", "-t", "ext4", "-b", strconv.Itoa(blockSize), "-I", strconv.Itoa(inodeSize), "-N", strconv.FormatInt(inodes, 10),
				"-O", "none,extent,filetype,flex_bg,sparse_super,dir_index,large_file", "-m", "0", "-L", modulesLabel, "-U", uuid,
				"-E", "root_owner=0:0,hash_seed=" + uuid, "-d", dir, dst, strconv.FormatInt(blocks, 10),
			},
			// Both spellings of "now": the second since e2fsprogs 1.47.1.
			Env:    append(os.Environ(), "MKE2FS_CONFIG=/dev/null", "E2FSPROGS_FAKE_TIME=1", "SOURCE_DATE_EPOCH=1"),
			Stdout: out, Stderr: out,
		})
		if err == nil {
			break
		}
		if try == 3 || !strings.Contains(strings.Join(out.last(), "\n"), "ext2") {
			return explain(ctx, "write the module image", out.last(), err)
		}
		blocks += blocks / 20 // the estimate was short
	}
	if err := ownByRoot(ctx, dst, inodes); err != nil {
		return err
	}
	return os.Chmod(dst, 0o444)
}

// measure returns how many data blocks and inodes the tree takes.
func measure(dir string) (blocks, inodes int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		inodes++
		blocks += max(1, (info.Size()+blockSize-1)/blockSize)
		return nil
	})
	return blocks, inodes, err
}

// ownByRoot gives every inode of an image to root: mke2fs copies the owners of
// the host's files, which are the user that runs the daemon.
func ownByRoot(ctx context.Context, image string, inodes int64) error {
	var script strings.Builder
	for i := int64(11); i <= inodes; i++ {
		fmt.Fprintf(&script, "sif <%d> uid 0\nsif <%d> gid 0\n", i, i)
	}
	out := &lines{}
	err := sysexec.Run(ctx, sysexec.Cmd{
		Path: "debugfs", Args: []string{"-w", "-f", "-", image},
		Env: append(os.Environ(), "E2FSPROGS_FAKE_TIME=1", "SOURCE_DATE_EPOCH=1"), Stdin: strings.NewReader(script.String()), Stdout: out, Stderr: out,
	})
	if err != nil {
		return explain(ctx, "set owners in the module image", out.last(), err)
	}
	return nil
}

// rootImage writes the tree at tree into dst, both in the sandbox's directory.
func rootImage(ctx context.Context, s *sandbox, tree, dst string, size int64) error {
	host := filepath.Join(s.dir, dst)
	f, err := os.OpenFile(host, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return fmt.Errorf("create root filesystem: %w", err)
	}
	// The file is ours and stays ours; the sandbox's root only writes to it.
	// Its full size before mke2fs sees it: then mke2fs knows that what it does not
	// write reads as zeros and marks the inode tables as wiped, or every guest
	// would spend its first minutes, and 256 MB of its disk, on wiping them.
	size = size / blockSize * blockSize
	if err := errors.Join(f.Chmod(0o666), f.Truncate(size), f.Close()); err != nil {
		return fmt.Errorf("create root filesystem: %w", err)
	}
	said, err := s.run(ctx, nil, "mke2fs",
		"-q", "-F", "-t", "ext4", "-b", strconv.Itoa(blockSize), "-I", strconv.Itoa(inodeSize), "-i", "16384",
		"-O", rootFeatures, "-J", "size=64", "-m", "1", "-L", rootLabel,
		"-E", "lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0",
		"-d", s.path(tree), s.path(dst), strconv.FormatInt(size/blockSize, 10))
	if err != nil {
		return explain(ctx, "write the root filesystem", said, err)
	}
	if err := os.Chmod(host, 0o644); err != nil {
		return fmt.Errorf("close root filesystem: %w", err)
	}
	st, err := os.Stat(host)
	if err != nil {
		return fmt.Errorf("look at the root filesystem: %w", err)
	}
	if st.Size() != size {
		return errdefs.Internal("write the root filesystem: it has %d bytes instead of %d", st.Size(), size)
	}
	return nil
}
