package initramfs

import (
	"bufio"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"banger/internal/errdefs"
	"banger/internal/paths"
)

// Layout of the archive that the agent relies on.
const (
	InitPath      = "init"
	ModulesDir    = "modules"
	suffix        = ".cpio"
	formatVersion = "1" // part of the name: changes when the archive's layout does
)

// Bounds of what goes into an archive: it is memory of every guest.
const (
	maxModules = 256
	maxBytes   = 256 << 20
)

// Builder makes archives and keeps them in one directory, named by the hash of
// what they hold: <64 hex digits>.cpio.
type Builder struct {
	dir string
	// turn is held while an archive is written, so concurrent callers share one
	// build: a channel, because waiting must end with the caller's context.
	turn chan struct{}

	mu   sync.Mutex          // a leaf; guards sums
	sums map[fileID][32]byte // content hashes, so that a start only stats
}

// fileID changes when a file's content may have.
type fileID struct {
	path         string
	dev, ino     uint64
	size         int64
	mtime, ctime time.Time
}

// New returns a builder that keeps archives in dir, which is made when needed.
func New(dir string) *Builder {
	return &Builder{dir: dir, turn: make(chan struct{}, 1), sums: map[fileID][32]byte{}}
}

// input is one file of an archive.
type input struct {
	name string // in the archive
	path string // on the host
	perm int
}

// Ensure returns the path of the archive that holds agent as /init and the
// modules of early, a directory with files and the lists paths.EarlyOrderFile,
// paths.MMIOOrderFile and paths.LateOrderFile. An empty early means a kernel with everything built in.
// The archive is written when it is not there yet.
func (b *Builder) Ensure(ctx context.Context, early, agent string) (string, error) {
	inputs, err := b.inputs(early, agent)
	if err != nil {
		return "", err
	}
	name, err := b.name(inputs)
	if err != nil {
		return "", err
	}
	path := filepath.Join(b.dir, name)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	select {
	case b.turn <- struct{}{}:
		defer func() { <-b.turn }()
	case <-ctx.Done():
		return "", errdefs.Wrap(context.Cause(ctx), "wait for the initramfs")
	}
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	return path, b.publish(path, name, inputs)
}

// inputs lists the files in the order they have in the archive.
func (b *Builder) inputs(early, agent string) ([]input, error) {
	in := []input{{name: InitPath, path: agent, perm: 0o755}}
	if early == "" {
		return in, nil
	}
	seen := map[string]bool{}
	for _, list := range []string{paths.EarlyOrderFile, paths.MMIOOrderFile, paths.LateOrderFile} {
		path := filepath.Join(early, list)
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) && list != paths.EarlyOrderFile {
			continue
		}
		if err != nil {
			return nil, errdefs.Precondition("read the kernel's early modules: %w", err).
				WithHint("pull or import the kernel again")
		}
		in = append(in, input{name: ModulesDir + "/" + list, path: path, perm: 0o644})
		for _, file := range strings.Fields(string(data)) {
			if file != filepath.Base(file) || strings.HasPrefix(file, ".") {
				return nil, errdefs.Invalid("early module %q is not a plain file name", file)
			}
			if !seen[file] {
				seen[file] = true
				in = append(in, input{name: ModulesDir + "/" + file, path: filepath.Join(early, file), perm: 0o644})
			}
		}
	}
	if len(in) > maxModules {
		return nil, errdefs.Exhausted("the kernel lists %d early modules, more than %d", len(in), maxModules)
	}
	return in, nil
}

// name derives the archive's name from its content.
func (b *Builder) name(inputs []input) (string, error) {
	h := sha256.New()
	fmt.Fprintf(h, "banger initramfs %s\n", formatVersion)
	var total int64
	for _, in := range inputs {
		f, err := os.Open(in.path)
		if err != nil {
			return "", errdefs.Precondition("read %s for the initramfs: %w", filepath.Base(in.path), err)
		}
		sum, size, err := b.sum(f, in.path)
		_ = f.Close()
		if err != nil {
			return "", err
		}
		if total += size; total > maxBytes {
			return "", errdefs.Exhausted("the initramfs would have more than %d bytes", maxBytes)
		}
		fmt.Fprintf(h, "%s %o %d %x\n", in.name, in.perm, size, sum)
	}
	return hex.EncodeToString(h.Sum(nil)) + suffix, nil
}

// sum hashes a file, or remembers its hash when it is the same file unchanged.
func (b *Builder) sum(f *os.File, path string) (sum [32]byte, size int64, err error) {
	id, err := identify(f, path)
	if err != nil {
		return sum, 0, err
	}
	b.mu.Lock()
	sum, known := b.sums[id]
	b.mu.Unlock()
	if known {
		return sum, id.size, nil
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return sum, 0, fmt.Errorf("hash %s: %w", path, err)
	}
	copy(sum[:], h.Sum(nil))
	if after, err := identify(f, path); err != nil || after != id {
		return sum, 0, errdefs.Unavailable("hash %s: it changes while it is read", path)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for old := range b.sums { // an updated agent leaves an entry behind
		if old.path == path {
			delete(b.sums, old)
		}
	}
	b.sums[id] = sum
	return sum, id.size, nil
}

func identify(f *os.File, path string) (fileID, error) {
	st, err := f.Stat()
	if err != nil {
		return fileID{}, fmt.Errorf("look at %s: %w", path, err)
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok || !st.Mode().IsRegular() {
		return fileID{}, errdefs.Invalid("%s is not a regular file", path)
	}
	return fileID{
		path: path, dev: sys.Dev, ino: sys.Ino, size: st.Size(), mtime: st.ModTime(),
		ctime: time.Unix(sys.Ctim.Unix()),
	}, nil
}

// publish writes the archive beside its final name and renames it. What was
// copied is hashed again: the name must not lie about the content.
func (b *Builder) publish(path, name string, inputs []input) (err error) {
	if err := os.MkdirAll(b.dir, 0o700); err != nil {
		return fmt.Errorf("make initramfs directory: %w", err)
	}
	tmp, err := os.CreateTemp(b.dir, paths.StagingPrefix+"*")
	if err != nil {
		return fmt.Errorf("create initramfs: %w", err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(tmp.Name())
		}
	}()
	wrote, err := write(tmp, inputs)
	if err == nil && wrote != name {
		err = errdefs.Unavailable("the agent or a module changed while the initramfs was written").WithHint("try again")
	}
	// VMMs that have given up root read it too.
	if err = errors.Join(err, tmp.Chmod(0o644), tmp.Sync(), tmp.Close()); err != nil {
		return errdefs.Wrap(err, "write initramfs")
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return fmt.Errorf("publish initramfs: %w", err)
	}
	return nil
}

// write writes the archive and returns the name of what it wrote.
func write(out io.Writer, inputs []input) (string, error) {
	buf := bufio.NewWriterSize(out, 1<<20)
	c := &writer{w: buf}
	for _, dir := range []string{"dev", "proc", "sys", "run", "newroot", ModulesDir} {
		c.dir(dir, 0o755)
	}
	// The kernel opens the console for /init before anything can mount devtmpfs.
	c.char("dev/console", 0o600, 5, 1)
	c.char("dev/null", 0o666, 1, 3)
	h := sha256.New()
	fmt.Fprintf(h, "banger initramfs %s\n", formatVersion)
	for _, in := range inputs {
		f, err := os.Open(in.path)
		if err != nil {
			return "", err
		}
		st, err := f.Stat()
		if err != nil {
			_ = f.Close()
			return "", err
		}
		sum := sha256.New()
		c.file(in.name, in.perm, st.Size(), io.TeeReader(f, sum))
		_ = f.Close()
		fmt.Fprintf(h, "%s %o %d %x\n", in.name, in.perm, st.Size(), sum.Sum(nil))
	}
	if err := cmp.Or(c.close(), buf.Flush()); err != nil { // the same error, if both
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)) + suffix, nil
}

// Current is the path Ensure would return, whether it exists or not.
func (b *Builder) Current(early, agent string) (string, error) {
	inputs, err := b.inputs(early, agent)
	if err != nil {
		return "", err
	}
	name, err := b.name(inputs)
	return filepath.Join(b.dir, name), err
}

// Prune removes every archive that keep does not name, and what a crash left.
// A running VM does not need its archive: the VMM has read it.
func (b *Builder) Prune(ctx context.Context, keep []string) error {
	select {
	case b.turn <- struct{}{}:
		defer func() { <-b.turn }()
	case <-ctx.Done():
		return errdefs.Wrap(context.Cause(ctx), "prune initramfs files")
	}
	kept := map[string]bool{}
	for _, k := range keep {
		kept[filepath.Base(k)] = true
	}
	entries, err := os.ReadDir(b.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("list initramfs files: %w", err)
	}
	var failed error
	for _, e := range entries {
		old := strings.HasSuffix(e.Name(), suffix) && !kept[e.Name()]
		if old || strings.HasPrefix(e.Name(), paths.StagingPrefix) {
			failed = errors.Join(failed, os.Remove(filepath.Join(b.dir, e.Name())))
		}
	}
	return failed
}
