package flatten

import (
	"encoding/binary"
	"slices"

	"banger/internal/daemon/ext4"
)

const (
	accessACL  = "system.posix_acl_access"
	defaultACL = "system.posix_acl_default"
)

// Tags of an ACL's entries, in the order in which they stand.
const (
	aclOwner = 1 << iota
	aclUser  // any number of them
	aclGroup
	aclGroups // any number of them
	aclMask   // needed where there are users or groups
	aclOther
)

// isACL reports whether value is an ACL as the kernel takes them: version 2, then
// entries of 8 bytes, which are a tag, permissions and an id. One of none is no ACL.
func isACL(value string) bool {
	b := []byte(value)
	if len(b) < 4 || len(b)%8 != 4 || binary.LittleEndian.Uint32(b) != 2 {
		return false
	}
	seen := uint16(0)
	for b = b[4:]; len(b) > 0; b = b[8:] {
		tag, perm := binary.LittleEndian.Uint16(b), binary.LittleEndian.Uint16(b[2:])
		switch {
		case tag == 0, tag&(tag-1) != 0, tag > aclOther, perm > 7:
			return false
		case seen > 2*tag-1: // a later one stood before it
			return false
		case seen&tag != 0 && tag != aclUser && tag != aclGroups:
			return false
		}
		seen |= tag
	}
	const base = aclOwner | aclGroup | aclOther
	named := seen&(aclUser|aclGroups) != 0
	return seen == 0 || seen&base == base && (!named || seen&aclMask != 0)
}

// settleACL makes an inode's ACL one that agrees with its mode, as chmod does; what the
// mode can say alone needs none.
func settleACL(in *ext4.Inode) {
	i := slices.IndexFunc(in.Xattrs, func(x ext4.Xattr) bool { return x.Name == accessACL })
	if i < 0 {
		return
	}
	b := []byte(in.Xattrs[i].Value)
	masked := false
	for e := b[4:]; len(e) > 0; e = e[8:] {
		masked = masked || e[0] == aclMask
	}
	if !masked {
		in.Xattrs = slices.Delete(in.Xattrs, i, i+1)
		return
	}
	for e := b[4:]; len(e) > 0; e = e[8:] {
		switch e[0] {
		case aclOwner:
			e[2] = byte(in.Mode >> 6 & 7)
		case aclMask:
			e[2] = byte(in.Mode >> 3 & 7)
		case aclOther:
			e[2] = byte(in.Mode & 7)
		}
	}
	if string(b) != in.Xattrs[i].Value {
		in.Xattrs[i].Value = string(b)
	}
}
