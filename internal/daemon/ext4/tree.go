package ext4

// Time is a moment: seconds since 1970, which may be negative, and nanoseconds.
type Time struct {
	Sec  int64
	Nsec uint32
}

// Inode is a file of any kind. Where several names have one Inode, they are hard links.
type Inode struct {
	Mode     uint32 // type and the twelve permission bits, as the kernel has them (S_IFREG|0644)
	UID, GID uint32
	Rdev     Device // of device nodes
	MTime    Time
	Target   string  // of a symbolic link
	Data     Data    // of a regular file, as Writer.Write returned it
	Xattrs   []Xattr // by any order, no name twice
	Children []Node  // of a directory, by any order, no name twice

	ino, links uint32 // since Finish
	parent     uint32 // of a directory
}

// Device is the number of a device.
type Device struct{ Major, Minor uint32 }

// Xattr is an extended attribute by its whole name ("security.capability"). ACLs have
// the form that user space sees (system.posix_acl_access).
type Xattr struct {
	Name  string
	Value string
}

// Node is a name in a directory.
type Node struct {
	Name string // of 1 to 255 bytes, which are any but '/' and NUL
	*Inode
}
