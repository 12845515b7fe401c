package flatten

import (
	"context"
	"errors"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/daemon/ext4"
	"banger/internal/errdefs"
)

// found is a parent that has been looked up, and when.
type found struct {
	dir   *dir
	epoch uint32
}

// apply replays a layer, and lets go of its records: what they have is the tree's then.
func (t *tree) apply(ctx context.Context, x *index) error {
	t.layer++
	parents := make([]found, len(x.dirs)) // by number in x.dirs
	for i, c := range x.chunks {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		for j := range c {
			if err := t.entry(x, &c[j], &parents[c[j].dir]); err != nil {
				return errdefs.Wrap(err, "layer %s: entry %s", x.layer, clip(x.path(&c[j])))
			}
		}
		x.chunks[i] = nil
	}
	for _, m := range t.meta {
		if t.dirs[m.dir.inode] != m.dir {
			continue // went with its directory
		}
		if i := m.dir.find(m.name); i >= 0 {
			t.remove(m.dir, i)
		}
	}
	t.meta = t.meta[:0]
	return nil
}

func (t *tree) entry(x *index, r *record, parent *found) error {
	d := parent.dir
	if d == nil || parent.epoch != t.epoch {
		var err error
		if d, err = t.parent(x.dirs[r.dir]); err != nil {
			return err
		}
		if !t.guessed {
			*parent = found{d, t.epoch}
		}
	}
	if r.kind == opaque {
		t.sweep(d)
		return nil
	}
	i := d.find(r.name)
	if i >= 0 {
		old := d.inode.Children[i].Inode
		if r.kind == put && isDir(old) && isDir(r.inode) {
			if d.layers[i] == t.layer {
				r.inode.Xattrs = merge(old.Xattrs, r.inode.Xattrs)
			}
			if len(r.inode.Xattrs) > maxXattrs {
				return errdefs.Exhausted("more than %d extended attributes", maxXattrs)
			}
			old.Mode, old.UID, old.GID = r.inode.Mode, r.inode.UID, r.inode.GID
			old.MTime, old.Xattrs = r.inode.MTime, r.inode.Xattrs
			settleACL(old)
			d.layers[i] = t.layer
			return nil
		}
		t.remove(d, i)
	}
	switch r.kind {
	case put:
		return t.add(d, r.name, r.inode)
	case link:
		return t.link(d, r.name, r.inode)
	}
	return nil
}

// parent returns the directory that a path leads to; what is missing of it is made.
func (t *tree) parent(p string) (*dir, error) {
	d, missing, err := t.lookup(p)
	if err != nil {
		return nil, err
	}
	for missing != "" {
		var name string
		name, missing, _ = strings.Cut(missing, "/")
		if len(name) > maxName {
			return nil, errdefs.Invalid("its path has a name of %d bytes once links are followed", len(name))
		}
		// One entry may imply many directories.
		if err := errors.Join(t.budget.entry(), t.budget.meta(len(name))); err != nil {
			return nil, err
		}
		in := &ext4.Inode{Mode: unix.S_IFDIR | 0o755}
		if err := t.add(d, strings.Clone(name), in); err != nil {
			return nil, err
		}
		d = t.dirs[in]
	}
	return d, nil
}

// link gives the inode that entry names one more name, and entry's attributes.
func (t *tree) link(d *dir, name string, entry *ext4.Inode) error {
	to, base := path.Split(entry.Target)
	in := t.root
	if base != "" {
		from, missing, err := t.lookup(to)
		if err != nil {
			return errdefs.Wrap(err, "hard link to %s", clip(entry.Target))
		}
		i := -1
		if missing == "" {
			i = from.find(base)
		}
		if i < 0 {
			return errdefs.Invalid("hard link to %s, which is not there", clip(entry.Target))
		}
		in = from.inode.Children[i].Inode
	}
	if isDir(in) {
		return errdefs.Invalid("hard link to the directory %s", clip(entry.Target))
	}
	names := max(t.links[in], 1) + 1
	if names > maxLinks {
		return errdefs.Invalid("hard link to %s, which has %d names already", clip(entry.Target), maxLinks)
	}
	if typeOf(in) != unix.S_IFLNK {
		in.Mode = typeOf(in) | entry.Mode
	}
	in.UID, in.GID, in.MTime = entry.UID, entry.GID, entry.MTime
	more := slices.DeleteFunc(entry.Xattrs, func(a ext4.Xattr) bool { return !canHave(a.Name, typeOf(in)) })
	t.dropped += int64(len(entry.Xattrs) - len(more))
	if in.Xattrs = merge(in.Xattrs, more); len(in.Xattrs) > maxXattrs {
		return errdefs.Exhausted("more than %d extended attributes", maxXattrs)
	}
	settleACL(in)
	t.links[in] = names
	return t.add(d, name, in)
}

// merge returns old with those of more added, or in the place of their namesakes.
func merge(old, more []ext4.Xattr) []ext4.Xattr {
	if len(old) == 0 {
		return more
	}
	for _, a := range more {
		i := slices.IndexFunc(old, func(o ext4.Xattr) bool { return o.Name == a.Name })
		if i >= 0 {
			old[i].Value = a.Value
		} else {
			old = append(old, a)
		}
	}
	return old
}

// sweep takes out of d what lower layers have put there. Directories of lower layers stay
// where this one has put something into them.
func (t *tree) sweep(d *dir) {
	if d.swept == t.layer {
		return
	}
	d.swept = t.layer
	// Backwards: what remove moves to i has been looked at.
	for i := len(d.layers) - 1; i >= 0; i-- {
		in := d.inode.Children[i].Inode
		if isDir(in) {
			t.sweep(t.dirs[in])
		}
		if d.layers[i] != t.layer && len(in.Children) == 0 {
			t.remove(d, i)
		}
	}
}

// finish counts the inodes and gives back memory that is not needed any more.
func (t *tree) finish() {
	for in := range t.dirs {
		t.inodes++
		for _, c := range in.Children {
			if !isDir(c.Inode) {
				t.inodes++
			}
		}
		if cap(in.Children)-len(in.Children) > len(in.Children)/8 {
			in.Children = slices.Clip(slices.Clone(in.Children))
		}
	}
	for _, n := range t.links {
		t.inodes -= int64(n - 1)
	}
	t.dirs, t.links = nil, nil
}

// free drops the content of all that is in the tree below in.
func (t *tree) free(in *ext4.Inode) {
	freeData(t.sink, in)
	for _, c := range in.Children {
		t.free(c.Inode)
	}
}
