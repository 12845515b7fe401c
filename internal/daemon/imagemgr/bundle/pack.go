package bundle

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/klauspost/compress/zstd"

	"banger/internal/errdefs"
)

// Pack writes a bundle of the files of dir that a bundle of m's kind may hold, as
// PackFiles does.
func Pack(ctx context.Context, w io.Writer, m Manifest, dir string) (Manifest, error) {
	files := map[string]*os.File{}
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	for _, name := range may[m.Kind] {
		f, err := os.Open(filepath.Join(dir, name))
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return m, err
		}
		files[name] = f
	}
	return PackFiles(ctx, w, m, files)
}

// PackFiles writes a bundle of open files, by the names they have in it. Format, Arch and
// Files of m are filled in, and what came of it is returned. The same files and the same m
// give the same bytes.
func PackFiles(ctx context.Context, w io.Writer, m Manifest, files map[string]*os.File) (Manifest, error) {
	m.Format, m.Arch, m.Files = format, Arch, nil
	for _, name := range may[m.Kind] {
		if files[name] == nil {
			continue
		}
		f, err := measure(ctx, files[name])
		if err != nil {
			return m, err
		}
		f.Name = name
		m.Files = append(m.Files, f)
	}
	if err := m.check(); err != nil {
		return m, err
	}
	head, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return m, fmt.Errorf("write manifest: %w", err)
	}
	head = append(head, '\n')
	if len(head) > maxManifest {
		return m, errdefs.Exhausted("the manifest has %d bytes, more than %d", len(head), maxManifest)
	}
	// One thread, for the sake of the same bytes everywhere.
	z, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedBetterCompression), zstd.WithWindowSize(maxWindow), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return m, fmt.Errorf("write bundle: %w", err)
	}
	tw := tar.NewWriter(z)
	err = tw.WriteHeader(header(ManifestFile, int64(len(head))))
	if err == nil {
		_, err = tw.Write(head)
	}
	for _, f := range m.Files {
		if err != nil {
			break
		}
		err = add(ctx, tw, f, files[f.Name])
	}
	if err == nil {
		err = tw.Close()
	}
	if err != nil {
		_ = z.Close()
		return m, errdefs.Wrap(err, "write bundle")
	}
	if err := z.Close(); err != nil {
		return m, fmt.Errorf("write bundle: %w", err)
	}
	return m, nil
}

func header(name string, size int64) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, ModTime: time.Unix(0, 0), Format: tar.FormatGNU}
}

// whole is all of a file, from its beginning.
func whole(f *os.File) (*io.SectionReader, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, errdefs.Invalid("%s is not a regular file", f.Name())
	}
	return io.NewSectionReader(f, 0, st.Size()), nil
}

// measure says what the manifest has to say of a file.
func measure(ctx context.Context, f *os.File) (File, error) {
	in, err := whole(f)
	if err != nil {
		return File{}, err
	}
	sum := sha256.New()
	n, err := copyAll(ctx, sum, in)
	if err == nil && n != in.Size() {
		err = changed(f)
	}
	return File{Size: in.Size(), SHA256: hex.EncodeToString(sum.Sum(nil))}, err
}

func add(ctx context.Context, tw *tar.Writer, want File, f *os.File) error {
	in, err := whole(f)
	if err != nil {
		return err
	}
	if in.Size() != want.Size {
		return changed(f)
	}
	if err := tw.WriteHeader(header(want.Name, want.Size)); err != nil {
		return err
	}
	sum := sha256.New()
	n, err := copyAll(ctx, io.MultiWriter(sum, tw), in)
	if err == nil && (n != want.Size || hex.EncodeToString(sum.Sum(nil)) != want.SHA256) {
		err = changed(f)
	}
	return err
}

func changed(f *os.File) error {
	return errdefs.Precondition("%s changed while it was read", f.Name())
}

func copyAll(ctx context.Context, w io.Writer, r io.Reader) (n int64, err error) {
	buf := make([]byte, 1<<20)
	for {
		if ctx.Err() != nil {
			return n, context.Cause(ctx)
		}
		k, err := r.Read(buf)
		if k > 0 {
			if _, werr := w.Write(buf[:k]); werr != nil {
				return n, werr
			}
			n += int64(k)
		}
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}
