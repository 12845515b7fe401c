package ext4

import (
	"cmp"
	"context"
	"crypto/sha256"
	"slices"
	"strings"

	"banger/internal/errdefs"
)

const (
	attrMagic   = 0xea020000
	attrHeader  = 32 // of a block
	attrEntry   = 16 // without the name
	attrEnd     = 4  // zeros after the last entry
	attrMaxRefs = 1024

	inlineRoom = inodeSize - inlineAt - 4 // after the magic number
)

// Prefixes of names, as ext4 numbers them. What it cannot store is not there.
const (
	attrUser       = 1
	attrACL        = 2
	attrDefaultACL = 3
	attrTrusted    = 4
	attrSecurity   = 6

	aclName        = "system.posix_acl_access"
	defaultACLName = "system.posix_acl_default"
)

var attrKinds = map[string]uint8{"user": attrUser, "trusted": attrTrusted, "security": attrSecurity}

// attr is an extended attribute as it is stored.
type attr struct {
	index       uint8
	name, value string // without the prefix
	whole       string // name
}

func (a *attr) entrySize() int { return attrEntry + (len(a.name)+3)&^3 }
func (a *attr) valueSize() int { return (len(a.value) + 3) &^ 3 }
func (a *attr) size() int      { return a.entrySize() + a.valueSize() }

// attrRefs is a block of attributes that several inodes may share.
type attrRefs struct {
	more uint32 // inodes that are to have it, but for those of the present block
	left uint32 // of these, that have not got it
	at   uint64 // the present block
}

// attrs returns an inode's attributes in the order that ext4 wants, divided into those in
// the inode and those in a block.
func attrs(n *Inode) (inline, outside []attr, err error) {
	all := make([]attr, 0, len(n.Xattrs))
	names := make(map[string]bool, len(n.Xattrs))
	for _, x := range n.Xattrs {
		if names[x.Name] {
			return nil, nil, errdefs.Invalid("extended attribute %q is there twice", x.Name)
		}
		names[x.Name] = true
		a, ok, err := storedAttr(n, x)
		if err != nil {
			return nil, nil, errdefs.Wrap(err, "extended attribute %q", x.Name)
		}
		if ok {
			all = append(all, a)
		}
	}
	slices.SortFunc(all, func(a, b attr) int {
		return cmp.Or(cmp.Compare(a.index, b.index), cmp.Compare(len(a.name), len(b.name)), strings.Compare(a.name, b.name))
	})
	room, outer := inlineRoom-attrEnd, blockSize-attrHeader-attrEnd
	for _, a := range all {
		switch {
		case a.size() <= room:
			room -= a.size()
			inline = append(inline, a)
		case a.size() <= outer:
			outer -= a.size()
			outside = append(outside, a)
		default:
			return nil, nil, errdefs.Unsupported("extended attribute %q of %d bytes does not fit: all of a file's have room in a block of %d",
				a.whole, len(a.value), blockSize)
		}
	}
	return inline, outside, nil
}

// storedAttr translates an attribute. There is none to store when ok is false.
func storedAttr(n *Inode, x Xattr) (a attr, ok bool, err error) {
	switch x.Name {
	case aclName:
		value, ok, err := storedACL(x.Value)
		return attr{attrACL, "", value, x.Name}, ok, err
	case defaultACLName:
		if n.Mode&modeType != modeDir {
			return attr{}, false, errdefs.Invalid("only a directory can have it")
		}
		value, _, err := storedACL(x.Value)
		return attr{attrDefaultACL, "", value, x.Name}, value != "", err
	}
	prefix, name, _ := strings.Cut(x.Name, ".")
	index, known := attrKinds[prefix]
	switch {
	case !known:
		return attr{}, false, errdefs.Unsupported("ext4 has no attributes of that kind")
	case name == "" || len(x.Name) > maxName || strings.Contains(name, "\x00"):
		return attr{}, false, errdefs.Invalid("an attribute cannot have that name")
	}
	return attr{index, name, x.Value, x.Name}, true, nil
}

// countAttrs checks an inode's attributes, and notes those for which there must be a
// block.
func (t *tree) countAttrs(n *Inode) error {
	if len(n.Xattrs) == 0 {
		return nil
	}
	_, outside, err := attrs(n)
	if err != nil || len(outside) == 0 {
		return err
	}
	var p [blockSize]byte
	putAttrBlock(p[:], outside)
	key := sha256.Sum256(p[:])
	if t.shared[key] == nil {
		t.shared[key] = &attrRefs{}
	}
	t.shared[key].more++
	return nil
}

// writeAttrs writes an inode's attributes: what fits into p, the end of the inode, and
// the rest into a block, which is at.
func (t *tree) writeAttrs(ctx context.Context, ln *lane, n *Inode, p []byte) (at uint64, err error) {
	inline, outside, err := attrs(n)
	if err != nil {
		return 0, err
	}
	if len(inline) > 0 {
		le.PutUint32(p, attrMagic)
		putAttrs(p[4:], p[4:], inline, nil)
	}
	if len(outside) == 0 {
		return 0, nil
	}
	var block [blockSize]byte
	putAttrBlock(block[:], outside)
	refs := t.shared[sha256.Sum256(block[:])]
	if refs.left == 0 {
		refs.left = min(refs.more, attrMaxRefs)
		refs.more -= refs.left
		p, at, err := ln.block(ctx)
		if err != nil {
			return 0, err
		}
		copy(p, block[:])
		le.PutUint32(p[4:], refs.left)
		le.PutUint32(p[16:], crc(crcLong(t.w.seed, at), p))
		refs.at = at
	}
	refs.left--
	return refs.at, nil
}

// putAttrBlock writes a block of attributes, without the count of those who share it and
// the checksum.
func putAttrBlock(p []byte, attrs []attr) {
	le.PutUint32(p[0:], attrMagic)
	le.PutUint32(p[8:], 1) // blocks
	var sum uint32
	putAttrs(p[attrHeader:], p, attrs, func(entry uint32) { sum = sum<<16 ^ sum>>16 ^ entry })
	le.PutUint32(p[12:], sum)
}

// putAttrs writes entries from the beginning of p, and values from its end; these are
// found by where they are in base. In blocks entries have hashes, which hashed is told.
func putAttrs(p, base []byte, attrs []attr, hashed func(uint32)) {
	end := len(base)
	for i := range attrs {
		a := &attrs[i]
		p[0] = byte(len(a.name))
		p[1] = a.index
		le.PutUint32(p[8:], uint32(len(a.value)))
		copy(p[attrEntry:], a.name)
		if a.value != "" {
			end -= a.valueSize()
			le.PutUint16(p[2:], uint16(end))
			copy(base[end:], a.value)
		}
		if hashed != nil {
			h := attrHash(a.name, base[end:][:a.valueSize()])
			le.PutUint32(p[12:], h)
			hashed(h)
		}
		p = p[a.entrySize():]
	}
}

// attrHash is the hash of an attribute, whose value is padded.
func attrHash(name string, value []byte) (h uint32) {
	for i := range len(name) {
		h = h<<5 ^ h>>27 ^ uint32(name[i])
	}
	for ; len(value) > 0; value = value[4:] {
		h = h<<16 ^ h>>16 ^ le.Uint32(value)
	}
	return h
}
