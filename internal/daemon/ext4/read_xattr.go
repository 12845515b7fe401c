package ext4

import (
	"cmp"
	"slices"
	"strings"

	"banger/internal/errdefs"
)

const attrSystem = 7 // of inline_data

// xattrs reads the extended attributes of an inode, in the order of their names.
func (f *FS) xattrs(n *inode) ([]Xattr, error) {
	var all []Xattr
	add := func(index uint8, name string, value []byte) error {
		x, err := shownAttr(index, name, value)
		if err == nil && x.Name != "" {
			all = append(all, x)
		}
		return err
	}
	if err := n.inlineAttrs(add); err != nil {
		return nil, err
	}
	if n.attrBlock != 0 {
		p, err := f.block(n.attrBlock)
		if err != nil {
			return nil, err
		}
		if le.Uint32(p) != attrMagic || le.Uint32(p[8:]) != 1 {
			return nil, errdefs.Invalid("its block of extended attributes is damaged")
		}
		if f.sums {
			q := append([]byte(nil), p...)
			le.PutUint32(q[16:], 0)
			if crc(crcLong(f.seed, n.attrBlock), q) != le.Uint32(p[16:]) {
				return nil, errdefs.Invalid("the checksum of its extended attributes is wrong")
			}
		}
		if err := readAttrs(p[attrHeader:], p, add); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(all, func(a, b Xattr) int { return cmp.Compare(a.Name, b.Name) })
	for i := 1; i < len(all); i++ {
		if all[i].Name == all[i-1].Name {
			return nil, errdefs.Invalid("extended attribute %q is there twice", all[i].Name)
		}
	}
	return all, nil
}

// inlineAttrs visits the attributes that are in the inode.
func (n *inode) inlineAttrs(visit func(index uint8, name string, value []byte) error) error {
	at := 128 + n.extra
	if n.extra == 0 || at+4 > len(n.raw) || le.Uint32(n.raw[at:]) != attrMagic {
		return nil
	}
	return readAttrs(n.raw[at+4:], n.raw[at+4:], visit)
}

// readAttrs visits entries at the beginning of p; values are found by where they are in
// base. Together they take no more room than there is.
func readAttrs(p, base []byte, visit func(index uint8, name string, value []byte) error) error {
	bad := errdefs.Invalid("its extended attributes are damaged")
	room := len(base)
	for {
		if len(p) < attrEnd {
			return bad
		}
		if le.Uint32(p) == 0 {
			return nil
		}
		if len(p) < attrEntry || len(p) < attrEntry+int(p[0]) {
			return bad
		}
		name := string(p[attrEntry:][:p[0]])
		size, at := uint64(le.Uint32(p[8:])), int(le.Uint16(p[2:]))
		if le.Uint32(p[4:]) != 0 {
			return errdefs.Unsupported("extended attribute %q is kept in an inode of its own", name)
		}
		var value []byte
		if size > 0 {
			if at > len(base) || size > uint64(len(base)-at) || size > uint64(room) {
				return bad
			}
			room -= int(size)
			value = base[at:][:size]
		}
		if err := visit(p[1], name, value); err != nil {
			return err
		}
		p = p[min(len(p), attrEntry+(len(name)+3)&^3):]
	}
}

// shownAttr translates an attribute from its stored form; none if it is not one that user
// space sees.
func shownAttr(index uint8, name string, value []byte) (Xattr, error) {
	switch index {
	case attrACL, attrDefaultACL:
		if name != "" {
			return Xattr{}, errdefs.Invalid("an ACL is called %q", name)
		}
		s, err := shownACL(value)
		return Xattr{map[uint8]string{attrACL: aclName, attrDefaultACL: defaultACLName}[index], s}, err
	case attrSystem:
		if name == "data" {
			return Xattr{}, nil
		}
	}
	for prefix, its := range attrKinds {
		if its == index {
			if name == "" || strings.Contains(name, "\x00") {
				return Xattr{}, errdefs.Invalid("an extended attribute is called %q", name)
			}
			return Xattr{prefix + "." + name, string(value)}, nil
		}
	}
	return Xattr{}, errdefs.Unsupported("extended attribute %q is of unknown kind %d", name, index)
}
