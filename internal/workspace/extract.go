package workspace

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
)

// Bounds of what a guest may make us do.
const (
	maxNameLen = 4096    // bytes of an entry's name
	maxDepth   = 512     // directories in a name
	maxEntries = 4 << 20 // entries in one stream
)

// ExtractOptions say how a stream becomes files.
type ExtractOptions struct {
	// Rename, when not empty, takes the place of the first element of every name.
	Rename string
	// Strip leaves the first element of every name out: the contents of the
	// directory that was packed, without itself.
	Strip bool
	// One accepts a single regular file and nothing else.
	One bool
	// Progress, which may be nil, is told the bytes of file contents written so far.
	Progress func(bytes int64)
	// MaxBytes bounds the contents of all files together; 0: nothing does.
	MaxBytes int64
	// Readable lets the caller read all files, whatever their modes say.
	Readable bool
}

// Extract unpacks a tar stream that a guest made below dir, which exists. Nothing
// is ever written, linked or changed outside dir, whatever the names and links of
// the stream, or of the tree that is there already, say. Devices are refused, fifos
// left out, set-id bits and owners dropped: the caller owns what is made. Existing
// files are replaced, not written to.
func Extract(ctx context.Context, r io.Reader, dir string, opts ExtractOptions) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return pathErr(dir, err)
	}
	defer func() { _ = root.Close() }()
	x := &extractor{root: root, opts: opts, madeDirs: make(map[string]dirMeta)}
	if err := eachEntry(ctx, r, opts.One, func(h *tar.Header, content *tar.Reader) error { return x.entry(ctx, h, content) }); err != nil {
		return err
	}
	return x.finish()
}

// eachEntry reads the tar stream of a guest to its end. Of one that was asked for a single
// file it takes nothing else.
func eachEntry(ctx context.Context, r io.Reader, one bool, do func(h *tar.Header, content *tar.Reader) error) error {
	in := tar.NewReader(r)
	for n := 0; ; n++ {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return streamErr(err)
		}
		if n >= maxEntries {
			return errdefs.Exhausted("the stream has more than %d entries", maxEntries)
		}
		if one && (n > 0 || h.Typeflag != tar.TypeReg) {
			return errdefs.Invalid("the VM sent more than the one file that was asked for")
		}
		if err := do(h, in); err != nil {
			return err
		}
	}
	// What follows the end of the archive is padding; the sender is still writing.
	if _, err := io.Copy(io.Discard, r); err != nil {
		return streamErr(err)
	}
	return nil
}

// streamErr classifies a failure to read the stream. A failure of the transport
// says more than that the archive is cut off.
func streamErr(err error) error {
	var known *errdefs.Error
	switch {
	case errors.As(err, &known):
		return err
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.Is(err, tar.ErrHeader), errors.Is(err, tar.ErrFieldTooLong):
		return errdefs.Invalid("read the tar stream: %w", err)
	}
	return errdefs.Wrap(err, "read the tar stream")
}

type dirMeta struct {
	mode fs.FileMode
	time time.Time
}

type extractor struct {
	root     *os.Root
	opts     ExtractOptions
	buf      []byte
	written  int64
	parents  map[string]bool // directories known to exist
	order    []string        // of madeDirs
	madeDirs map[string]dirMeta
}

// entry puts one entry in place.
func (x *extractor) entry(ctx context.Context, h *tar.Header, contents io.Reader) error {
	name, err := x.name(h.Name)
	if err != nil {
		return err
	}
	if name == "" { // the directory itself
		if h.Typeflag != tar.TypeDir {
			return errdefs.Invalid("the stream replaces the destination by %q", h.Name)
		}
		return nil
	}
	if sparse(h) {
		return errdefs.Unsupported("%q is a sparse entry, which can grow without bounds", h.Name)
	}
	switch h.Typeflag {
	case tar.TypeDir:
		return x.dir(name, h)
	case tar.TypeReg:
		return x.file(ctx, name, h, contents)
	case tar.TypeSymlink:
		return x.symlink(name, h)
	case tar.TypeLink:
		return x.link(name, h)
	case tar.TypeFifo:
		return nil
	case tar.TypeChar, tar.TypeBlock:
		return errdefs.Permission("%q is a device, and devices are not made on the host", h.Name).
			WithHint("copy the directories you need one by one, without it")
	}
	return errdefs.Unsupported("%q has entry type %q", h.Name, h.Typeflag)
}

// name checks an entry's name and maps it to where it goes; empty for the
// destination itself.
func (x *extractor) name(raw string) (string, error) {
	bad := func() (string, error) {
		return "", errdefs.Invalid("the stream holds the unsafe name %q", cutName(raw))
	}
	if len(raw) > maxNameLen || strings.ContainsRune(raw, 0) || strings.HasPrefix(raw, "/") {
		return bad()
	}
	clean := path.Clean(raw)
	if !filepath.IsLocal(clean) || strings.Count(clean, "/") > maxDepth {
		return bad()
	}
	if clean == "." {
		clean = ""
	}
	first, rest, _ := strings.Cut(clean, "/")
	switch {
	case x.opts.Strip:
		return rest, nil
	case x.opts.Rename != "" && first != "":
		return path.Join(x.opts.Rename, rest), nil
	}
	return clean, nil
}

func cutName(s string) string {
	if len(s) > 200 {
		return s[:200] + "..."
	}
	return s
}

// sparse reports whether an entry may read as more than the stream holds.
func sparse(h *tar.Header) bool {
	if h.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// fail names the file a failure is about.
func (x *extractor) fail(name string, err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	var le *os.LinkError
	if errors.As(err, &le) {
		err = le.Err
	}
	full := filepath.Join(x.root.Name(), name)
	if errors.Is(err, fs.ErrPermission) {
		return errdefs.Permission("write %s: %w", full, err).WithHint("choose a directory you may write to")
	}
	return errdefs.Wrap(err, "write %s", full)
}

// ready makes the directories above name.
func (x *extractor) ready(name string) error {
	dir := path.Dir(name)
	if dir == "." || x.parents[dir] {
		return nil
	}
	if err := x.root.MkdirAll(dir, 0o755); err != nil {
		return x.fail(dir, err)
	}
	if x.parents == nil {
		x.parents = make(map[string]bool)
	}
	x.parents[dir] = true
	return nil
}

// clear removes what is in the way of name; a directory only when it is empty.
func (x *extractor) clear(name string) error {
	if err := x.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return x.fail(name, err)
	}
	return nil
}

func (x *extractor) dir(name string, h *tar.Header) error {
	if err := x.ready(name); err != nil {
		return err
	}
	info, err := x.root.Lstat(name)
	switch {
	case err == nil && info.IsDir():
		// It was there before us, or an earlier entry made it: its mode stays.
		return nil
	case err == nil:
		if err := x.clear(name); err != nil {
			return err
		}
		fallthrough
	default:
		// Writable by us until all that goes in is in; the mode comes last.
		if err := x.root.Mkdir(name, 0o700); err != nil {
			return x.fail(name, err)
		}
	}
	x.order = append(x.order, name)
	x.madeDirs[name] = dirMeta{fs.FileMode(h.Mode) & 0o777, h.ModTime}
	return nil
}

func (x *extractor) file(ctx context.Context, name string, h *tar.Header, contents io.Reader) error {
	if err := x.ready(name); err != nil {
		return err
	}
	const flags = os.O_WRONLY | os.O_CREATE | os.O_EXCL | syscall.O_NOFOLLOW
	mode := fs.FileMode(h.Mode) & 0o777
	if x.opts.Readable {
		mode |= 0o400
	}
	f, err := x.root.OpenFile(name, flags, 0o600)
	if errors.Is(err, fs.ErrExist) {
		if err := x.clear(name); err != nil {
			return err
		}
		f, err = x.root.OpenFile(name, flags, 0o600)
	}
	if err != nil {
		return x.fail(name, err)
	}
	err = x.copy(ctx, f, contents)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		at := unix.NsecToTimeval(h.ModTime.UnixNano())
		err = unix.Futimes(int(f.Fd()), []unix.Timeval{at, at})
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		_ = x.root.Remove(name) // half a file is worse than none
		var fromStream *streamError
		if errors.As(err, &fromStream) {
			return streamErr(fromStream.err)
		}
		return x.fail(name, err)
	}
	return nil
}

// streamError keeps a failure to read apart from one to write.
type streamError struct{ err error }

func (e *streamError) Error() string { return e.err.Error() }

func (x *extractor) copy(ctx context.Context, w io.Writer, r io.Reader) error {
	if x.buf == nil {
		x.buf = make([]byte, 256<<10)
	}
	for {
		if ctx.Err() != nil {
			return &streamError{context.Cause(ctx)}
		}
		n, err := r.Read(x.buf)
		if n > 0 {
			if limit := x.opts.MaxBytes; limit > 0 && x.written+int64(n) > limit {
				return &streamError{errdefs.Exhausted("the VM sent more than %d bytes", limit)}
			}
			if _, err := w.Write(x.buf[:n]); err != nil {
				return err
			}
			if x.written += int64(n); x.opts.Progress != nil {
				x.opts.Progress(x.written)
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return &streamError{err}
		}
	}
}

func (x *extractor) symlink(name string, h *tar.Header) error {
	if h.Linkname == "" || len(h.Linkname) > maxNameLen || strings.ContainsRune(h.Linkname, 0) {
		return errdefs.Invalid("the stream holds the link %q without a target", cutName(h.Name))
	}
	if err := x.ready(name); err != nil {
		return err
	}
	if err := x.clear(name); err != nil {
		return err
	}
	// The target is only text: nothing here follows it out of the root.
	if err := x.root.Symlink(h.Linkname, name); err != nil {
		return x.fail(name, err)
	}
	return nil
}

func (x *extractor) link(name string, h *tar.Header) error {
	target, err := x.name(h.Linkname)
	if err != nil {
		return err
	}
	if target == "" || target == name {
		return errdefs.Invalid("the stream links %q to %q", cutName(h.Name), cutName(h.Linkname))
	}
	if err := x.ready(name); err != nil {
		return err
	}
	if err := x.clear(name); err != nil {
		return err
	}
	if err := x.root.Link(target, name); err != nil {
		return x.fail(name, err)
	}
	return nil
}

// finish gives directories their modes and times, inner ones first: what went into
// them has changed both.
func (x *extractor) finish() error {
	for i := len(x.order) - 1; i >= 0; i-- {
		name := x.order[i]
		meta := x.madeDirs[name]
		// A later entry may have put something else there.
		info, err := x.root.Lstat(name)
		if err != nil || !info.IsDir() {
			continue
		}
		if err := x.root.Chtimes(name, meta.time, meta.time); err != nil {
			return x.fail(name, err)
		}
		if err := x.root.Chmod(name, meta.mode); err != nil {
			return x.fail(name, err)
		}
	}
	return nil
}
