package ext4

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/errdefs"
)

// recipe is a string of bytes of which a tree is made.
type recipe []byte

func (r *recipe) byte() int {
	if len(*r) == 0 {
		return 0
	}
	b := (*r)[0]
	*r = (*r)[1:]
	return int(b)
}

// number has any magnitude, and often an odd one.
func (r *recipe) number() int64 {
	n := int64(r.byte()) << (r.byte() % 60)
	return n - int64(r.byte()%3)
}

// grow adds a few files of any kind to a directory, all of which can be.
func (r *recipe) grow(t *testing.T, w *Writer, d *Inode, all *[]*Inode) {
	name := strings.Repeat(string([]byte{byte(r.byte() | 0x80)}), r.byte()%200)
	for i := range r.byte() * r.byte() / 50 {
		n := &Inode{UID: uint32(r.number()), GID: uint32(r.number()), MTime: Time{r.number(), uint32(r.byte())}}
		mode := uint32(r.byte()<<4) & 0o7777
		switch kind := r.byte() % 10; kind {
		case 0, 1, 2:
			n.Mode = modeFile | mode
			r.fill(t, w, n)
		case 3, 4:
			n.Mode = modeDir | mode
			if len(*r) > 0 {
				defer r.grow(t, w, n, all)
			}
		case 5:
			n.Mode = modeLink | mode
			n.Target = strings.Repeat("t", 1+r.byte()*16%maxTarget)
		case 6:
			n.Mode = modeChar | mode
			n.Rdev = Device{uint32(r.number()) & maxMajor, uint32(r.number()) & maxMinor}
		case 7:
			n.Mode = []uint32{modeFifo, modeSocket, modeBlock}[r.byte()%3] | mode
		default:
			if n = (*all)[r.byte()%len(*all)]; n.Mode&modeType == modeDir {
				continue
			}
		}
		if kinds := r.byte(); kinds < 40 {
			for k := range kinds % 5 {
				n.Xattrs = append(n.Xattrs, Xattr{fmt.Sprintf("%s.%d%s", []string{"user", "trusted", "security"}[k%3], len(n.Xattrs), name), strings.Repeat("v", r.byte()*3)})
			}
		}
		*all = append(*all, n)
		d.Children = append(d.Children, Node{fmt.Sprint(name, i), n})
	}
}

func (r *recipe) fill(t *testing.T, w *Writer, n *Inode) {
	size := min(max(r.number(), 0), 64<<30)
	var ranges []Range
	var content []byte
	for at := int64(0); len(ranges) < r.byte()%20; {
		at += max(r.number(), 0) % (64 << 30)
		k := int64(r.byte()) * int64(r.byte())
		if at > size-k {
			break
		}
		ranges = append(ranges, Range{at, k})
		content = append(content, pattern(int(k), byte(k))...)
		if r.byte()%4 == 0 {
			clear(content)
		}
		at += k
	}
	d, err := w.WriteSparse(context.Background(), bytes.NewReader(content), size, ranges)
	if err != nil {
		t.Fatalf("%d %v: %v", size, ranges, err)
	}
	n.Data = d
	if r.byte()%5 == 0 { // as if it were hidden
		w.Free(d)
		n.Data = Data{}
	}
}

func FuzzTree(f *testing.F) {
	for seed := range 12 {
		p := make([]byte, 200*seed)
		x := uint32(seed + 1)
		for i := range p {
			x = x*1664525 + 1013904223
			p[i] = byte(x >> 24)
		}
		f.Add(p, uint16(seed*3000))
	}
	f.Fuzz(func(t *testing.T, p []byte, size uint16) {
		path := filepath.Join(t.TempDir(), "disk")
		disk, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = disk.Close() }()
		w, err := New(disk, fixed(64<<20+int64(size)*blockSize))
		if err != nil {
			t.Fatal(err)
		}
		r := recipe(p)
		root := dir()
		all := []*Inode{root}
		r.grow(t, w, root, &all)
		if err := w.Finish(context.Background(), root); err != nil {
			if errors.Is(err, errdefs.ErrUnsupported) && strings.Contains(err.Error(), "attribute") {
				return // links to one file may have added more than it can have
			}
			t.Fatal(err)
		}
		fsck(t, path)
		to := 64<<20 + int64(size)*blockSize + int64(min(len(p), 3000))<<22
		if err := errors.Join(disk.Truncate(to), Grow(disk, disk, to)); err != nil {
			t.Fatal(err)
		}
		fsck(t, path)
	})
}
