package ext4

import (
	"cmp"
	"context"
	"slices"
)

const (
	dirTail  = 12 // an entry without a name, which holds the checksum
	leafSize = blockSize - dirTail

	// The index of a directory: its root has less room, for "." and "..".
	rootFits = (blockSize-32)/8 - 1 // one is the checksum's
	nodeFits = (blockSize-8)/8 - 1

	halfMD4Version = 1
	// maxDir is how many bytes entries can take, so that two levels of index are enough
	// even where every block has a gap as long as an entry.
	maxDir = rootFits * nodeFits * (leafSize - 8 - maxName)
)

// entrySize is how long the entry of a name is.
func entrySize(name string) int { return (8 + len(name) + 3) &^ 3 }

// putEntry writes a directory entry at the beginning of p, and returns what follows it.
func putEntry(p []byte, name string, size int, ino uint32, mode uint32) []byte {
	le.PutUint32(p[0:], ino)
	le.PutUint16(p[4:], uint16(size))
	p[6] = byte(len(name))
	p[7] = entryType(mode)
	copy(p[8:], name)
	return p[size:]
}

func entryType(mode uint32) byte {
	switch mode & modeType {
	case modeFile:
		return 1
	case modeDir:
		return 2
	case modeChar:
		return 3
	case modeBlock:
		return 4
	case modeFifo:
		return 5
	case modeSocket:
		return 6
	case modeLink:
		return 7
	}
	return 0
}

// hashed is a name in a directory with an index.
type hashed struct {
	hash uint32
	*Node
}

// entry is an entry of an index.
type entry struct {
	hash  uint32 // of the first name in the block
	block uint32
}

// leaf is a block of a directory, or a part of its names.
type leaf struct {
	hash  uint32
	names []hashed
}

// dirWriter writes the blocks of one directory.
type dirWriter struct {
	t    *tree
	ln   *lane
	seed uint32 // of its checksums
	data Data
}

func (t *tree) writeDir(ctx context.Context, ln *lane, n *Inode) (Data, error) {
	w := &dirWriter{t: t, ln: ln, seed: inodeSeed(t.w.seed, n.ino)}
	bytes := entrySize(".") + entrySize("..")
	for i := range n.Children {
		bytes += entrySize(n.Children[i].Name)
	}
	if bytes <= leafSize {
		p, err := w.block(ctx)
		if err != nil {
			return Data{}, err
		}
		rest := putEntry(p[:leafSize], ".", 12, n.ino, modeDir)
		last := rest
		rest = putEntry(rest, "..", 12, n.parent, modeDir)
		for i := range n.Children {
			c := &n.Children[i]
			last, rest = rest, putEntry(rest, c.Name, entrySize(c.Name), c.ino, c.Mode)
		}
		w.sealLeaf(p, last)
		return w.data, nil
	}
	return w.data, w.indexed(ctx, n)
}

// block begins the next block.
func (w *dirWriter) block(ctx context.Context) ([]byte, error) {
	p, at, err := w.ln.block(ctx)
	if err != nil {
		return nil, err
	}
	w.data.add(uint32(w.data.size/blockSize), at)
	w.data.size += blockSize
	return p, nil
}

// sealLeaf ends a block with names: the last entry reaches up to the checksum.
func (w *dirWriter) sealLeaf(p, last []byte) {
	le.PutUint16(last[4:], uint16(len(last)))
	tail := p[leafSize:]
	le.PutUint16(tail[4:], dirTail)
	tail[7] = 0xde
	le.PutUint32(tail[8:], crc(w.seed, p[:leafSize]))
}

// indexed writes a directory with an index: the root of it, the nodes below if they are
// needed, and the names by their hashes.
func (w *dirWriter) indexed(ctx context.Context, n *Inode) error {
	leaves := w.leaves(n)
	nodes := 0
	if len(leaves) > rootFits {
		nodes = (len(leaves) + nodeFits - 1) / nodeFits
	}
	index := make([]entry, len(leaves))
	for i, l := range leaves {
		index[i] = entry{l.hash, uint32(1 + nodes + i)}
	}

	p, err := w.block(ctx)
	if err != nil {
		return err
	}
	putEntry(p, ".", 12, n.ino, modeDir)
	putEntry(p[12:], "..", blockSize-12, n.parent, modeDir)
	p[28] = halfMD4Version
	p[29] = 8 // how long this part is
	if nodes == 0 {
		w.sealIndex(p, 32, index, rootFits)
	} else {
		p[30] = 1 // levels between
		top := make([]entry, nodes)
		for i := range top {
			top[i] = entry{index[i*nodeFits].hash, uint32(1 + i)}
		}
		w.sealIndex(p, 32, top, rootFits)
		for part := range slices.Chunk(index, nodeFits) {
			if p, err = w.block(ctx); err != nil {
				return err
			}
			le.PutUint16(p[4:], blockSize) // an entry without a name, for those who know no index
			w.sealIndex(p, 8, part, nodeFits)
		}
	}
	for _, l := range leaves {
		if p, err = w.block(ctx); err != nil {
			return err
		}
		rest := p[:leafSize]
		var last []byte
		for _, c := range l.names {
			last, rest = rest, putEntry(rest, c.Name, entrySize(c.Name), c.ino, c.Mode)
		}
		w.sealLeaf(p, last)
	}
	return nil
}

// leaves divides the names into blocks, in the order of their hashes.
func (w *dirWriter) leaves(n *Inode) []leaf {
	names := make([]hashed, len(n.Children))
	for i := range n.Children {
		names[i] = hashed{hash(n.Children[i].Name, w.t.w.o.HashSeed), &n.Children[i]}
	}
	slices.SortFunc(names, func(a, b hashed) int {
		return cmp.Or(cmp.Compare(a.hash, b.hash), cmp.Compare(a.Name, b.Name))
	})
	var leaves []leaf
	for len(names) > 0 {
		k, bytes := 0, 0
		for k < len(names) && bytes+entrySize(names[k].Name) <= leafSize {
			bytes += entrySize(names[k].Name)
			k++
		}
		l := leaf{names[0].hash, names[:k]}
		if len(leaves) > 0 {
			before := leaves[len(leaves)-1].names
			if before[len(before)-1].hash == l.hash {
				l.hash |= 1 // names of this hash are in the block before as well
			}
		}
		leaves, names = append(leaves, l), names[k:]
	}
	return leaves
}

// sealIndex writes the entries of an index block, which begin at at, and its checksum.
func (w *dirWriter) sealIndex(p []byte, at int, entries []entry, fits uint16) {
	for i, e := range entries {
		if i > 0 { // the first has none: limit and count are in its place
			le.PutUint32(p[at+8*i:], e.hash)
		}
		le.PutUint32(p[at+8*i+4:], e.block)
	}
	le.PutUint16(p[at:], fits)
	le.PutUint16(p[at+2:], uint16(len(entries)))
	sum := crc(w.seed, p[:at+8*len(entries)])
	// Of the tail itself all eight bytes count, with zeros for the checksum.
	tail := p[at+8*int(fits):]
	le.PutUint32(tail[4:], crc(sum, tail[:8]))
}
