// Package flatten merges the layers of an OCI image into one tree of inodes, without a
// tree on the host: the layers are read at once, each once and from front to end, and
// the content of files goes to a Sink while it streams by. What is left of a layer is
// an index of its entries. The indexes are replayed from the lowest to the highest, in
// the order of their entries, onto one tree.
//
// # Rules
//
// The rules are those of containerd's archive.Apply on a directory that has the lower
// layers already, and where that and its unpacking for overlayfs differ, or depend on
// the host, what is said here:
//
//   - An entry takes the place of what has its path, whatever that is; only a directory
//     over a directory keeps the content, and takes the attributes of the upper one.
//     Extended attributes of a lower layer's directory go, as with overlayfs.
//   - Of two entries with one path the later counts. Hard links to the earlier keep it.
//   - ".wh.NAME" removes NAME as it is at that point: what an earlier entry of the same
//     layer has put there too, what a later one puts there not.
//   - ".wh..wh..opq" hides what lower layers have in its directory, wherever in the layer
//     it stands, and nothing of its own layer, as with overlayfs. (archive.Apply takes
//     along files whose own directory has no entry.)
//   - Other names that begin with ".wh..wh." are AUFS's bookkeeping. They may be linked
//     to within their layer and are gone after it; containerd leaves some of them.
//   - Parents that are missing are made, 0755 and root's, for whiteouts too. Their time is
//     0, where containerd has that of unpacking: a tree is the same whenever it is made.
//   - Parents that are symbolic links are followed within the root, in the tree as it is
//     at that point, at most 255 of them. Where a target is missing it is made. The last
//     component of a path is not followed, nor that of a hard link's target: links to links
//     are links. ".." after a link in a target is the parent of where that leads, as it will
//     be in the guest; containerd takes the link away as text, but not at the root.
//   - A hard link's target must be there, in this layer or below, when its turn comes, and
//     be no directory. The link's owner, mode and time are the inode's from then on, its
//     extended attributes are added. (The kernel would drop capabilities with the owner.)
//   - Entries for the root itself are skipped: it is 0755 and root's.
//   - Names are cleaned as text, leading "/" dropped. What then begins with ".." is refused,
//     where containerd would begin at the root. Targets of symbolic links are kept as they
//     are and mean nothing here.
//   - Extended attributes are those of SCHILY.xattr. Namespaces that the kernel does not
//     have are dropped, as are trusted.*, user.* of what is neither file nor directory,
//     and ACLs of symbolic links. The mode is set last and changes an ACL, as chmod does.
//   - Times that ext4 cannot hold are 0. Those from 1901 to 1970, which containerd makes 0
//     too, are kept.
//   - A character device 0:0 is that and no whiteout. Numbers which the kernel cannot hold
//     are refused, so are owners, and types of entries that are unknown.
package flatten

import (
	"context"
	"errors"
	"io"
	"runtime"
	"sync"

	"banger/internal/daemon/ext4"
	"banger/internal/errdefs"
)

// maxLayers is how many layers an image may have; Docker makes 127 at most.
const maxLayers = 1000

// Sink takes the contents of files. Its methods are called from several goroutines.
type Sink interface {
	// Write stores a file of size bytes, which is more than 0: it reads that many from
	// r. Holes come as zeros. With an error, r's or its own, it keeps nothing.
	Write(ctx context.Context, r io.Reader, size int64) (ext4.Data, error)
	// Free drops what a Write has returned; each is dropped once at most.
	Free(d ext4.Data)
}

// Layer is a layer of an image.
type Layer struct {
	Name      string // for errors: the digest
	MediaType string // says how it is compressed; "" leaves that to its first bytes
	DiffID    string // "sha256:…" of the uncompressed tar; "" is not compared
	// Open begins to read the layer as it was stored, and may wait until it is there.
	// Close is called from another goroutine to end a Read that waits. The reader is
	// read to its end before the layer counts as good, so it may check what it reads.
	Open func(ctx context.Context) (io.ReadCloser, error)
}

// Stats says what was read and what came of it.
type Stats struct {
	Entries int64    // of the tars
	Bytes   int64    // of the uncompressed tars
	Inodes  int64    // in the tree
	Dropped int64    // extended attributes that no file can have
	DiffIDs []string // of the layers, as computed
}

// Progress is told that n more bytes of a layer, uncompressed, have been read. It is
// called from several goroutines.
type Progress func(layer int, n int64)

// Flatten reads the layers, of which the lowest comes first, and merges them. It opens all
// at once and reads as many as there are processors, in the order in which they are open;
// at least two, for one may wait for its bytes. After an error all that was given to sink
// has been freed; else all that is not in the tree.
//
// A bad image is errdefs.ErrInvalidArgument, one beyond the limits is
// errdefs.ErrExhausted; errors of Open, of its readers, and of sink keep their class.
func Flatten(ctx context.Context, layers []Layer, sink Sink, limits Limits, progress Progress) (*ext4.Inode, Stats, error) {
	if len(layers) > maxLayers {
		return nil, Stats{}, errdefs.Exhausted("the image has %d layers, more than %d", len(layers), maxLayers)
	}
	f := &flattener{
		layers:   layers,
		sink:     sink,
		budget:   &budget{limits: limits.orDefaults()},
		progress: progress,
		slots:    make(chan struct{}, max(2, runtime.GOMAXPROCS(0))),
		indexes:  make([]*index, len(layers)),
		ready:    make([]chan struct{}, len(layers)),
	}
	return f.run(ctx)
}

type flattener struct {
	layers   []Layer
	sink     Sink
	budget   *budget
	progress Progress
	slots    chan struct{} // one for each layer that is read
	indexes  []*index      // each is written before its ready is closed
	ready    []chan struct{}
}

func (f *flattener) run(parent context.Context) (*ext4.Inode, Stats, error) {
	ctx, cancel := context.WithCancelCause(parent)
	defer cancel(nil)
	var wg sync.WaitGroup
	for i := range f.layers {
		f.ready[i] = make(chan struct{})
		wg.Go(func() {
			x, err := f.read(ctx, i)
			f.indexes[i] = x
			if err != nil {
				cancel(err)
			}
			close(f.ready[i])
		})
	}
	t := newTree(f.sink, f.budget)
	stats, err := f.merge(ctx, t)
	if err == nil {
		wg.Wait()
		t.finish()
		stats.Inodes = t.inodes
		return t.root, stats, nil
	}
	cancel(err)
	wg.Wait()
	for _, x := range f.indexes {
		x.free(f.sink)
	}
	t.free(t.root)
	if cause := context.Cause(parent); cause != nil && errors.Is(err, cause) {
		err = errdefs.Wrap(cause, "merge the layers")
	}
	return nil, Stats{}, err
}

// merge replays the layers as they become ready, and drops the index of each.
func (f *flattener) merge(ctx context.Context, t *tree) (Stats, error) {
	var s Stats
	for i := range f.layers {
		<-f.ready[i] // comes soon after ctx ends, too
		if ctx.Err() != nil {
			return s, context.Cause(ctx)
		}
		x := f.indexes[i]
		s.Entries += x.entries
		s.Bytes += x.bytes
		s.Dropped += x.dropped
		s.DiffIDs = append(s.DiffIDs, x.diffID)
		if err := t.apply(ctx, x); err != nil {
			return s, err
		}
		f.indexes[i] = nil
	}
	s.Dropped += t.dropped
	return s, nil
}

// read makes the index of layer i. It returns what it has of it with an error, too, so
// that the content which is stored by then can be freed.
func (f *flattener) read(ctx context.Context, i int) (*index, error) {
	l := f.layers[i]
	x := &index{layer: l.Name}
	src, err := l.Open(ctx)
	if err != nil {
		return x, errdefs.Wrap(err, "open layer %s", l.Name)
	}
	src = &onceCloser{ReadCloser: src}
	defer src.Close()
	select {
	case f.slots <- struct{}{}:
		defer func() { <-f.slots }()
	case <-ctx.Done():
		return x, context.Cause(ctx)
	}
	s := newStream(ctx, src, l.MediaType, func(n int64) error {
		if f.progress != nil {
			f.progress(i, n)
		}
		return f.budget.stream(n)
	})
	defer s.Close()
	if err := x.read(ctx, s, f.sink, f.budget); err != nil {
		return x, err
	}
	x.diffID, x.bytes = s.sum()
	if l.DiffID != "" && l.DiffID != x.diffID {
		return x, errdefs.Invalid("layer %s: its content is %s, not %s as the image says", l.Name, x.diffID, clip(l.DiffID))
	}
	return x, nil
}

// onceCloser is closed by whoever comes first.
type onceCloser struct {
	io.ReadCloser
	once sync.Once
	err  error
}

func (c *onceCloser) Close() error {
	c.once.Do(func() { c.err = c.ReadCloser.Close() })
	return c.err
}
