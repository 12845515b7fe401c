package fcfetch

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"banger/internal/errdefs"
)

// Bounds of a release, several times what one has, in bytes.
const (
	maxArchive  = 256 << 20
	maxUnpacked = 2 << 30
	maxProgram  = 32 << 20
	maxSum      = 4 << 10
	maxEntries  = 1000
)

// archive brings the archive of the release into work and returns it, open at its
// beginning, when it has the checksum that it should have.
func (r Request) archive(ctx context.Context, kind kind, work string) (_ *os.File, err error) {
	name := archiveName(r.Version)
	if kind == isArchive {
		name = filepath.Base(r.From)
	}
	want, err := r.checksum(ctx, kind, name)
	if err != nil {
		return nil, err
	}
	src, total, err := r.open(ctx, kind, "")
	if err != nil {
		return nil, err
	}
	defer func() { _ = src.Close() }()
	f, err := os.Create(filepath.Join(work, "archive"))
	if err != nil {
		return nil, errdefs.Wrap(err, "save the archive")
	}
	defer func() {
		if err != nil {
			_ = f.Close()
		}
	}()
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, h, &meter{report: r.Report, total: total}), io.LimitReader(src, maxArchive+1))
	switch {
	case err != nil:
		return nil, errdefs.Wrap(err, "read %s", name)
	case n > maxArchive:
		return nil, errdefs.Exhausted("%s has more than %d MiB, which no release has", name, maxArchive>>20).WithHint("take it from elsewhere")
	case hex.EncodeToString(h.Sum(nil)) != want:
		return nil, errdefs.Precondition("%s is damaged or not what was published: its checksum is %x, not %s", name, h.Sum(nil), want).
			WithHint("try again, or take it from elsewhere")
	}
	_, err = f.Seek(0, io.SeekStart)
	return f, err
}

func archiveName(version string) string { return "firecracker-v" + version + "-" + arch + ".tgz" }

// sumSuffix is what the name of the published checksum ends in.
const sumSuffix = ".sha256.txt"

// checksum returns the one that was asked for, else the published one.
func (r Request) checksum(ctx context.Context, kind kind, name string) (string, error) {
	if r.SHA256 != "" {
		return strings.ToLower(r.SHA256), nil
	}
	f, _, err := r.open(ctx, kind, sumSuffix)
	if err != nil {
		if kind == isArchive && errdefs.ClassOf(err) == errdefs.ClassNotFound {
			return "", errdefs.NotFound("%s has no checksum beside it: %w", name, err).
				WithHint("put %s there, which is published with the release, or give --sha256", name+sumSuffix)
		}
		return "", err
	}
	text, err := io.ReadAll(io.LimitReader(f, maxSum))
	if err = errors.Join(err, f.Close()); err != nil {
		return "", errdefs.Wrap(err, "read the checksum of %s", name)
	}
	// As sha256sum prints it: the sum, and the name it is of.
	fields := strings.Fields(string(text))
	if len(fields) < 2 || !sumPattern.MatchString(fields[0]) || kind == isURL && strings.TrimPrefix(fields[1], "*") != name {
		return "", errdefs.Precondition("what is published as the checksum of %s is none: %.100q", name, text).
			WithHint("take the release from elsewhere, or give --sha256")
	}
	return strings.ToLower(fields[0]), nil
}

// open opens the archive, or with a suffix what lies beside it; total is its size, or 0.
func (r Request) open(ctx context.Context, kind kind, suffix string) (_ io.ReadCloser, total int64, err error) {
	if kind == isURL {
		return get(ctx, strings.TrimRight(r.From, "/")+"/download/v"+r.Version+"/"+archiveName(r.Version)+suffix)
	}
	f, err := os.Open(r.From + suffix)
	if errors.Is(err, os.ErrNotExist) {
		return nil, 0, errdefs.NotFound("%w", err)
	}
	if err != nil {
		return nil, 0, errdefs.Wrap(err, "open the release")
	}
	return f, 0, nil
}

// meter counts what passes.
type meter struct {
	report      func(done, total int64)
	done, total int64
}

func (m *meter) Write(p []byte) (int, error) {
	m.done += int64(len(p))
	if m.report != nil {
		m.report(m.done, m.total)
	}
	return len(p), nil
}

// unpack takes the two programs out of an archive, by the names they have in a
// release, and checks the rest of it as far as it goes: an archive that would write
// elsewhere, is cut off or never ends is no release.
func unpack(ctx context.Context, archive io.Reader, version, into string) error {
	z, err := gzip.NewReader(archive)
	if err != nil {
		return errdefs.Precondition("it is no archive of a release: %w", err).WithHint("give firecracker-vVERSION-%s.tgz", arch)
	}
	bounded := &io.LimitedReader{R: z, N: maxUnpacked}
	t := tar.NewReader(bounded)
	wanted := map[string]string{}
	for _, program := range []string{Firecracker, Jailer} {
		wanted["release-v"+version+"-"+arch+"/"+program+"-v"+version+"-"+arch] = program
	}
	for n := 0; ; n++ {
		h, err := t.Next()
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, io.EOF):
			// What follows is padding; the checksum of the packed data comes last.
			if _, err := io.Copy(io.Discard, bounded); err != nil {
				return damaged(err)
			}
			return complete(wanted, version)
		case bounded.N <= 0 || n >= maxEntries:
			return errdefs.Exhausted("it holds more than %d files or %d MiB, which no release does", maxEntries, maxUnpacked>>20).WithHint("take it from elsewhere")
		case err != nil:
			return damaged(err)
		}
		name := path.Clean(h.Name)
		if path.IsAbs(name) || name == ".." || strings.HasPrefix(name, "../") {
			return errdefs.Precondition("it is no archive of a release: %.100q lies outside of it", h.Name).WithHint("take it from elsewhere")
		}
		program, ok := wanted[name]
		if !ok {
			continue
		}
		if h.Typeflag != tar.TypeReg {
			return errdefs.Precondition("it is no archive of a release: %s is not a file", name).WithHint("take it from elsewhere")
		}
		delete(wanted, name) // a second one would not be looked at
		if err := save(t, filepath.Join(into, program)); err != nil {
			return err
		}
	}
}

func complete(missing map[string]string, version string) error {
	for name := range missing {
		return errdefs.Precondition("it is no archive of release %s: %s is not in it", version, name).
			WithHint("say with --version which release it is")
	}
	return nil
}

func damaged(err error) error {
	return errdefs.Precondition("it is damaged: %w", err).WithHint("take it from elsewhere")
}

// save writes a program.
func save(from io.Reader, to string) error {
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	n, err := io.Copy(f, io.LimitReader(from, maxProgram+1))
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("read %s: %w", filepath.Base(to), err)
	}
	if n > maxProgram {
		return errdefs.Exhausted("%s has more than %d MiB, which no release has", filepath.Base(to), maxProgram>>20).WithHint("take it from elsewhere")
	}
	return nil
}
