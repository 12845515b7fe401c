package ext4

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"banger/internal/errdefs"
)

const (
	maxPath = 4095 // bytes; programs cannot name what lies deeper
	// maxHeld is how many bytes of names are in memory at once: those of a directory, of
	// the directories above it, and the first ones of files that have several.
	maxHeld   = 256 << 20
	heldEntry = 48 // bytes that a name takes besides itself
)

// Entry is a name in a filesystem that is read, and what it leads to.
type Entry struct {
	Path     string // from the root, without a slash at the beginning; "" is the root
	Link     string // the first path of the same inode if this is a further one, else ""
	Ino      uint32
	Mode     uint32 // as in Inode
	UID, GID uint32
	Rdev     Device // of device nodes
	Size     int64  // of regular files, in bytes
	ATime    Time
	MTime    Time
	CTime    Time
	Target   string  // of a symbolic link
	Xattrs   []Xattr // in the order of their names

	f *FS
	n *inode
}

// Walk visits all names: a directory before what is in it, names of one directory in
// their order as bytes, and of several names of an inode the first in that order
// first. All that belongs to an entry has been checked when it is visited; it is valid
// for as long as the FS. Blocks are part of one file each, so that contents without
// holes are together no more than the filesystem; sizes are up to the visitor.
//
// What is damaged is of class invalid_argument, what cannot be read here unsupported, and
// a tree with too many names to hold exhausted; each with the path.
func (f *FS) Walk(ctx context.Context, visit func(*Entry) error) error {
	w := &walker{f: f, ctx: ctx, visit: visit, blocks: set{}, inodes: set{}, first: map[uint32]string{}}
	err := w.entry("", rootIno)
	var own *visitError
	if errors.As(err, &own) {
		return own.error
	}
	return errdefs.Wrap(err, "read filesystem")
}

// visitError is one of the visitor's, which goes to the caller as it is.
type visitError struct{ error }

type walker struct {
	f      *FS
	ctx    context.Context
	visit  func(*Entry) error
	blocks set
	inodes set
	first  map[uint32]string // of inodes with several names
	held   int64
}

func (w *walker) hold(s string) error {
	if w.held += int64(len(s)) + heldEntry; w.held > maxHeld {
		return errdefs.Exhausted("the names take more than %d bytes", maxHeld)
	}
	return nil
}

// entry visits a name, and those below it.
func (w *walker) entry(path string, ino uint32) error {
	if w.ctx.Err() != nil {
		return &visitError{context.Cause(w.ctx)}
	}
	e, err := w.read(path, ino)
	if err != nil {
		return at(path, err)
	}
	if err := w.visit(e); err != nil {
		return &visitError{err}
	}
	if !e.n.is(modeDir) {
		return nil
	}
	var children []child
	err = w.f.readDir(e.n, w.blocks, func(c child) error {
		children = append(children, c)
		return w.hold(c.name)
	})
	if err != nil {
		return at(path, err)
	}
	slices.SortFunc(children, func(a, b child) int { return cmp.Compare(a.name, b.name) })
	for i, c := range children {
		below := c.name
		if path != "" {
			below = path + "/" + c.name
		}
		if i > 0 && children[i-1].name == c.name {
			return at(below, errdefs.Invalid("the name is there twice"))
		}
		if len(below) > maxPath {
			return at(below, errdefs.Unsupported("the path has more than %d bytes", maxPath))
		}
		if err := w.entry(below, c.ino); err != nil {
			return err
		}
	}
	for _, c := range children { // what first has stays
		w.held -= int64(len(c.name)) + heldEntry
	}
	return nil
}

func at(path string, err error) error { return errdefs.Wrap(err, "%.300q", "/"+path) }

// read reads an inode and all that belongs to it but the names in a directory.
func (w *walker) read(path string, ino uint32) (*Entry, error) {
	n, err := w.f.readInode(ino)
	if err != nil {
		return nil, err
	}
	e := &Entry{
		Path: path, Ino: ino, Mode: n.mode, UID: n.uid, GID: n.gid, Rdev: n.rdev,
		ATime: n.access, MTime: n.modify, CTime: n.chg, f: w.f, n: n,
	}
	if path == "" && !n.is(modeDir) {
		return nil, errdefs.Invalid("the root is no directory")
	}
	isNew := w.inodes.add(uint64(ino), 1)
	switch {
	case !isNew && n.is(modeDir):
		return nil, errdefs.Invalid("inode %d: the directory has a second name", ino)
	case !isNew && w.first[ino] == "":
		return nil, errdefs.Invalid("inode %d has more names than it says", ino)
	case !isNew:
		e.Link = w.first[ino]
	case n.links > 1 && !n.is(modeDir):
		if err := w.hold(path); err != nil {
			return nil, err
		}
		w.first[ino] = path
	}
	if e.Xattrs, err = w.f.xattrs(n); err != nil {
		return nil, errdefs.Wrap(err, "inode %d", ino)
	}
	switch n.mode & modeType {
	case modeLink:
		e.Target, err = w.f.target(n)
	case modeFile:
		e.Size = n.size
		if !isNew {
			break
		}
		if n.flags&flagInline != 0 {
			_, err = n.inlineContent()
		} else {
			err = w.f.claim(n, w.blocks, func(extent) error { return nil })
		}
	}
	return e, errdefs.Wrap(err, "inode %d", ino)
}

// Ranges visits the stored parts of a regular file in ascending order; the rest are
// holes. The last one may reach beyond the end of the file: it is cut there.
func (e *Entry) Ranges(visit func(Range) error) error {
	if !e.n.is(modeFile) {
		return errdefs.Internal("read the content of %q, which has none", e.Path)
	}
	if e.n.flags&flagInline != 0 {
		if e.Size == 0 {
			return nil
		}
		return visit(Range{0, e.Size})
	}
	return e.f.extents(e.n, func(x extent) error {
		off := int64(x.logical) * e.f.size
		return visit(Range{off, min(int64(x.n)*e.f.size, e.Size-off)})
	})
}

const copySize = 256 << 10

var manyZeros [copySize]byte

// WriteContent writes a regular file to out, Size bytes of it: holes are zeros. It ends
// with the context.
func (e *Entry) WriteContent(ctx context.Context, out io.Writer) error {
	done := int64(0)
	fill := func(to int64) error {
		for done < to {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			n, err := out.Write(manyZeros[:min(to-done, copySize)])
			if done += int64(n); err != nil {
				return err
			}
		}
		return nil
	}
	if e.n.flags&flagInline != 0 && e.n.is(modeFile) {
		p, err := e.n.inlineContent()
		if err != nil {
			return at(e.Path, err)
		}
		_, err = out.Write(p[:e.Size])
		return err
	}
	buf := make([]byte, copySize)
	err := e.f.extents(e.n, func(x extent) error {
		from := int64(x.logical) * e.f.size
		if err := fill(from); err != nil {
			return err
		}
		src := io.NewSectionReader(e.f.r, int64(x.start)*e.f.size, min(int64(x.n)*e.f.size, e.Size-from))
		for {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			n, err := io.ReadFull(src, buf)
			if n > 0 {
				if _, werr := out.Write(buf[:n]); werr != nil {
					return werr
				}
				done += int64(n)
			}
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				if want := from + src.Size(); done != want {
					return fmt.Errorf("read %q: %d bytes are missing", e.Path, want-done)
				}
				return nil
			}
			if err != nil {
				return fmt.Errorf("read %q: %w", e.Path, err)
			}
		}
	})
	if err != nil {
		return err
	}
	return fill(e.Size)
}
