package workspace

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
	"banger/internal/guest/manifest"
)

// Sent is what was sent into a workspace: what this host believes of its own tree then.
type Sent struct {
	sentHeader
	Entries map[string]manifest.Entry
}

// sentHeader stands at the beginning of the list, as a line of JSON.
type sentHeader struct {
	Version int                   `json:"version"`
	Root    string                `json:"root"`
	Options Options               `json:"options"`
	Git     bool                  `json:"git,omitempty"`
	Repos   map[string]*RepoState `json:"repos,omitempty"` // by where they are; empty: the whole
}

const sentVersion = 1

// maxSent bounds how many files a list may have.
const maxSent = 16 << 20

// Decode reads what Encode wrote; nil for nothing, and for what another version wrote.
func Decode(b []byte) (*Sent, error) {
	if len(b) == 0 {
		return nil, nil
	}
	r := bufio.NewReaderSize(bytes.NewReader(b), 256<<10)
	line, err := r.ReadBytes('\n')
	if err != nil {
		return nil, errdefs.Invalid("read the list of what was sent: %w", err)
	}
	s := &Sent{Entries: map[string]manifest.Entry{}}
	if err := json.Unmarshal(line, &s.sentHeader); err != nil {
		return nil, errdefs.Invalid("read the list of what was sent: %w", err)
	}
	if s.Version != sentVersion {
		return nil, nil
	}
	err = manifest.All(r, maxSent, func(e manifest.Entry) error {
		s.Entries[e.Name] = e
		return nil
	})
	return s, errdefs.Wrap(err, "read the list of what was sent")
}

// Doubted is s where nothing of it is believed any more: all is sent again, and what the
// host no longer has still goes.
func (s *Sent) Doubted() *Sent {
	if s == nil {
		return nil
	}
	d := &Sent{sentHeader: s.sentHeader, Entries: make(map[string]manifest.Entry, len(s.Entries))}
	d.Repos = nil
	for name, e := range s.Entries {
		if e.Mode&unix.S_IFMT != unix.S_IFDIR {
			e.Size, e.Mtime, e.Hash = -1, 0, 0
		}
		d.Entries[name] = e
	}
	return d
}

// Top is the state of the repository; nil when it was none.
func (s *Sent) Top() *RepoState { return s.Repos[""] }

// Encode writes what is there once the tree was sent.
func (t *Tree) Encode() ([]byte, error) {
	head, err := json.Marshal(sentHeader{Version: sentVersion, Root: t.Root, Options: t.opts, Git: t.Git, Repos: t.repos})
	if err != nil {
		return nil, errdefs.Internal("encode what was sent: %w", err)
	}
	var b bytes.Buffer
	b.Write(append(head, '\n'))
	w := manifest.NewWriter(&b)
	for i := range t.entries {
		e := &t.entries[i]
		if e.name == "" {
			continue
		}
		m := manifest.Entry{Name: e.name, Mode: rawMode(e.mode), Size: e.size, Mtime: e.mtime, Ctime: e.ctime, Ino: e.ino, Hash: e.hash, Flags: e.flags}
		if err := w.Add(&m); err != nil {
			return nil, errdefs.Internal("encode what was sent: %w", err)
		}
	}
	err = w.End()
	return b.Bytes(), errdefs.Wrap(err, "encode what was sent")
}

// rawMode is the reverse of fileMode.
func rawMode(m fs.FileMode) uint32 {
	mode := uint32(m.Perm())
	switch {
	case m.IsDir():
		mode |= unix.S_IFDIR
	case m&fs.ModeSymlink != 0:
		mode |= unix.S_IFLNK
	default:
		mode |= unix.S_IFREG
	}
	if m&fs.ModeSticky != 0 {
		mode |= unix.S_ISVTX
	}
	return mode
}

// sentEntry is something that was sent before and is the same.
func sentEntry(name string, m manifest.Entry) entry {
	return entry{
		name: name, mode: fileMode(m.Mode), size: m.Size, mtime: m.Mtime, ctime: m.Ctime, ino: m.Ino,
		hash: m.Hash, flags: m.Flags, same: true, time: time.Unix(0, m.Mtime),
	}
}

// Change is what is to be done in a workspace to bring it to what the tree is.
type Change struct {
	tree *Tree
	plan []manifest.Entry
	// Files and Bytes are what is sent: how many files, and their size.
	Files int
	Bytes int64
	Gone  int // files that go
}

// Nothing reports whether there is nothing to do.
func (c *Change) Nothing() bool { return len(c.plan) == 0 }

// Entries are what is written (with the flag Added, when it was not there before), and
// what goes (Gone).
func (c *Change) Entries() []manifest.Entry { return c.plan }

// racyFor is how long after its last change a file may change again without another
// time: kernels count time in steps of some milliseconds.
const racyFor = 50 * time.Millisecond

// rehashLimit bounds how much is read of changed files before they are sent, to know
// what they will be, in bytes.
const rehashLimit = 256 << 20

// Since compares the tree with what was sent; with nil all of it is to be sent.
func (t *Tree) Since(ctx context.Context, sent *Sent) (*Change, error) {
	c := &Change{tree: t}
	if sent != nil && !sent.Options.same(t.opts) {
		sent = &Sent{Entries: sent.Entries} // what was there counts, what it was made of does not
	}
	there := make(map[string]bool, len(t.entries))
	budget := int64(0)
	if sent != nil {
		budget = rehashLimit
	}
	for i := range t.entries {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		e := &t.entries[i]
		there[e.name] = true
		if e.same || e.name == "" {
			continue
		}
		var was manifest.Entry
		known := false
		if sent != nil {
			was, known = sent.Entries[e.name]
		}
		if e.compare(&was, known, &budget, t.judged) {
			continue
		}
		if e.mtime >= t.began.Add(-racyFor).UnixNano() || e.ctime >= t.began.Add(-racyFor).UnixNano() {
			e.flags |= manifest.Racy
		}
		p := manifest.Entry{Name: e.name, Mode: rawMode(e.mode), Size: e.size, Hash: was.Hash, Next: e.hash}
		if !known {
			p.Flags = manifest.Added
		}
		if e.mode.IsRegular() {
			c.Files++
			c.Bytes += e.size
		}
		c.plan = append(c.plan, p)
	}
	if sent == nil {
		return c, nil
	}
	for name, was := range sent.Entries {
		if !there[name] {
			c.plan = append(c.plan, manifest.Entry{Name: name, Mode: was.Mode, Hash: was.Hash, Flags: manifest.Gone})
			if was.Mode&unix.S_IFMT != unix.S_IFDIR {
				c.Gone++
			}
		}
	}
	slices.SortFunc(c.plan, func(a, b manifest.Entry) int {
		switch {
		case a.Name < b.Name:
			return -1
		case a.Name > b.Name:
			return 1
		}
		return 0
	})
	return c, nil
}

// compare reports whether an entry is what was sent. It is marked so, or gets its hash.
// judged says that its flags are those of now.
func (e *entry) compare(was *manifest.Entry, known bool, budget *int64, judged bool) bool {
	carry := func() bool {
		e.same, e.hash = true, was.Hash
		if !judged {
			e.flags |= was.Flags & manifest.Dirty
		}
		return true
	}
	if e.data != nil {
		e.hash = xxhash.Sum64(e.data)
		if known && was.Mode == rawMode(e.mode) && was.Hash == e.hash {
			return carry()
		}
		return false
	}
	if !known || was.Mode&unix.S_IFMT != rawMode(e.mode)&unix.S_IFMT {
		e.flags |= dirtyUnless(judged)
		if *budget -= e.size; *budget >= 0 && !e.mode.IsDir() {
			e.hash = e.hashNow()
		}
		return false
	}
	if e.mode.IsDir() {
		if was.Mode == rawMode(e.mode) {
			return carry()
		}
		return false
	}
	alike := was.Mode == rawMode(e.mode) && was.Size == e.size
	if alike && was.Flags&manifest.Racy == 0 && was.Mtime == e.mtime && was.Ctime == e.ctime && was.Ino == e.ino {
		return carry()
	}
	if *budget -= e.size; *budget >= 0 {
		e.hash = e.hashNow()
	}
	if alike && e.hash != 0 && e.hash == was.Hash {
		return carry()
	}
	e.flags |= dirtyUnless(judged)
	return false
}

func dirtyUnless(judged bool) manifest.Flags {
	if judged {
		return 0
	}
	return manifest.Dirty
}

// hashNow reads a file, or a link; 0 when that is not possible.
func (e *entry) hashNow() uint64 {
	if e.mode&fs.ModeSymlink != 0 {
		target, err := os.Readlink(e.path)
		if err != nil {
			return 0
		}
		return xxhash.Sum64String(target)
	}
	fd, err := openRegular(e.path)
	if err != nil {
		return 0
	}
	f := os.NewFile(uintptr(fd), e.path)
	defer func() { _ = f.Close() }()
	h := xxhash.New()
	if _, err := io.CopyBuffer(h, struct{ io.Reader }{f}, make([]byte, 256<<10)); err != nil {
		return 0
	}
	return h.Sum64()
}

// Plan writes what will be changed.
func (c *Change) Plan(w *manifest.Writer) error {
	for i := range c.plan {
		if err := w.Add(&c.plan[i]); err != nil {
			return err
		}
	}
	return nil
}

// WriteTar writes what is to be written, as Tree.WriteTar does.
func (c *Change) WriteTar(ctx context.Context, w io.Writer, opts WriteOptions) error {
	return c.tree.WriteTar(ctx, w, opts)
}
