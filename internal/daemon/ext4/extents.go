package ext4

import "context"

const (
	extentMagic = 0xf30a
	maxExtent   = 32768 // blocks
	inodeFits   = 4     // entries of an extent tree's root
	blockFits   = (blockSize - 12 - 4) / 12
)

// node is an entry of an extent tree: a run of blocks, or a block with more entries.
type node struct {
	logical uint32
	n       uint32 // 0: it leads to a block with more entries
	at      uint64
}

// writeExtents writes the extent tree of d, whose root goes into the inode, and returns
// how many blocks it takes outside.
func (t *tree) writeExtents(ctx context.Context, ln *lane, d *Data, ino uint32, root []byte) (blocks uint64, err error) {
	var nodes []node
	if d.first.n > 0 {
		nodes = make([]node, 0, 1+len(d.more))
	}
	d.each(func(e extent) {
		for e.n > 0 {
			n := min(e.n, maxExtent)
			nodes = append(nodes, node{e.logical, n, e.start})
			e = extent{e.logical + n, e.n - n, e.start + uint64(n)}
		}
	})
	depth := uint16(0)
	for ; len(nodes) > inodeFits; depth++ {
		var above []node
		for len(nodes) > 0 {
			k := min(len(nodes), blockFits)
			p, at, err := ln.block(ctx)
			if err != nil {
				return 0, err
			}
			putNodes(p, nodes[:k], blockFits, depth)
			const tail = 12 + 12*blockFits
			le.PutUint32(p[tail:], crc(inodeSeed(t.w.seed, ino), p[:tail]))
			above = append(above, node{logical: nodes[0].logical, at: at})
			nodes = nodes[k:]
			blocks++
		}
		nodes = above
	}
	putNodes(root, nodes, inodeFits, depth)
	return blocks, nil
}

func putNodes(p []byte, nodes []node, fits, depth uint16) {
	le.PutUint16(p[0:], extentMagic)
	le.PutUint16(p[2:], uint16(len(nodes)))
	le.PutUint16(p[4:], fits)
	le.PutUint16(p[6:], depth)
	for i, n := range nodes {
		e := p[12+12*i:]
		le.PutUint32(e[0:], n.logical)
		if depth == 0 {
			le.PutUint16(e[4:], uint16(n.n))
			le.PutUint16(e[6:], uint16(n.at>>32))
			le.PutUint32(e[8:], uint32(n.at))
		} else {
			le.PutUint32(e[4:], uint32(n.at))
			le.PutUint16(e[8:], uint16(n.at>>32))
		}
	}
}
