package ext4

import (
	"context"
	"slices"
	"strings"

	"banger/internal/errdefs"
)

// Types of files, as Mode has them.
const (
	modeType   = 0o170000
	modeSocket = 0o140000
	modeLink   = 0o120000
	modeFile   = 0o100000
	modeBlock  = 0o060000
	modeDir    = 0o040000
	modeChar   = 0o020000
	modeFifo   = 0o010000
)

const (
	maxLinks   = 65000
	maxName    = 255
	maxTarget  = blockSize - 1
	maxMajor   = 1<<12 - 1
	maxMinor   = 1<<20 - 1
	lostFound  = "lost+found"
	checkEvery = 1024 // inodes; how often a context is looked at
)

// tree is a tree that is checked and numbered.
type tree struct {
	w      *Writer
	order  []*Inode               // the root, then those from firstIno on
	dirs   []uint32               // by group, how many of its inodes are directories
	live   []*bitmap              // by group, blocks with content of files
	shared map[[32]byte]*attrRefs // blocks of extended attributes, by their content
}

// level is a directory on the way to where number is.
type level struct {
	dir  *Inode
	next int // of its children
}

// number checks the tree, which may be as deep as it likes, and numbers its inodes: those
// in one directory in a row.
func (w *Writer) number(ctx context.Context, root *Inode) (*tree, error) {
	if root == nil || root.Mode&modeType != modeDir {
		return nil, errdefs.Invalid("the root of a filesystem must be a directory")
	}
	t := &tree{w: w, live: make([]*bitmap, w.l.groups), dirs: make([]uint32, w.l.groups), shared: map[[32]byte]*attrRefs{}}
	if !slices.ContainsFunc(root.Children, func(n Node) bool { return n.Name == lostFound }) {
		lost := &Inode{Mode: modeDir | 0o700, MTime: w.o.Now}
		root.Children = append(root.Children, Node{lostFound, lost})
	}
	if err := t.add(root, rootIno); err != nil {
		return nil, errdefs.Wrap(err, "/")
	}
	var stack []level
	push := func(dir *Inode) error {
		stack = append(stack, level{dir: dir})
		if name, err := t.children(dir); err != nil {
			return errdefs.Wrap(err, "%q", pathOf(stack, name))
		}
		return ctx.Err()
	}
	if err := push(root); err != nil {
		return nil, err
	}
	for len(stack) > 0 {
		top := &stack[len(stack)-1]
		if top.next == len(top.dir.Children) {
			stack = stack[:len(stack)-1]
			continue
		}
		child := top.dir.Children[top.next].Inode
		top.next++
		if child.Mode&modeType == modeDir {
			if err := push(child); err != nil {
				return nil, err
			}
		}
	}
	return t, nil
}

// pathOf names a child of the last directory, or that itself.
func pathOf(stack []level, name string) string {
	var b strings.Builder
	for _, l := range stack[:len(stack)-1] {
		b.WriteString("/" + l.dir.Children[l.next-1].Name)
	}
	if name != "" || b.Len() == 0 {
		b.WriteString("/" + name)
	}
	return b.String()
}

// children sorts, checks and numbers what is in a directory. With an error comes the name
// that it is about, or none.
func (t *tree) children(dir *Inode) (string, error) {
	slices.SortFunc(dir.Children, func(a, b Node) int { return strings.Compare(a.Name, b.Name) })
	bytes, last := 0, ""
	for _, c := range dir.Children {
		switch {
		case c.Inode == nil:
			return c.Name, errdefs.Internal("has no inode")
		case c.Name == "" || c.Name == "." || c.Name == ".." || len(c.Name) > maxName || strings.ContainsAny(c.Name, "/\x00"):
			return c.Name, errdefs.Invalid("a file cannot have that name")
		case c.Name == last:
			return c.Name, errdefs.Invalid("is there twice")
		}
		last = c.Name
		bytes += entrySize(c.Name)
	}
	if bytes > maxDir {
		return "", errdefs.Unsupported("the directory is too large: its names take %d bytes, and may take %d", bytes, maxDir)
	}
	if dir.ino == rootIno { // fsck's has a number by tradition
		for _, c := range dir.Children {
			if c.Name == lostFound && c.Mode&modeType == modeDir {
				if err := t.add(c.Inode, t.next()); err != nil {
					return c.Name, err
				}
				c.parent = rootIno
			}
		}
	}
	for _, c := range dir.Children {
		isDir := c.Mode&modeType == modeDir
		switch {
		case !t.has(c.Inode):
			if err := t.add(c.Inode, t.next()); err != nil {
				return c.Name, err
			}
		case isDir && (c.ino != firstIno || c.Name != lostFound || dir.ino != rootIno):
			return c.Name, errdefs.Invalid("a directory cannot have two names")
		case !isDir && c.links == maxLinks:
			return c.Name, errdefs.Unsupported("a file cannot have more than %d names", maxLinks)
		case !isDir:
			c.links++
		}
		if isDir {
			c.parent = dir.ino
			dir.links++
		}
	}
	return "", nil
}

// next is the number of the next inode.
func (t *tree) next() uint32 { return firstIno + uint32(len(t.order)) - 1 }

// has says whether the inode is numbered. What number it had from another Writer does
// not count.
func (t *tree) has(n *Inode) bool {
	i := int64(n.ino) - firstIno + 1
	if n.ino == rootIno {
		i = 0
	}
	return i >= 0 && i < int64(len(t.order)) && t.order[i] == n
}

// add checks an inode and numbers it.
func (t *tree) add(n *Inode, ino uint32) error {
	if all := uint64(t.w.l.groups) * uint64(t.w.l.inodes); uint64(ino) > all {
		return errdefs.Exhausted("%w: it has %d inodes, and the tree has more", ErrFull, all).WithHint("make the disk larger")
	}
	n.ino, n.links, n.parent = ino, 1, 0
	t.order = append(t.order, n)
	if n.Mode > 0o177777 {
		return errdefs.Invalid("mode %#o has unknown bits", n.Mode)
	}
	if n.MTime.Nsec >= 1e9 {
		return errdefs.Invalid("a second does not have %d nanoseconds", n.MTime.Nsec)
	}
	switch n.Mode & modeType {
	case modeDir:
		n.links, n.parent = 2, ino // the root's; the others are told
		t.dirs[(ino-1)/t.w.l.inodes]++
	case modeFile:
		if err := t.claim(&n.Data); err != nil {
			return err
		}
	case modeLink:
		if n.Target == "" || len(n.Target) > maxTarget || strings.Contains(n.Target, "\x00") {
			return errdefs.Invalid("a symbolic link cannot have a target of %d bytes, or one with a NUL", len(n.Target))
		}
	case modeChar, modeBlock:
		if n.Rdev.Major > maxMajor || n.Rdev.Minor > maxMinor {
			return errdefs.Invalid("device %d:%d: the numbers can be up to %d:%d", n.Rdev.Major, n.Rdev.Minor, maxMajor, maxMinor)
		}
	case modeFifo, modeSocket:
	default:
		return errdefs.Invalid("mode %#o says no type that is known", n.Mode)
	}
	return t.countAttrs(n)
}

// claim notes the blocks of a file. They must be taken, and by this file alone.
func (t *tree) claim(d *Data) error {
	ok := true
	d.each(func(e extent) {
		for g, part := range parts(e.start, uint64(e.n)) {
			if g >= t.w.l.groups || t.w.space.groups[g].used == nil || part.from < t.w.l.fixed(g) || !t.w.space.groups[g].used.all(part.from, part.to) {
				ok = false
				return
			}
			if t.live[g] == nil {
				t.live[g] = &bitmap{}
			}
			ok = ok && !t.live[g].any(part.from, part.to)
			t.live[g].set(part.from, part.to)
		}
	})
	if !ok {
		return errdefs.Internal("its content is not there any more, or another file's as well")
	}
	return nil
}
