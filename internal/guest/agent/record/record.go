// Package record remembers what the host put into workspaces, as the guest's file system
// shows it, and tells what has become of it.
//
// For each workspace there is a file with an entry for everything that was put there.
// What is taken from it is an answer about the guest, and nothing else relies on it:
// whoever is root in the guest can write into it what they like.
package record

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
	"banger/internal/guest/agent/tree"
	"banger/internal/guest/manifest"
)

// Dir is where records are, in a guest.
const Dir = "/var/lib/banger/workspaces"

// maxEntries bounds a list of files.
const maxEntries = 4 << 20

// Records are those of one guest.
type Records struct {
	Dir string // made when it is needed
}

// header stands at the beginning of a record, as a line of JSON.
type header struct {
	Dest     string `json:"dest"` // absolute
	ReadOnly bool   `json:"read_only,omitempty"`
}

func (r Records) file(id string) string { return filepath.Join(r.Dir, id) }

// pending names what a put was about to change that has not ended.
func (r Records) pending(id string) string { return filepath.Join(r.Dir, id+".pending") }

// Forget removes the record of a workspace; none is no error.
func (r Records) Forget(id string) error {
	err := errors.Join(remove(r.pending(id)), remove(r.file(id)))
	return errdefs.Wrap(err, "forget workspace %s", id)
}

func remove(file string) error {
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// ReadOnly lists the directories of workspaces that nobody in the guest is to write to.
// Records that cannot be read are left out.
func (r Records) ReadOnly() (dirs []string) {
	children, err := os.ReadDir(r.Dir)
	if err != nil {
		return nil
	}
	for _, c := range children {
		if strings.Contains(c.Name(), ".") {
			continue // what is pending
		}
		if dir := r.ReadOnlyDir(c.Name()); dir != "" {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

// ReadOnlyDir is the directory of a workspace, if nobody in the guest is to write to it;
// otherwise empty.
func (r Records) ReadOnlyDir(id string) string {
	f, err := os.Open(r.file(id))
	if err != nil {
		return ""
	}
	defer f.Close()
	h, err := readHeader(bufio.NewReader(f))
	if err != nil || !h.ReadOnly {
		return ""
	}
	return h.Dest
}

func readHeader(r *bufio.Reader) (h header, err error) {
	line, err := r.ReadSlice('\n')
	if err != nil {
		return h, err
	}
	return h, json.Unmarshal(line, &h)
}

// scan calls each for the entries of a record, older ones of a name first. It returns
// how long the part of the file is that is whole, 0 when there is no record, and how long
// its first section is, which has every name once.
func (r Records) scan(id string, each func(name []byte, e *manifest.Entry)) (whole, first int64, err error) {
	f, err := os.Open(r.file(id))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, 0, nil
	}
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	counted := &counter{r: f}
	in := bufio.NewReaderSize(counted, 256<<10)
	if _, err := readHeader(in); err != nil {
		return 0, 0, nil
	}
	list := manifest.NewReader(in)
	whole = counted.n - int64(in.Buffered())
	for {
		var e manifest.Entry
		name, err := list.Next(&e)
		switch {
		case err == nil:
			each(name, &e)
		case errors.Is(err, io.EOF):
			whole = counted.n - int64(in.Buffered())
			if first == 0 {
				first = whole
			}
		default:
			return whole, first, nil // the end of the list, or of what can be read of it
		}
	}
}

type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// load returns the record of a workspace; nil when there is none.
func (r Records) load(id string) (map[string]manifest.Entry, error) {
	all := map[string]manifest.Entry{}
	whole, _, err := r.scan(id, func(name []byte, e *manifest.Entry) {
		if e.Flags&manifest.Gone != 0 {
			delete(all, string(name))
			return
		}
		all[string(name)] = *e
	})
	if whole == 0 {
		return nil, err
	}
	return all, err
}

// Put is how a tree is brought into a workspace.
type Put struct {
	ID       string // of the workspace: a file name
	Dest     int    // open descriptor of the directory
	DestName string // its absolute path
	Owner    *tree.Owner
	Fresh    bool // all is sent: what was recorded is no more
	ReadOnly bool

	// Plan is a section of a manifest with what will be written, and, with the flag Gone,
	// what is to go. Hash is of what was sent before, Next of what will be.
	Plan *bufio.Reader
	// Ready is told what the guest has changed of what would be overwritten. When it
	// fails, nothing has been changed yet.
	Ready func(conflicts []manifest.Entry) error
	// Tar is the stream of what is written. It is read after Ready.
	Tar io.Reader
}

// Put brings a tree in.
func (r Records) Put(p Put) (failed error) {
	if err := os.MkdirAll(r.Dir, 0o700); err != nil {
		return errdefs.Wrap(err, "make a place for records")
	}
	d := tree.NewDir(p.Dest)
	defer d.Close()
	plan, err := r.plan(&p)
	if err != nil {
		return err
	}
	conflicts, err := plan.conflicts(d)
	if err != nil {
		return err
	}
	if err := p.Ready(conflicts); err != nil {
		return err
	}
	out, err := r.begin(&p, plan)
	if err != nil {
		return errdefs.Wrap(err, "record what is put into the workspace")
	}
	// What was written is recorded however this ends.
	defer func() {
		failed = errors.Join(failed, errdefs.Wrap(out.close(), "record what was put into the workspace"))
	}()
	if err := plan.clear(d, out); err != nil {
		return err
	}
	err = tree.InNoting(p.Dest, p.Tar, p.Owner, func(name string, st *unix.Stat_t) error {
		return out.Add(entry(name, st))
	})
	if err != nil {
		return err
	}
	return remove(r.pending(p.ID))
}

// entry is what is recorded of a file.
func entry(name string, st *unix.Stat_t) *manifest.Entry {
	return &manifest.Entry{
		Name: name, Mode: st.Mode, Size: st.Size, Mtime: st.Mtim.Nano(), Ctime: st.Ctim.Nano(), Ino: st.Ino,
	}
}

// recording is a record that is written to.
type recording struct {
	*manifest.Writer
	f *os.File
}

func (w *recording) close() error { return errors.Join(w.End(), w.f.Close()) }

// compactAt is how much longer than what it says a record may be, in bytes.
const compactAt = 4 << 20

// begin writes down what is about to change, and opens the record for what will be.
func (r Records) begin(p *Put, plan *plan) (*recording, error) {
	if err := r.writePending(p.ID, plan); err != nil {
		return nil, err
	}
	whole := plan.whole
	if whole > 0 && !p.Fresh && whole < compactAt+2*plan.first && (r.ReadOnlyDir(p.ID) != "") == p.ReadOnly {
		f, err := os.OpenFile(r.file(p.ID), os.O_WRONLY, 0o600)
		if err != nil {
			return nil, err
		}
		// An end that was cut off goes.
		err = f.Truncate(whole)
		if err == nil {
			_, err = f.Seek(whole, io.SeekStart)
		}
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		return &recording{manifest.NewWriter(f), f}, nil
	}
	var kept map[string]manifest.Entry
	if !p.Fresh {
		var err error
		if kept, err = r.load(p.ID); err != nil {
			return nil, err
		}
	}
	return r.rewrite(p, kept)
}

// rewrite begins a record anew.
func (r Records) rewrite(p *Put, kept map[string]manifest.Entry) (*recording, error) {
	head, err := json.Marshal(header{Dest: p.DestName, ReadOnly: p.ReadOnly})
	if err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(r.Dir, p.ID+".pending.*") // named so that nothing takes it for a record
	if err != nil {
		return nil, err
	}
	w := manifest.NewWriter(f)
	_, err = f.Write(append(head, '\n'))
	for _, name := range slices.Sorted(maps.Keys(kept)) {
		e := kept[name]
		e.Name = name
		err = errors.Join(err, w.Add(&e))
	}
	err = errors.Join(err, w.End(), os.Rename(f.Name(), r.file(p.ID)))
	if err != nil {
		return nil, errors.Join(err, f.Close(), remove(f.Name()))
	}
	return &recording{w, f}, nil
}

func (r Records) writePending(id string, plan *plan) error {
	f, err := os.OpenFile(r.pending(id), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	w := manifest.NewWriter(f)
	for _, name := range plan.names {
		err = errors.Join(err, w.Add(&manifest.Entry{Name: name}))
	}
	return errors.Join(err, w.End(), f.Close())
}

// readPending calls each for the names that a put was about to change that did not end.
func (r Records) readPending(id string, each func(name []byte)) {
	f, err := os.Open(r.pending(id))
	if err != nil {
		return
	}
	defer f.Close()
	list := manifest.NewReader(bufio.NewReader(f))
	for {
		var e manifest.Entry
		name, err := list.Next(&e)
		switch {
		case err == nil:
			each(name)
		case !errors.Is(err, io.EOF):
			return
		}
	}
}
