package flatten

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"path"
	"strings"

	"banger/internal/daemon/ext4"
	"banger/internal/errdefs"
)

// What an entry does at its path.
type kind uint8

const (
	put      kind = iota // inode is what is there from now on
	link                 // what inode.Target names is; it gets inode's attributes
	whiteout             // nothing is
	opaque               // nothing of lower layers is, in the directory
)

// record is an entry of a tar. There are as many as an image has files: it has 32 bytes.
type record struct {
	inode *ext4.Inode // of put and link
	name  string      // the last component of the path
	dir   uint32      // the rest of it, in index.dirs
	kind  kind
}

// index is what is kept of a layer: its entries in their order.
type index struct {
	layer   string
	dirs    []string // paths of parents, clean and relative to the root, which is ""
	chunks  [][]record
	entries int64
	dropped int64 // extended attributes
	diffID  string
	bytes   int64

	*scratch
}

// scratch is what is needed only while the layer is read.
type scratch struct {
	budget *budget
	intern *interner
	ids    map[string]uint32 // of dirs
	last   uint32            // the one that was looked for last
}

// chunk is how many records are allocated at once, so that none are ever moved.
const chunk = 1024

func (x *index) add(r record) {
	n := len(x.chunks)
	if n == 0 || len(x.chunks[n-1]) == chunk {
		x.chunks = append(x.chunks, make([]record, 0, chunk))
		n++
	}
	x.chunks[n-1] = append(x.chunks[n-1], r)
}

// path returns the name of an entry, for errors.
func (x *index) path(r *record) string {
	name := r.name
	switch r.kind {
	case whiteout:
		name = whiteoutPrefix + name
	case opaque:
		name = opaqueName
	}
	return path.Join(x.dirs[r.dir], name)
}

// free drops the content of all files that no one else has dropped.
func (x *index) free(sink Sink) {
	if x == nil {
		return
	}
	for _, c := range x.chunks {
		for _, r := range c {
			freeData(sink, r.inode)
		}
	}
}

// freeData drops the content of an inode, once.
func freeData(sink Sink, in *ext4.Inode) {
	if in != nil && in.Data.Size() > 0 {
		sink.Free(in.Data)
		in.Data = ext4.Data{}
	}
}

// dir returns the number of a parent.
func (x *index) dir(p string) (uint32, error) {
	if x.dirs[x.last] == p {
		return x.last, nil
	}
	id, ok := x.ids[p]
	if !ok {
		if err := x.budget.meta(len(p)); err != nil {
			return 0, err
		}
		for c := range strings.SplitSeq(p, "/") {
			if len(c) > maxName {
				return 0, errdefs.Invalid("a name of %d bytes", len(c))
			}
		}
		p = strings.Clone(p)
		id = uint32(len(x.dirs))
		x.dirs = append(x.dirs, p)
		x.ids[p] = id
	}
	x.last = id
	return id, nil
}

// read makes records of the tar in s, to its end, and stores the contents of its files.
func (x *index) read(ctx context.Context, s *stream, sink Sink, b *budget) error {
	x.dirs = []string{""}
	x.scratch = &scratch{budget: b, intern: newInterner(b), ids: map[string]uint32{"": 0}}
	defer func() { x.scratch = nil }()
	tr := tar.NewReader(s)
	var last *tar.Header
	for {
		hdr, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			where := "first entry"
			if last != nil {
				where = "entry after " + clip(last.Name)
			}
			return x.broken(s, malformed(err), where)
		}
		x.entries++
		if err := x.entry(ctx, hdr, tr, sink); err != nil {
			return x.broken(s, err, "entry "+clip(hdr.Name))
		}
		last = hdr
	}
	switch n, err := io.Copy(io.Discard, io.LimitReader(s, maxTrailing+1)); {
	case err != nil:
		return x.broken(s, err, "after the end")
	case n > maxTrailing:
		return errdefs.Invalid("layer %s: more than %d bytes follow the end of the tar", x.layer, maxTrailing)
	}
	return nil
}

// broken says where in the layer an error has come up. What the stream has met comes
// before what others make of it.
func (x *index) broken(s *stream, err error, where string) error {
	if s.failed != nil {
		err = s.failed
	}
	return errdefs.Wrap(err, "layer %s: %s", x.layer, where)
}

// malformed is an error of the tar reader.
func malformed(err error) error {
	if errors.Is(err, tar.ErrFieldTooLong) {
		return errdefs.Invalid("names or attributes of more than 1 MiB: %w", err)
	}
	return errdefs.Invalid("%w", err)
}

// content is a file's, and remembers what came instead.
type content struct {
	io.Reader
	err error
}

func (c *content) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	if err != nil && err != io.EOF {
		c.err = err
	}
	return n, err
}

// entry adds what is at a header, if it is anything.
func (x *index) entry(ctx context.Context, hdr *tar.Header, r io.Reader, sink Sink) error {
	if err := x.budget.entry(); err != nil {
		return err
	}
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := cleanPath(hdr.Name)
	if err != nil {
		return err
	}
	if name == "" {
		return nil // the root
	}
	dir, base := path.Split(name)
	rec := record{}
	if rec.dir, err = x.dir(strings.TrimSuffix(dir, "/")); err != nil {
		return err
	}
	base, rec.kind, err = whiteouts(base)
	if err != nil {
		return err
	}
	if len(base) > maxName {
		return errdefs.Invalid("a name of %d bytes", len(base))
	}
	if rec.name, err = x.intern.keep(base); err != nil {
		return err
	}
	if rec.kind != put {
		x.add(rec)
		return nil
	}
	if hdr.Typeflag == tar.TypeLink {
		rec.kind = link
	}
	if rec.inode, err = x.inode(hdr); err != nil {
		return err
	}
	// The record comes first: whatever happens then, the content has an owner.
	x.add(rec)
	if !isFile(hdr) || hdr.Size == 0 {
		return nil
	}
	if err := x.budget.content(hdr.Size); err != nil {
		return err
	}
	c := &content{Reader: r}
	data, err := sink.Write(ctx, c, hdr.Size)
	if err == nil {
		rec.inode.Data = data
	}
	switch {
	case c.err != nil:
		return malformed(c.err)
	case err == nil && data.Size() != hdr.Size:
		return errdefs.Internal("stored %d bytes of %d", data.Size(), hdr.Size)
	}
	return err
}

const (
	whiteoutPrefix = ".wh."
	metaPrefix     = whiteoutPrefix + whiteoutPrefix
	opaqueName     = metaPrefix + ".opq"
)

// whiteouts says what the last component of a path does, and to which name.
func whiteouts(base string) (string, kind, error) {
	switch name, ok := strings.CutPrefix(base, whiteoutPrefix); {
	case base == opaqueName:
		return "", opaque, nil
	case !ok, strings.HasPrefix(base, metaPrefix):
		return base, put, nil
	case name == "", name == ".", name == "..":
		return "", 0, errdefs.Invalid("a whiteout of no name")
	default:
		return name, whiteout, nil
	}
}

// cleanPath returns a path of an image without its leading "/", "" for the root.
func cleanPath(name string) (string, error) {
	switch {
	case strings.IndexByte(name, 0) >= 0:
		return "", errdefs.Invalid("a path with a NUL")
	case len(name) > maxPath:
		return "", errdefs.Invalid("a path of %d bytes", len(name))
	}
	clean := strings.TrimLeft(path.Clean(name), "/")
	switch {
	case clean == ".":
		return "", nil
	case clean == "..", strings.HasPrefix(clean, "../"):
		return "", errdefs.Invalid("the path %s leads out of the image", clip(name))
	}
	return clean, nil
}
