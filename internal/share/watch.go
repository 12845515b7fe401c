package share

import (
	"encoding/binary"
	"encoding/json"
	"os"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
	"banger/internal/guest"
)

// What is watched in a directory: all that may make what the guest keeps of it wrong. A
// file that is changed through memory is only heard of when it is closed.
const watched = unix.IN_CREATE | unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO |
	unix.IN_MODIFY | unix.IN_ATTRIB | unix.IN_CLOSE_WRITE | unix.IN_ONLYDIR | unix.IN_EXCL_UNLINK

const (
	nameGone  = unix.IN_DELETE | unix.IN_MOVED_FROM
	nameThere = unix.IN_CREATE | unix.IN_MOVED_TO
)

// maxChanges is how many changes go into one frame at most.
const maxChanges = 256

// watch begins to tell of changes, and returns what ends that. What the guest has looked
// into until now is not watched.
func (t *tree) watch(tell func(channel byte, frame []byte)) (stop func(), err error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, errdefs.Exhausted("watch for changes: %w", err).WithHint("raise the limit: sysctl fs.inotify.max_user_instances")
	}
	file := os.NewFile(uintptr(fd), "inotify")
	t.mu.Lock()
	t.events = fd
	t.watchLocked(t.nodes[fuse.FUSE_ROOT_ID])
	t.mu.Unlock()
	var listening sync.WaitGroup
	listening.Go(func() {
		buf := make([]byte, 64<<10)
		for {
			n, err := file.Read(buf)
			if err != nil {
				return
			}
			t.heard(buf[:n], tell)
		}
	})
	return func() {
		t.mu.Lock()
		t.events = -1
		t.mu.Unlock()
		_ = file.Close()
		listening.Wait()
	}, nil
}

// watchLocked watches a directory from now on, if it can be. The caller has the mutex.
func (t *tree) watchLocked(n *node) {
	if t.events < 0 || n.watch != 0 {
		return
	}
	wd, err := unix.InotifyAddWatch(t.events, procPath(n.fd), watched)
	if err != nil {
		t.failures.watches = true
		return
	}
	n.watch = int32(wd)
	t.watches[n.watch] = n
}

func (t *tree) unwatchLocked(n *node) {
	if n.watch == 0 {
		return
	}
	delete(t.watches, n.watch)
	if t.events >= 0 {
		_, _ = unix.InotifyRmWatch(t.events, uint32(n.watch))
	}
	n.watch = 0
}

func (t *tree) watched(n *node) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return n.watch != 0
}

// event is something that happened to a name in a directory.
type event struct {
	wd   int32
	mask uint32
	name string
}

// parse reads struct inotify_event one after another.
func parse(b []byte) []event {
	const head = 16
	var all []event
	for len(b) >= head {
		size := int(binary.NativeEndian.Uint32(b[12:]))
		if head+size > len(b) {
			break
		}
		name := b[head : head+size]
		for len(name) > 0 && name[len(name)-1] == 0 {
			name = name[:len(name)-1]
		}
		all = append(all, event{int32(binary.NativeEndian.Uint32(b)), binary.NativeEndian.Uint32(b[4:]), string(name)})
		b = b[head+size:]
	}
	return all
}

// heard looks what came of events, and tells the guest of what it did not do itself. Many
// about one name are one.
func (t *tree) heard(raw []byte, tell func(channel byte, frame []byte)) {
	type place struct {
		wd   int32
		name string
	}
	masks := map[place]uint32{}
	var order []place
	for _, e := range parse(raw) {
		if e.mask&unix.IN_Q_OVERFLOW != 0 {
			t.lostCount(tell)
			return
		}
		if e.name == "" {
			continue // about the directory itself: its parent hears of it too
		}
		p := place{e.wd, e.name}
		if masks[p] == 0 {
			order = append(order, p)
		}
		masks[p] |= e.mask
	}
	// Nothing is answered meanwhile: what was before is with the guest, which then hears
	// that it is old, and what comes after is new.
	t.answering.Lock()
	defer t.answering.Unlock()
	var changes []guest.Change
	for _, p := range order {
		frames, change := t.happened(p.wd, p.name, masks[p])
		for _, f := range frames {
			tell(guest.ChanStdin, f)
		}
		if change.Path != nil {
			changes = append(changes, change)
		}
	}
	tellChanges(changes, tell)
}

// tellChanges has the agent let programs of the guest hear of changes.
func tellChanges(changes []guest.Change, tell func(channel byte, frame []byte)) {
	for len(changes) > 0 {
		n, size := 0, 0
		for n < len(changes) && n < maxChanges && size < guest.MaxControl/2 {
			size += 2*len(changes[n].Path) + 40 // as text
			n++
		}
		data, err := json.Marshal(guest.Control{Type: guest.ControlChanged, Changes: changes[:n]})
		changes = changes[n:]
		if err == nil && len(data) <= guest.MaxControl {
			tell(guest.ChanControl, append(make([]byte, guest.FrameHeader), data...))
		}
	}
}

// happened says what the guest is to be told of a change of one name: notices for its
// kernel, and the change itself, without a path when programs there need not hear of it.
func (t *tree) happened(wd int32, name string, mask uint32) (frames [][]byte, change guest.Change) {
	t.mu.Lock()
	defer t.mu.Unlock()
	dir := t.watches[wd]
	if dir == nil || dir.fd < 0 {
		return nil, change
	}
	known := dir.known[name]
	var st syscall.Stat_t
	err := fstatat(dir.fd, name, &st)
	var there *node
	if err == nil {
		delete(dir.gone, name)
		there = t.inodes[inode{st.Dev, st.Ino}]
	}
	path, placed := t.pathLocked(dir)
	if path != "" {
		path += "/"
	}
	change = guest.Change{Path: []byte(path + name), Dir: st.Mode&syscall.S_IFMT == syscall.S_IFDIR}
	switch {
	case err != nil && known == nil:
		return nil, guest.Change{} // the guest did it, or never saw it
	case err != nil:
		delete(dir.known, name)
		if known.parent == dir && known.name == name {
			known.parent = nil
		}
		frames = [][]byte{inodeChanged(dir.id)}
		if !placed {
			return append(frames, entryDeleted(dir.id, known.id, name)), guest.Change{}
		}
		if dir.gone == nil {
			dir.gone = map[string]bool{}
		}
		dir.gone[name] = true
		change.Gone, change.Dir = true, known.kind == syscall.S_IFDIR
		return frames, change
	case there == nil || known != there:
		if mask&(nameGone|nameThere) == 0 {
			return nil, guest.Change{} // the guest does not know it
		}
		delete(dir.known, name)
		frames = [][]byte{entryChanged(dir.id, name), inodeChanged(dir.id)}
	case there.told == stampOf(&st):
		return nil, guest.Change{} // by the guest itself
	default:
		there.told = stampOf(&st)
		frames = [][]byte{inodeChanged(there.id)}
	}
	if !placed || st.Mode&syscall.S_IFMT == syscall.S_IFLNK {
		return frames, guest.Change{}
	}
	return frames, change
}

// lostCount tells the guest to ask again for all it knows.
func (t *tree) lostCount(tell func(channel byte, frame []byte)) {
	t.mu.Lock()
	var frames [][]byte
	for _, n := range t.nodes {
		frames = append(frames, inodeChanged(n.id))
		for name := range n.known {
			frames = append(frames, entryChanged(n.id, name))
		}
	}
	t.mu.Unlock()
	for _, f := range frames {
		tell(guest.ChanStdin, f)
	}
}

func fstatat(fd int, name string, st *syscall.Stat_t) error {
	var u unix.Stat_t
	if err := unix.Fstatat(fd, name, &u, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	*st = syscall.Stat_t{
		Dev: u.Dev, Ino: u.Ino, Mode: u.Mode, Size: u.Size,
		Ctim: syscall.Timespec(u.Ctim), Mtim: syscall.Timespec(u.Mtim),
	}
	return nil
}
