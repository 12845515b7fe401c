package tree

import (
	"archive/tar"
	"io"
	"os"
	"path"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
)

// Out packs file, which may be a directory, as a tar stream with names that begin
// with its base name. A link is followed if it is file itself, as it is on the
// host's side; those below stay links. Sockets are left out, as they are nothing without the
// program that made them. A file that shrinks while it is read is filled up with
// zeros, to keep the stream whole, and reported at the end.
func Out(file string, w io.Writer) error {
	p := packer{tw: tar.NewWriter(w), links: map[fileID]string{}}
	fd, err := unix.Open(path.Dir(file), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return pathError(err, file)
	}
	defer unix.Close(fd)
	base := path.Base(file)
	if base == "/" {
		base = "."
	}
	if err := p.add(fd, base, base, 0); err != nil {
		return pathError(err, file)
	}
	if err := p.tw.Close(); err != nil {
		return err
	}
	if p.changed != "" {
		return errdefs.Precondition("%q changed while it was copied", p.changed).
			WithHint("copy it again when nothing writes to it")
	}
	return nil
}

func pathError(err error, file string) error {
	switch err {
	case unix.ENOENT, unix.ENOTDIR:
		return errdefs.NotFound("%s: no such file in the VM", file)
	}
	return errdefs.Wrap(err, "copy %s", file)
}

// Some packs the named files and links below dest, an open descriptor, as a part of the
// tar stream of tw; prefix is put before their names. No symlink on their way is
// followed, and what is gone by now is left out. It returns the name of a file that
// shrank while it was read, if one did.
func Some(tw *tar.Writer, dest int, names []string, prefix string) (changed string, err error) {
	p := packer{tw: tw, links: map[fileID]string{}}
	d := NewDir(dest)
	defer d.Close()
	for _, name := range names {
		parent, base, err := d.enter(name)
		if err == nil {
			err = p.add(parent, base, prefix+name, unix.O_NOFOLLOW)
		}
		if err != nil && !isAbsent(err) {
			return "", errdefs.Wrap(err, "copy %s", strconv.Quote(name))
		}
	}
	return p.changed, nil
}

// fileID tells hard links to one file.
type fileID struct{ dev, ino uint64 }

// packer is one run of Out.
type packer struct {
	tw      *tar.Writer
	links   map[fileID]string
	buf     []byte
	changed string
}

// add packs what is called base in the directory dir. With nofollow, which is
// O_NOFOLLOW or 0, a link is packed as one.
func (p *packer) add(dir int, base, name string, nofollow int) error {
	var st unix.Stat_t
	flags := 0
	if nofollow != 0 {
		flags = unix.AT_SYMLINK_NOFOLLOW
	}
	if err := unix.Fstatat(dir, base, &st, flags); err != nil {
		return err
	}
	h := &tar.Header{
		Name: name, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid),
		ModTime: time.Unix(st.Mtim.Unix()),
	}
	if st.Mtim.Nsec != 0 {
		h.Format = tar.FormatPAX // the only one with fractions of a second
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		h.Typeflag, h.Name = tar.TypeDir, name+"/"
		return p.dir(dir, base, name, h, nofollow)
	case unix.S_IFLNK:
		target, err := readlinkat(dir, base)
		if err != nil {
			return err
		}
		h.Typeflag, h.Linkname = tar.TypeSymlink, target
		return p.tw.WriteHeader(h)
	case unix.S_IFSOCK:
		return nil
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
		return p.tw.WriteHeader(h)
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Typeflag = tar.TypeChar
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
		return p.tw.WriteHeader(h)
	}
	if st.Nlink > 1 {
		id := fileID{st.Dev, st.Ino}
		if first, ok := p.links[id]; ok {
			h.Typeflag, h.Linkname = tar.TypeLink, first
			return p.tw.WriteHeader(h)
		}
		p.links[id] = name
	}
	return p.file(dir, base, h, nofollow)
}

func (p *packer) dir(dir int, base, name string, h *tar.Header, nofollow int) error {
	fd, err := unix.Openat(dir, base, unix.O_RDONLY|unix.O_DIRECTORY|nofollow|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	if err := p.tw.WriteHeader(h); err != nil {
		return err
	}
	for {
		names, err := f.Readdirnames(1024)
		for _, n := range names {
			err := p.add(fd, n, path.Join(name, n), unix.O_NOFOLLOW)
			if err == unix.ENOENT {
				continue // gone since it was listed
			}
			if err != nil {
				return errdefs.Wrap(err, "copy %s", strconv.Quote(path.Join(name, n)))
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (p *packer) file(dir int, base string, h *tar.Header, nofollow int) error {
	fd, err := unix.Openat(dir, base, unix.O_RDONLY|nofollow|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return errdefs.Precondition("%q was replaced while it was copied", h.Name)
	}
	h.Typeflag, h.Size = tar.TypeReg, st.Size
	if err := p.tw.WriteHeader(h); err != nil {
		return err
	}
	if p.buf == nil {
		p.buf = make([]byte, copyChunk)
	}
	for left := st.Size; left > 0; {
		chunk := p.buf[:min(left, copyChunk)]
		n, err := unix.Read(fd, chunk)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			p.changed = h.Name
			clear(chunk)
			n = len(chunk)
		}
		if _, err := p.tw.Write(chunk[:n]); err != nil {
			return err
		}
		left -= int64(n)
	}
	return nil
}

func readlinkat(dir int, base string) (string, error) {
	for size := 256; ; size *= 2 {
		b := make([]byte, size)
		n, err := unix.Readlinkat(dir, base, b)
		if err != nil {
			return "", err
		}
		if n < size {
			return string(b[:n]), nil
		}
	}
}
