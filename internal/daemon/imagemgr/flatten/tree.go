package flatten

import (
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/daemon/ext4"
	"banger/internal/errdefs"
)

// tree is what the layers applied so far make.
type tree struct {
	root    *ext4.Inode
	sink    Sink
	budget  *budget
	dirs    map[*ext4.Inode]*dir
	links   map[*ext4.Inode]int // names of an inode, where it has more than one
	layer   uint16              // that is being applied; the lowest is 1
	epoch   uint32              // changes when a path may lead elsewhere than it did, for something is gone
	guessed bool                // the last lookup may lead elsewhere when something comes, too
	steps   int64               // components that have been looked up
	dropped int64               // extended attributes
	inodes  int64               // as counted by finish
	meta    []place             // AUFS's bookkeeping, of this layer
}

// dir is what is known of a directory besides its inode.
type dir struct {
	inode  *ext4.Inode
	parent *dir
	length int              // of its path in bytes, with a "/" before each name
	layers []uint16         // by child: the layer that has put it there
	byName map[string]int32 // where there are many children: the number of each
	swept  uint16           // the last layer in which it was opaque
}

// place is a name in a directory.
type place struct {
	dir  *dir
	name string
}

// few is up to how many children are searched one by one.
const few = 64

func newTree(sink Sink, b *budget) *tree {
	root := &ext4.Inode{Mode: unix.S_IFDIR | 0o755}
	return &tree{
		root: root, sink: sink, budget: b,
		dirs:  map[*ext4.Inode]*dir{root: {inode: root}},
		links: map[*ext4.Inode]int{},
	}
}

func typeOf(in *ext4.Inode) uint32 { return in.Mode & unix.S_IFMT }

func isDir(in *ext4.Inode) bool { return typeOf(in) == unix.S_IFDIR }

// find returns the number of a child, -1 if there is none.
func (d *dir) find(name string) int {
	if d.byName != nil {
		if i, ok := d.byName[name]; ok {
			return int(i)
		}
		return -1
	}
	for i := range d.inode.Children {
		if d.inode.Children[i].Name == name {
			return i
		}
	}
	return -1
}

// add puts in at a name that is free.
func (t *tree) add(d *dir, name string, in *ext4.Inode) error {
	if d.length+1+len(name) > maxPath {
		return errdefs.Invalid("its path has more than %d bytes once links are followed", maxPath)
	}
	if strings.HasPrefix(name, metaPrefix) {
		t.meta = append(t.meta, place{d, name})
	}
	d.inode.Children = append(d.inode.Children, ext4.Node{Name: name, Inode: in})
	d.layers = append(d.layers, t.layer)
	n := len(d.inode.Children)
	switch {
	case d.byName != nil:
		d.byName[name] = int32(n - 1)
	case n > few:
		d.byName = make(map[string]int32, n)
		for i, c := range d.inode.Children {
			d.byName[c.Name] = int32(i)
		}
	}
	if isDir(in) {
		t.dirs[in] = &dir{inode: in, parent: d, length: d.length + 1 + len(name)}
	}
	return nil
}

// remove takes away child i and all that it has. The last child gets its number.
func (t *tree) remove(d *dir, i int) {
	children := d.inode.Children
	gone, last := children[i], len(children)-1
	children[i], d.layers[i] = children[last], d.layers[last]
	children[last] = ext4.Node{}
	d.inode.Children, d.layers = children[:last], d.layers[:last]
	if d.byName != nil {
		if i != last {
			d.byName[children[i].Name] = int32(i)
		}
		delete(d.byName, gone.Name)
	}
	t.release(gone.Inode)
}

// release is for an inode that has lost a name.
func (t *tree) release(in *ext4.Inode) {
	switch typeOf(in) {
	case unix.S_IFDIR:
		for _, c := range in.Children {
			t.release(c.Inode)
		}
		delete(t.dirs, in)
		t.epoch++
	case unix.S_IFLNK:
		t.epoch++
	}
	switch n := t.links[in]; n {
	case 0:
		freeData(t.sink, in)
	case 2:
		delete(t.links, in)
	default:
		t.links[in] = n - 1
	}
}

// lookup walks a path from the root as far as it leads, through symbolic links, as the
// kernel does below a chroot. It returns the directory where it ends and what is missing
// of the path there, which is clean.
func (t *tree) lookup(p string) (*dir, string, error) {
	d := t.dirs[t.root]
	t.guessed = false
	for follow := 0; p != ""; {
		if t.steps++; t.steps > stepsPerEntry*(t.budget.entries.Load()+1000) {
			return nil, "", errdefs.Exhausted("its parents are too much work to find")
		}
		name, rest, _ := strings.Cut(p, "/")
		if name == "" || name == "." || name == ".." {
			if name == ".." && d.parent != nil {
				d = d.parent
			}
			p = rest
			continue
		}
		i := d.find(name)
		if i < 0 {
			// The kernel would not go on. Clean, what is missing can be made.
			clean := path.Clean(p)
			if clean == p {
				return d, p, nil
			}
			p, t.guessed = clean, true
			continue
		}
		in := d.inode.Children[i].Inode
		if isDir(in) {
			d, p = t.dirs[in], rest
			continue
		}
		if typeOf(in) != unix.S_IFLNK {
			return nil, "", errdefs.Invalid("its parent %s is no directory", clip(name))
		}
		if follow++; follow > maxFollow {
			return nil, "", errdefs.Invalid("its path leads through more than %d symbolic links", maxFollow)
		}
		if in.Target[0] == '/' {
			d = t.dirs[t.root]
		}
		p = in.Target + "/" + rest
		if len(p) > 2*maxPath {
			return nil, "", errdefs.Invalid("its path has more than %d bytes once links are followed", 2*maxPath)
		}
	}
	return d, "", nil
}
