package ext4

import "banger/internal/errdefs"

// Tags of entries of a POSIX ACL.
const (
	aclOwner     = 0x01
	aclUser      = 0x02
	aclGroupObj  = 0x04
	aclGroup     = 0x08
	aclMask      = 0x10
	aclOther     = 0x20
	userACL      = 2 // version of the form that user space sees
	diskACL      = 1 // and of the one that ext4 stores
	aclHeader    = 4
	aclUserEntry = 8
)

// storedACL translates an ACL as user space sees it to one as ext4 stores it: entries for
// the owner, the group and others have no id there. An ACL that is not valid is refused,
// by the kernel's rules. extended is false if the mode says as much.
func storedACL(value string) (stored string, extended bool, err error) {
	p := []byte(value)
	if len(p) < aclHeader || (len(p)-aclHeader)%aclUserEntry != 0 || le.Uint32(p) != userACL {
		return "", false, errdefs.Invalid("%d bytes are no ACL", len(p))
	}
	if len(p) == aclHeader {
		return "", false, nil
	}
	out := le.AppendUint32(nil, diskACL)
	seen, last := uint16(0), uint16(0)
	for p = p[aclHeader:]; len(p) > 0; p = p[aclUserEntry:] {
		tag, perm, id := le.Uint16(p), le.Uint16(p[2:]), le.Uint32(p[4:])
		named := tag == aclUser || tag == aclGroup
		switch tag {
		case aclOwner, aclUser, aclGroupObj, aclGroup, aclMask, aclOther:
		default:
			return "", false, errdefs.Invalid("the ACL has an entry of unknown kind %d", tag)
		}
		if tag < last || tag == last && !named || perm > 7 || named && id == 1<<32-1 {
			return "", false, errdefs.Invalid("the ACL has an entry that is not valid, or in the wrong place")
		}
		last, seen = tag, seen|tag
		out = le.AppendUint16(le.AppendUint16(out, tag), perm)
		if named {
			out = le.AppendUint32(out, id)
		}
	}
	const must = aclOwner | aclGroupObj | aclOther
	if seen&must != must || seen&(aclUser|aclGroup) != 0 && seen&aclMask == 0 {
		return "", false, errdefs.Invalid("the ACL lacks an entry")
	}
	return string(out), seen != must, nil
}
