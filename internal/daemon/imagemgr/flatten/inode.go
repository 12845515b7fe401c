package flatten

import (
	"archive/tar"
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/daemon/ext4"
	"banger/internal/errdefs"
)

// clip quotes what an image says for an error, and not too much of it.
func clip(s string) string {
	const most = 200
	if len(s) > most {
		return strconv.Quote(s[:most]) + "…"
	}
	return strconv.Quote(s)
}

// isFile reports whether an entry is a regular file; sparse ones come with their holes
// filled in.
func isFile(hdr *tar.Header) bool {
	return hdr.Typeflag == tar.TypeReg || hdr.Typeflag == tar.TypeGNUSparse
}

// fileType returns the type bits of an entry's mode, 0 for a hard link.
func fileType(hdr *tar.Header) (uint32, error) {
	if isFile(hdr) {
		return unix.S_IFREG, nil
	}
	switch hdr.Typeflag {
	case tar.TypeDir:
		return unix.S_IFDIR, nil
	case tar.TypeSymlink:
		return unix.S_IFLNK, nil
	case tar.TypeChar:
		return unix.S_IFCHR, nil
	case tar.TypeBlock:
		return unix.S_IFBLK, nil
	case tar.TypeFifo:
		return unix.S_IFIFO, nil
	case tar.TypeLink:
		return 0, nil
	}
	return 0, errdefs.Invalid("the type %q is unknown", hdr.Typeflag)
}

// inode returns what an entry makes, without content.
func (x *index) inode(hdr *tar.Header) (*ext4.Inode, error) {
	t, err := fileType(hdr)
	if err != nil {
		return nil, err
	}
	if uint64(hdr.Uid) > maxID || uint64(hdr.Gid) > maxID {
		return nil, errdefs.Invalid("the owner %d:%d is out of range", hdr.Uid, hdr.Gid)
	}
	in := &ext4.Inode{
		Mode:  t | uint32(hdr.Mode)&0o7777,
		UID:   uint32(hdr.Uid),
		GID:   uint32(hdr.Gid),
		MTime: bound(hdr.ModTime),
	}
	switch hdr.Typeflag {
	case tar.TypeSymlink:
		in.Mode = t | 0o777 // whatever the header says, as links have it
		if err := checkTarget(hdr.Linkname); err != nil {
			return nil, err
		}
		in.Target, err = x.intern.keep(hdr.Linkname)
	case tar.TypeLink:
		var target string
		if target, err = cleanPath(hdr.Linkname); err != nil {
			return nil, errdefs.Wrap(err, "target of the hard link")
		}
		in.Target, err = x.intern.keep(target)
	case tar.TypeChar, tar.TypeBlock:
		if uint64(hdr.Devmajor) > maxMajor || uint64(hdr.Devminor) > maxMinor {
			return nil, errdefs.Invalid("the device %d:%d is out of range", hdr.Devmajor, hdr.Devminor)
		}
		in.Rdev = ext4.Device{Major: uint32(hdr.Devmajor), Minor: uint32(hdr.Devminor)}
	}
	if err != nil {
		return nil, err
	}
	if in.Xattrs, err = x.xattrs(hdr, t); err != nil {
		return nil, err
	}
	if t != 0 {
		settleACL(in)
	}
	return in, nil
}

// checkTarget refuses what the kernel takes for the target of no symbolic link.
func checkTarget(target string) error {
	switch {
	case target == "":
		return errdefs.Invalid("a symbolic link to nothing")
	case len(target) > maxPath:
		return errdefs.Invalid("the target of the link has %d bytes", len(target))
	case strings.IndexByte(target, 0) >= 0:
		return errdefs.Invalid("the target of the link has a NUL")
	}
	return nil
}

func bound(t time.Time) ext4.Time {
	if s := t.Unix(); s < minTime || s > maxTime {
		return ext4.Time{}
	}
	return ext4.Time{Sec: t.Unix(), Nsec: uint32(t.Nanosecond())}
}

const xattrRecord = "SCHILY.xattr."

// canHave reports whether an inode of type t may have an extended attribute; t is 0 if
// that is not known yet.
func canHave(name string, t uint32) bool {
	switch {
	case strings.HasPrefix(name, "security."):
		return true
	case strings.HasPrefix(name, "user."):
		return t == unix.S_IFREG || t == unix.S_IFDIR || t == 0
	}
	return (name == accessACL || name == defaultACL) && t != unix.S_IFLNK
}

// xattrs returns the extended attributes of an entry that what it makes can have, by name.
func (x *index) xattrs(hdr *tar.Header, t uint32) ([]ext4.Xattr, error) {
	var all []ext4.Xattr
	for key, value := range hdr.PAXRecords {
		name, ok := strings.CutPrefix(key, xattrRecord)
		if !ok {
			continue
		}
		if !canHave(name, t) {
			x.dropped++
			continue
		}
		if err := checkXattr(name, value, t); err != nil {
			return nil, err
		}
		all = append(all, ext4.Xattr{Name: name, Value: value})
	}
	if len(all) > maxXattrs {
		return nil, errdefs.Exhausted("%d extended attributes, more than %d", len(all), maxXattrs)
	}
	for i, a := range all {
		var err error
		if all[i].Name, err = x.intern.keep(a.Name); err != nil {
			return nil, err
		}
		if all[i].Value, err = x.intern.keep(a.Value); err != nil {
			return nil, err
		}
	}
	byName := func(a, b ext4.Xattr) int { return cmp.Compare(a.Name, b.Name) }
	slices.SortFunc(all, byName)
	return slices.Clip(all), nil
}

func checkXattr(name, value string, t uint32) error {
	switch {
	case len(name) > maxXattrName:
		return errdefs.Invalid("an extended attribute's name has %d bytes", len(name))
	case strings.HasSuffix(name, ".") && strings.Count(name, ".") == 1:
		return errdefs.Invalid("the extended attribute %s has no name", clip(name))
	case len(value) > maxXattrValue:
		return errdefs.Invalid("the extended attribute %s has %d bytes", clip(name), len(value))
	case name == defaultACL && t != unix.S_IFDIR:
		return errdefs.Invalid("a default ACL of what is no directory")
	case (name == accessACL || name == defaultACL) && !isACL(value):
		return errdefs.Invalid("the ACL %s is malformed", clip(name))
	}
	return nil
}
