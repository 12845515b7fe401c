package rootdisk

import (
	"context"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// copyChunk is how much is copied before the context is looked at, in bytes.
const copyChunk = 64 << 20

// copyRaw makes f a private copy of image, extended to size with a hole.
func copyRaw(ctx context.Context, f, image *os.File, size int64) error {
	if err := reflink(f, image); err != nil {
		// Any file system may refuse, each for its own reason; copying always works.
		if err := copySparse(ctx, f, image); err != nil {
			return err
		}
	}
	return f.Truncate(size)
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
			return nil // a hole up to the end
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
	return nil
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
