package record

import (
	"errors"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"banger/internal/guest/agent/tree"
	"banger/internal/guest/manifest"
)

// plan is what a put is about to change.
type plan struct {
	names []string // in order
	of    map[string]*planned
	whole int64 // see scan
	first int64
}

// planned is one name of a plan.
type planned struct {
	want    manifest.Entry // as the host has it
	was     manifest.Entry // as it was recorded, if it was
	known   bool
	pending bool // an earlier put was about to change it, and did not end
}

func (p *planned) goes() bool  { return p.want.Flags&manifest.Gone != 0 }
func (p *planned) isDir() bool { return p.want.Mode&unix.S_IFMT == unix.S_IFDIR }

// plan reads a put's plan, and what is recorded of the names in it.
func (r Records) plan(p *Put) (*plan, error) {
	l := &plan{of: map[string]*planned{}}
	err := manifest.All(p.Plan, maxEntries, func(e manifest.Entry) error {
		if err := tree.CheckName(e.Name); err != nil {
			return err
		}
		l.names = append(l.names, e.Name)
		l.of[e.Name] = &planned{want: e}
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.Sort(l.names)
	l.names = slices.Compact(l.names)
	l.whole, l.first, err = r.scan(p.ID, func(name []byte, e *manifest.Entry) {
		if known := l.of[string(name)]; known != nil {
			known.was, known.known = *e, e.Flags&manifest.Gone == 0
		}
	})
	if err != nil {
		return nil, err
	}
	r.readPending(p.ID, func(name []byte) {
		if known := l.of[string(name)]; known != nil {
			known.pending = true
		}
	})
	return l, nil
}

// conflicts lists what of the plan would overwrite or remove something that the guest
// made or changed. An entry says with Mode what the guest has, 0 for nothing.
func (l *plan) conflicts(d *tree.Dir) (all []manifest.Entry, err error) {
	for _, name := range l.names {
		p := l.of[name]
		st, there, err := d.Stat(name)
		if err != nil {
			return nil, err
		}
		bad, mode, err := l.conflict(d, name, p, &st, there)
		if err != nil {
			return nil, err
		}
		if bad != "" {
			all = append(all, manifest.Entry{Name: bad, Mode: mode})
		}
	}
	return all, nil
}

// conflict returns the name of what stands in the way of one planned entry, if anything.
func (l *plan) conflict(d *tree.Dir, name string, p *planned, st *unix.Stat_t, there bool) (bad string, mode uint32, err error) {
	isDir := there && st.Mode&unix.S_IFMT == unix.S_IFDIR
	switch {
	case !there && p.goes():
		return "", 0, nil
	case !there && d.Blocked(name):
		return l.blocker(d, name)
	case !there:
		if p.known && !p.pending && !p.isDir() {
			return name, 0, nil // removed in the guest
		}
		return "", 0, nil
	case isDir && (p.isDir() || p.goes()):
		return "", 0, nil // what is in it counts by itself
	case isDir:
		return l.stranger(d, name)
	case p.known && unchanged(d, name, &p.was, st, p.want.Hash):
		return "", 0, nil
	case !p.goes() && st.Mode&unix.S_IFMT == p.want.Mode&unix.S_IFMT && p.want.Next != 0 && st.Size == p.want.Size && d.Hash(name) == p.want.Next:
		return "", 0, nil // it is what it will be
	case p.pending:
		return "", 0, nil
	}
	return name, st.Mode, nil
}

// blocker finds what stands where a directory above name has to be. It is in nobody's
// way if it goes, or a directory takes its place, and is checked for that by itself.
func (l *plan) blocker(d *tree.Dir, name string) (string, uint32, error) {
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		st, there, err := d.Stat(dir)
		if err != nil {
			return "", 0, err
		}
		if !there || st.Mode&unix.S_IFMT == unix.S_IFDIR {
			continue
		}
		if l.of[dir] != nil {
			return "", 0, nil
		}
		return dir, st.Mode, nil
	}
	return "", 0, nil
}

// errFound ends a walk.
var errFound = errors.New("found")

// stranger finds something in a directory that is not to go, although the directory is.
func (l *plan) stranger(d *tree.Dir, dir string) (name string, mode uint32, err error) {
	err = d.Walk(dir, func(f tree.Found) (bool, error) {
		isDir := f.Stat.Mode&unix.S_IFMT == unix.S_IFDIR
		if p := l.of[f.Name]; isDir || p != nil && p.goes() {
			return true, nil
		}
		name, mode = f.Name, f.Stat.Mode
		return false, errFound
	}, nil)
	if errors.Is(err, errFound) {
		err = nil
	}
	return name, mode, err
}

// unchanged reports whether a file still is what was recorded. When its times have
// changed, its content decides, if its hash is known.
func unchanged(d *tree.Dir, name string, was *manifest.Entry, st *unix.Stat_t, hash uint64) bool {
	if st.Mode != was.Mode || st.Size != was.Size {
		return false
	}
	if st.Mtim.Nano() == was.Mtime && st.Ctim.Nano() == was.Ctime && st.Ino == was.Ino {
		return true
	}
	return hash != 0 && d.Hash(name) == hash
}

// clear removes what goes, and what is of another kind than what takes its place, and
// records that.
func (l *plan) clear(d *tree.Dir, out *recording) error {
	for _, name := range slices.Backward(l.names) { // what is in a directory comes before it
		p := l.of[name]
		if !p.goes() {
			continue
		}
		if err := d.Remove(name); err != nil {
			return err
		}
		if err := out.Add(&manifest.Entry{Name: name, Flags: manifest.Gone}); err != nil {
			return err
		}
	}
	for _, name := range l.names { // a directory's place is cleared before what goes into it
		p := l.of[name]
		if p.goes() {
			continue
		}
		st, there, err := d.Stat(name)
		if err != nil {
			return err
		}
		if !there && d.Blocked(name) {
			if err := l.unblock(d, name); err != nil {
				return err
			}
			continue
		}
		isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
		if !there || isDir == p.isDir() {
			continue
		}
		if err := d.RemoveAll(name); err != nil { // only what was agreed to is in it
			return err
		}
	}
	return nil
}

// unblock removes what stands where a directory above name has to be.
func (l *plan) unblock(d *tree.Dir, name string) error {
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		st, there, err := d.Stat(dir)
		if err != nil {
			return err
		}
		if there && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return d.RemoveAll(dir)
		}
	}
	return nil
}
