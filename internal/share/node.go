package share

import (
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// How long the guest may keep what it was told, in seconds.
const (
	keepWatched = 3600
	keepOther   = 1
)

// inode is what a file is known by as long as it is open.
type inode struct{ dev, ino uint64 }

// stamp is by what a change of a file is noticed.
type stamp struct {
	ctime syscall.Timespec
	mtime syscall.Timespec
	size  int64
}

func stampOf(st *syscall.Stat_t) stamp { return stamp{st.Ctim, st.Mtim, st.Size} }

// node is an inode that the guest knows.
type node struct {
	id   uint64
	key  inode
	kind uint32 // of S_IFMT
	fd   int    // O_PATH

	// What follows is guarded by the tree's mutex.
	lookups uint64
	users   int    // requests that work on it; its file is open as long as there are any
	parent  *node  // where it was seen last; nil for the root
	name    string // there
	known   map[string]*node
	gone    map[string]bool // names that are no more, of which the agent lets programs hear
	told    stamp           // what the guest knows of its last change, or has made
	watch   int32           // descriptor of a directory's watch; 0: there is none
}

// tree is the file system: which nodes the guest knows, and its open files.
type tree struct {
	fuse.RawFileSystem
	opts     Options
	uid, gid uint32 // of this process
	limit    int
	guest    Guest

	// answering is held for reading while a request is worked on and answered, but for
	// those that take long: see heard. Taken before mu.
	answering sync.RWMutex

	mu       sync.Mutex // guards the maps, and fields of the nodes
	nodes    map[uint64]*node
	inodes   map[inode]*node
	watches  map[int32]*node
	handles  map[uint64]*handle
	last     uint64 // number given out
	failures struct{ full, watches bool }

	events int // of inotify; -1: nobody listens
}

func newTree(fd int, o Options) (*tree, error) {
	t := &tree{
		RawFileSystem: fuse.NewDefaultRawFileSystem(), opts: o, limit: limit(),
		uid: uint32(unix.Geteuid()), gid: uint32(unix.Getegid()),
		nodes: map[uint64]*node{}, inodes: map[inode]*node{}, watches: map[int32]*node{}, handles: map[uint64]*handle{},
		last: fuse.FUSE_ROOT_ID,
	}
	t.events = -1
	var st syscall.Stat_t
	if err := syscall.Fstat(fd, &st); err != nil {
		return nil, err
	}
	root := &node{id: fuse.FUSE_ROOT_ID, key: inode{st.Dev, st.Ino}, kind: syscall.S_IFDIR, fd: fd, lookups: 1, told: stampOf(&st)}
	t.nodes[root.id], t.inodes[root.key] = root, root
	return t, nil
}

func (t *tree) String() string { return "banger" }

func (t *tree) close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, h := range t.handles {
		_ = unix.Close(h.fd)
	}
	for _, n := range t.nodes {
		_ = unix.Close(n.fd)
	}
	clear(t.nodes)
	clear(t.inodes)
	clear(t.handles)
	return nil
}

func (t *tree) notice() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.failures.full:
		return "the VM wanted to know more files at a time than this process may have open: raise the limit (ulimit -n)"
	case t.failures.watches:
		return "not every directory could be watched, so changes were seen late: raise the limit (sysctl fs.inotify.max_user_watches)"
	}
	return ""
}

// hold returns what a number stands for, and keeps it open until drop; nil when the guest
// has made it up.
func (t *tree) hold(id uint64) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.nodes[id]
	if n != nil {
		n.users++
	}
	return n
}

// holdDir is hold for a directory.
func (t *tree) holdDir(id uint64) *node {
	n := t.hold(id)
	if n != nil && n.kind != syscall.S_IFDIR {
		t.drop(n)
		return nil
	}
	return n
}

// drop ends what hold began; n may be nil.
func (t *tree) drop(n *node) {
	if n == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	n.users--
	t.shutLocked(n)
}

// shutLocked closes the file of a node that nobody knows and nobody uses any more. The
// caller has the mutex.
func (t *tree) shutLocked(n *node) {
	if n.lookups == 0 && n.users == 0 && n.fd >= 0 {
		_ = unix.Close(n.fd)
		n.fd = -1
	}
}

// plain reports whether name is one component, and leads down.
func plain(name string) bool {
	if name == "" || name == "." || name == ".." || len(name) > 255 {
		return false
	}
	for i := range len(name) {
		if name[i] == '/' || name[i] == 0 {
			return false
		}
	}
	return true
}

// lookup finds what has a name in a directory and counts that the guest knows it.
func (t *tree) lookup(parent *node, name string, out *fuse.EntryOut) fuse.Status {
	fd, err := unix.Openat(parent.fd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err == unix.EMFILE || err == unix.ENFILE {
		t.mu.Lock()
		t.failures.full = true
		t.mu.Unlock()
	}
	if err != nil {
		return errno(err)
	}
	var st syscall.Stat_t
	if err := syscall.Fstat(fd, &st); err != nil {
		_ = unix.Close(fd)
		return errno(err)
	}
	n, code := t.enter(parent, name, fd, &st)
	if !code.Ok() {
		return code
	}
	t.answerEntry(n, &st, out)
	return fuse.OK
}

// enter makes a node of an open inode, or finds the one there is and closes fd.
func (t *tree) enter(parent *node, name string, fd int, st *syscall.Stat_t) (*node, fuse.Status) {
	key := inode{st.Dev, st.Ino}
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.inodes[key]
	if n == nil {
		if len(t.nodes) >= t.limit {
			_ = unix.Close(fd)
			t.failures.full = true
			return nil, fuse.Status(syscall.ENFILE)
		}
		t.last++
		n = &node{id: t.last, key: key, kind: st.Mode & syscall.S_IFMT, fd: fd, told: stampOf(st)}
		t.nodes[n.id], t.inodes[key] = n, n
		if n.kind == syscall.S_IFDIR {
			t.watchLocked(n)
		}
	} else {
		_ = unix.Close(fd)
	}
	n.lookups++
	t.placeLocked(n, parent, name)
	return n, fuse.OK
}

// placeLocked notes where a node was seen. The caller has the mutex.
func (t *tree) placeLocked(n, parent *node, name string) {
	if n.id == fuse.FUSE_ROOT_ID {
		return
	}
	n.parent, n.name = parent, name
	if parent.known == nil {
		parent.known = map[string]*node{}
	}
	parent.known[name] = n
}

// Forget takes back what lookups counted.
func (t *tree) Forget(id, count uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.nodes[id]
	if n == nil || id == fuse.FUSE_ROOT_ID {
		return
	}
	n.lookups -= min(count, n.lookups)
	if n.lookups > 0 {
		return
	}
	delete(t.nodes, id)
	delete(t.inodes, n.key)
	if n.parent != nil && n.parent.known[n.name] == n {
		delete(n.parent.known, n.name)
	}
	for _, child := range n.known { // of which the guest still knows
		if child.parent == n {
			child.parent = nil
		}
	}
	t.unwatchLocked(n)
	t.shutLocked(n)
}

// path is where a node was seen last, below the root; false when that is not known.
func (t *tree) pathLocked(n *node) (string, bool) {
	path := ""
	for depth := 0; n.id != fuse.FUSE_ROOT_ID; depth++ {
		if n.parent == nil || depth > 4096 {
			return "", false
		}
		if path == "" {
			path = n.name
		} else {
			path = n.name + "/" + path
		}
		n = n.parent
	}
	return path, true
}

// keep is how long the guest may keep a node's name, and its attributes, in seconds.
func (t *tree) keep(n *node, st *syscall.Stat_t) (entry, attr uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	entry, attr = keepOther, keepOther
	named := n.parent != nil && n.parent.watch != 0
	if named {
		entry = keepWatched
	}
	// A file of several names may be changed by another one.
	if n.kind == syscall.S_IFDIR && n.watch != 0 || n.kind != syscall.S_IFDIR && named && st.Nlink < 2 {
		attr = keepWatched
	}
	return entry, attr
}

// answerEntry describes a node that was looked up.
func (t *tree) answerEntry(n *node, st *syscall.Stat_t, out *fuse.EntryOut) {
	*out = fuse.EntryOut{NodeId: n.id, Generation: 1}
	t.fill(st, &out.Attr)
	out.EntryValid, out.AttrValid = t.keep(n, st)
}

// note takes what nodes are like now for what the guest knows, because it has changed them
// itself. A node may be nil.
func (t *tree) note(nodes ...*node) {
	for _, n := range nodes {
		var st syscall.Stat_t
		if n == nil || syscall.Fstat(n.fd, &st) != nil {
			continue
		}
		t.mu.Lock()
		n.told = stampOf(&st)
		t.mu.Unlock()
	}
}

// answerAttr describes a node as it is now.
func (t *tree) answerAttr(n *node, out *fuse.AttrOut) fuse.Status {
	var st syscall.Stat_t
	if err := syscall.Fstat(n.fd, &st); err != nil {
		return errno(err)
	}
	t.fill(&st, &out.Attr)
	_, out.AttrValid = t.keep(n, &st)
	return fuse.OK
}

// fill makes attributes of what the kernel says, with the guest's owners.
func (t *tree) fill(st *syscall.Stat_t, out *fuse.Attr) {
	out.FromStat(st)
	out.Uid = toGuest(out.Uid, t.uid, t.guest.UID)
	out.Gid = toGuest(out.Gid, t.gid, t.guest.GID)
}

// nobody owns what belongs to somebody here who has the number of somebody there.
const nobody = 65534

func toGuest(id, ours, theirs uint32) uint32 {
	switch id {
	case ours:
		return theirs
	case theirs:
		return nobody
	}
	return id
}

// toHost is the way back.
func toHost(id, ours, theirs uint32) uint32 {
	if id == theirs {
		return ours
	}
	return id
}
