package ociwrite

import (
	"archive/tar"
	"context"
	"io"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/daemon/ext4"
	"banger/internal/errdefs"
)

const (
	xattrRecord = "SCHILY.xattr."
	whiteout    = ".wh."
	lostFound   = "lost+found"
)

// tarWriter writes the names of a filesystem as the entries of a layer.
type tarWriter struct {
	ctx     context.Context
	w       *tar.Writer
	o       Options
	entries int64
	bytes   int64
	sockets int64
	skipped string            // the directory that is left out at present, with a slash
	lost    *tar.Header       // an empty lost+found, until something is found in it
	moved   map[string]string // where the first name of an inode is left out: its next one, or ""
}

// writeTar writes the layer, and says how many sockets were left out.
func writeTar(ctx context.Context, out io.Writer, fsys *ext4.FS, o Options) (sockets int64, err error) {
	t := &tarWriter{ctx: ctx, w: tar.NewWriter(out), o: o, moved: map[string]string{}}
	if err := fsys.Walk(ctx, t.entry); err != nil {
		return 0, err
	}
	return t.sockets, t.w.Close()
}

func (t *tarWriter) entry(e *ext4.Entry) error {
	if e.Path == "" {
		return nil
	}
	return errdefs.Wrap(t.write(e), "%.300q", "/"+e.Path)
}

func (t *tarWriter) write(e *ext4.Entry) error {
	kind := e.Mode & unix.S_IFMT
	if t.skip(e, kind) {
		if e.Link == "" && kind != unix.S_IFDIR {
			t.moved[e.Path] = ""
		}
		return nil
	}
	if kind == unix.S_IFSOCK {
		t.sockets++
		return nil
	}
	if strings.HasPrefix(path.Base(e.Path), whiteout) {
		return errdefs.Unsupported("a file of that name would remove another one when the image is unpacked").
			WithHint("remove or rename it in the VM")
	}
	h, err := t.header(e, kind)
	if err != nil {
		return err
	}
	if e.Path == lostFound && kind == unix.S_IFDIR {
		t.lost = h
		return nil
	}
	if t.lost != nil && strings.HasPrefix(e.Path, lostFound+"/") {
		lost := t.lost
		t.lost = nil
		if err := t.put(lost); err != nil {
			return err
		}
	}
	if err := t.put(h); err != nil {
		return err
	}
	if h.Typeflag != tar.TypeReg || h.Size == 0 {
		return nil
	}
	return e.WriteContent(t.ctx, t.w)
}

// skip says whether a name is left out.
func (t *tarWriter) skip(e *ext4.Entry, kind uint32) bool {
	if t.skipped != "" && strings.HasPrefix(e.Path, t.skipped) {
		return true
	}
	if t.o.Skip == nil || !t.o.Skip(e.Path) {
		return false
	}
	if kind == unix.S_IFDIR {
		t.skipped = e.Path + "/"
	}
	return true
}

// put writes an entry, within the limits.
func (t *tarWriter) put(h *tar.Header) error {
	if t.entries++; t.entries > t.o.Limits.Entries {
		return errdefs.Exhausted("the image has more than %d files", t.o.Limits.Entries)
	}
	const overhead = 512
	if h.Size > t.o.Limits.Bytes-t.bytes-overhead {
		return errdefs.Exhausted("with this file of %d bytes the image has more than %d, holes included", h.Size, t.o.Limits.Bytes)
	}
	t.bytes += h.Size + overhead
	return t.w.WriteHeader(h)
}

// header makes the header of an entry. All are PAX's, and say nothing of when a file was
// read or changed.
func (t *tarWriter) header(e *ext4.Entry, kind uint32) (*tar.Header, error) {
	h := &tar.Header{
		Format: tar.FormatPAX, Name: e.Path, Mode: int64(e.Mode & 0o7777), Uid: int(e.UID), Gid: int(e.GID),
		ModTime: time.Unix(e.MTime.Sec, int64(e.MTime.Nsec)),
	}
	link := e.Link
	if to, moved := t.moved[link]; moved {
		if link = to; to == "" {
			t.moved[e.Link] = e.Path // this is the first one that is kept
		}
	}
	if link != "" {
		h.Typeflag, h.Linkname = tar.TypeLink, link
		return h, nil // its attributes are the first one's
	}
	switch kind {
	case unix.S_IFREG:
		h.Typeflag, h.Size = tar.TypeReg, e.Size
	case unix.S_IFDIR:
		h.Typeflag = tar.TypeDir
		h.Name += "/"
	case unix.S_IFLNK:
		h.Typeflag, h.Linkname = tar.TypeSymlink, e.Target
	case unix.S_IFCHR:
		h.Typeflag = tar.TypeChar
	case unix.S_IFBLK:
		h.Typeflag = tar.TypeBlock
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	}
	if kind == unix.S_IFCHR || kind == unix.S_IFBLK {
		h.Devmajor, h.Devminor = int64(e.Rdev.Major), int64(e.Rdev.Minor)
	}
	for _, x := range e.Xattrs {
		if strings.Contains(x.Name, "=") {
			return nil, errdefs.Unsupported("a layer cannot have the extended attribute %q", x.Name)
		}
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[xattrRecord+x.Name] = x.Value
	}
	return h, nil
}
