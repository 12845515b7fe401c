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

// shownACL is the reverse of storedACL.
func shownACL(p []byte) (string, error) {
	if len(p) < aclHeader || le.Uint32(p) != diskACL {
		return "", errdefs.Invalid("%d bytes are no ACL", len(p))
	}
	out := le.AppendUint32(nil, userACL)
	for p = p[aclHeader:]; len(p) > 0; {
		if len(p) < 4 {
			return "", errdefs.Invalid("an ACL is cut short")
		}
		tag, perm, id, size := le.Uint16(p), le.Uint16(p[2:]), uint32(1<<32-1), 4
		if tag == aclUser || tag == aclGroup {
			if size = aclUserEntry; len(p) < size {
				return "", errdefs.Invalid("an ACL is cut short")
			}
			id = le.Uint32(p[4:])
		}
		out = le.AppendUint32(le.AppendUint16(le.AppendUint16(out, tag), perm), id)
		p = p[size:]
	}
	// What could not be stored is not believed either.
	if _, _, err := storedACL(string(out)); err != nil {
		return "", err
	}
	return string(out), nil
}
