package rootdisk

import (
	"context"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
	"banger/internal/hypervisor"
	"banger/internal/paths"
)

// copyChunk is how much is copied before the context is looked at, in bytes.
const copyChunk = 64 << 20

// Reflink makes raw files that share the blocks of the image until they are written,
// on file systems that can: XFS, btrfs.
func Reflink() Method { return raw{rawFile, "reflink", true} }

// Sparse makes raw copies of the image without its holes. It works everywhere, and
// takes the longest and the most space.
func Sparse() Method { return raw{rawFile, "sparse", false} }

var rawFile = file{name: paths.RootRawFile, format: hypervisor.FormatRaw, grow: growRaw}

type raw struct {
	file
	called string
	share  bool
}

// Name implements Method.
func (m raw) Name() string { return m.called }

// Check implements Method.
func (m raw) Check(_ context.Context, dir string) (string, error) {
	if !m.share {
		return "copies work everywhere", nil
	}
	err := tryReflink(dir)
	if err == nil || errors.Is(err, os.ErrNotExist) {
		return "files here share blocks", nil
	}
	return "", errdefs.Unsupported("files in %s share no blocks: %w", dir, err).
		WithHint("keep the state on XFS or btrfs: set %s", paths.EnvStateDir)
}

// Create implements Method.
func (m raw) Create(ctx context.Context, d Disk) error {
	image, err := open(&d)
	if err != nil {
		return err
	}
	defer image.Close()
	err = publish(m.path(d), d.UID, func(f *os.File) error {
		copied := copySparse
		if m.share {
			copied = copyFile
		}
		if err := copied(ctx, f, image); err != nil {
			return err
		}
		return f.Truncate(d.Size)
	})
	return wrap(err, "make root disk")
}

// growRaw extends a raw disk with a hole.
func growRaw(f *os.File, size int64) (was int64, err error) {
	st, err := f.Stat()
	if err != nil || size <= st.Size() {
		return sizeOf(st), err
	}
	return st.Size(), f.Truncate(size)
}

func sizeOf(st os.FileInfo) int64 {
	if st == nil {
		return 0
	}
	return st.Size()
}

// Copy makes f, which is empty, a private copy of src. Where the file system can, it shares
// the blocks; holes stay holes. It is not synced.
func Copy(ctx context.Context, f, src *os.File) error { return wrap(copyFile(ctx, f, src), "copy") }

// copyFile makes f a private copy of src. Any file system may refuse to share blocks,
// each for its own reason (an image may lie on another one); copying always works.
func copyFile(ctx context.Context, f, src *os.File) error {
	if err := reflink(f, src); err == nil {
		return nil
	}
	return copySparse(ctx, f, src)
}

// reflink makes f share the blocks of image.
func reflink(f, image *os.File) error {
	if err := unix.IoctlFileClone(int(f.Fd()), int(image.Fd())); err != nil {
		return &os.PathError{Op: "reflink", Path: image.Name(), Err: err}
	}
	return nil
}

// tryReflink tells whether the file system of dir shares blocks between files. It
// leaves nothing there, and shows nothing to others meanwhile.
func tryReflink(dir string) error {
	var files [2]*os.File
	for i := range files {
		fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return &os.PathError{Op: "make file without a name in", Path: dir, Err: err}
		}
		files[i] = os.NewFile(uintptr(fd), "a file in "+dir)
		defer files[i].Close()
	}
	if _, err := files[1].Write(make([]byte, 4096)); err != nil { // an empty file is shared everywhere
		return err
	}
	return reflink(files[0], files[1])
}

// copySparse copies the parts of image that hold data. The kernel does the work,
// and shares blocks where it can.
func copySparse(ctx context.Context, f, image *os.File) error {
	st, err := image.Stat()
	if err != nil {
		return err
	}
	for at := int64(0); at < st.Size(); {
		start, err := unix.Seek(int(image.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // a hole up to the end
		}
		if err != nil {
			return &os.PathError{Op: "seek", Path: image.Name(), Err: err}
		}
		end, err := unix.Seek(int(image.Fd()), start, unix.SEEK_HOLE)
		if err != nil {
			return &os.PathError{Op: "seek", Path: image.Name(), Err: err}
		}
		if err := copyRange(ctx, f, image, start, end); err != nil {
			return err
		}
		at = end
	}
	return f.Truncate(st.Size())
}

func copyRange(ctx context.Context, f, image *os.File, start, end int64) error {
	if _, err := image.Seek(start, io.SeekStart); err != nil {
		return err
	}
	if _, err := f.Seek(start, io.SeekStart); err != nil {
		return err
	}
	for start < end {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := io.CopyN(f, image, min(copyChunk, end-start)) // copy_file_range
		start += n
		if errors.Is(err, io.EOF) {
			return io.ErrUnexpectedEOF // the image shrank under us
		}
		if err != nil {
			return err
		}
	}
	return nil
}
