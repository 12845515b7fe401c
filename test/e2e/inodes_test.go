//go:build e2e

package e2e_test

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// walkArg makes the program of these tests print what a guest's root disk holds, a line
// for each name: so a guest and the host are looked at by the same code.
const walkArg = "walk-the-root"

// sparseMark tells of large files that are mostly holes.
const sparseMark = " sparse"

// inodes are what is known of each name of a tree, by its path from the root of that.
type inodes map[string]string

// walkRoot prints the inodes of this machine's root filesystem itself, of what lies below
// mounts, too.
func walkRoot(to io.Writer) (err error) {
	runtime.LockOSThread() // and ends with this process
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	dir, err := os.MkdirTemp("/run", "walk-")
	if err != nil {
		return err
	}
	if err := unix.Mount("/", dir, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind the root: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Unmount(dir, unix.MNT_DETACH), os.Remove(dir)) }()
	all, err := inodesBelow(dir)
	w := bufio.NewWriter(to)
	for path, what := range all {
		fmt.Fprintf(w, "%s %s\n", strconv.Quote(path), what)
	}
	return errors.Join(err, w.Flush())
}

// parseInodes reads what walkRoot prints.
func parseInodes(text string) (inodes, error) {
	all := inodes{}
	for line := range strings.Lines(text) {
		quoted, err := strconv.QuotedPrefix(line)
		if err != nil {
			return nil, fmt.Errorf("line %.100q: %w", line, err)
		}
		path, err := strconv.Unquote(quoted)
		if err != nil {
			return nil, err
		}
		all[path] = strings.TrimSpace(line[len(quoted):])
	}
	return all, nil
}

// inodesBelow describes all that is below a directory: type and mode, owner, number of
// links and the first name of those, device, target, content, time and extended attributes.
func inodesBelow(root string) (inodes, error) {
	all := inodes{}
	buf := make([]byte, 256<<10)
	first := map[uint64]string{} // names of inodes with several, in the order of the walk
	err := filepath.WalkDir(root, func(name string, _ fs.DirEntry, err error) error {
		if err != nil || name == root {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(name, &st); err != nil {
			return &os.PathError{Op: "lstat", Path: name, Err: err}
		}
		path := name[len(root)+1:]
		var b strings.Builder
		fmt.Fprintf(&b, "%06o %d:%d links=%d", st.Mode, st.Uid, st.Gid, st.Nlink)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
		case unix.S_IFLNK:
			target, err := os.Readlink(name)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " -> %q", target)
		case unix.S_IFREG:
			sum, err := content(name, buf)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " size=%d sum=%.16x", st.Size, sum)
			if st.Size >= 1<<20 && st.Blocks*512 < st.Size/2 {
				b.WriteString(sparseMark)
			}
		default:
			fmt.Fprintf(&b, " device=%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR && st.Nlink > 1 {
			if first[st.Ino] == "" {
				first[st.Ino] = path
			}
			fmt.Fprintf(&b, " same=%q", first[st.Ino])
		}
		fmt.Fprintf(&b, " time=%d.%09d", st.Mtim.Sec, st.Mtim.Nsec)
		attrs, err := xattrs(name, buf)
		if err != nil {
			return err
		}
		all[path] = b.String() + attrs
		return nil
	})
	return all, err
}

// content is a hash of a file's bytes, which is the same whether or not zeros are holes,
// and takes no time for those.
// buf is room for it, a multiple of 4096 bytes.
func content(name string, buf []byte) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	const block = 4096
	h := sha256.New()
	for at := int64(0); at < info.Size(); {
		data, err := f.Seek(at, unix.SEEK_DATA)
		if errors.Is(err, syscall.ENXIO) {
			break // a hole to the end
		} else if err != nil {
			return nil, err
		}
		at = max(at, data/block*block) // in step, whatever the blocks of the filesystem are
		n, err := f.ReadAt(buf, at)
		if n == 0 || err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("read %s at %d: %w", name, at, err)
		}
		for from := 0; from < n; from += block {
			part := buf[from:min(from+block, n)]
			if !zero(part) {
				h.Write(binary.LittleEndian.AppendUint64(nil, uint64(at)+uint64(from)))
				h.Write(part)
			}
		}
		at += int64(n)
	}
	return h.Sum(nil), nil
}

func zero(p []byte) bool { return len(p) == 0 || p[0] == 0 && bytes.Equal(p[1:], p[:len(p)-1]) }

// xattrs describes the extended attributes of a name, sorted. buf is room for one.
func xattrs(name string, buf []byte) (string, error) {
	n, err := unix.Llistxattr(name, buf)
	if err != nil {
		return "", &os.PathError{Op: "listxattr", Path: name, Err: err}
	}
	names := strings.FieldsFunc(string(buf[:n]), func(r rune) bool { return r == 0 })
	slices.Sort(names)
	var b strings.Builder
	for _, a := range names {
		n, err := unix.Lgetxattr(name, a, buf)
		if err != nil {
			return "", &os.PathError{Op: "getxattr " + a, Path: name, Err: err}
		}
		fmt.Fprintf(&b, " %s=%x", a, buf[:n])
	}
	return b.String(), nil
}
