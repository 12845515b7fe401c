// Package oci finds out what an image is and where its content comes from: a registry,
// an OCI layout, an archive, the daemon of Docker or Podman, or a root file system in a
// tar file.
//
// Resolve turns a reference into an Image: its config and its layers, all bounded and
// checked against each other. Fetch brings the layers into a cache; Open reads one
// while it comes. Nothing of what a registry or a file says is believed: content counts
// once its digest is right, sizes are bounds, and names never become paths.
package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"banger/internal/daemon/imagemgr/blobs"
	"banger/internal/errdefs"
)

// Image is a resolved image.
type Image struct {
	Ref       Reference
	Platform  Platform
	Top       blobs.Digest // of what the reference names: the manifest, or an index
	Digest    blobs.Digest // of the manifest
	Manifest  []byte       // at most 4 MiB; made up for archives of Docker's and tar files
	Config    v1.ConfigFile
	RawConfig []byte // at most 8 MiB
	Layers    []Layer

	src source
}

// Layer is one layer, as it is stored: mostly compressed.
type Layer struct {
	Digest    blobs.Digest
	DiffID    blobs.Digest // of the unpacked tar
	Size      int64        // bytes
	MediaType string       // its first bytes say more about how it is compressed
}

// Size is what all layers have together, in bytes, each counted once.
func (i *Image) Size() int64 {
	var n int64
	for _, l := range i.distinct() {
		n += l.Size
	}
	return n
}

// Digests returns all blobs of the image: what is to be pinned or kept in a cache.
func (i *Image) Digests() []blobs.Digest {
	ds := []blobs.Digest{i.Top, i.Digest, blobs.Of(i.RawConfig)}
	for _, l := range i.distinct() {
		ds = append(ds, l.Digest)
	}
	return ds
}

func (i *Image) distinct() []Layer {
	seen := map[blobs.Digest]bool{}
	var all []Layer
	for _, l := range i.Layers {
		if !seen[l.Digest] {
			seen[l.Digest] = true
			all = append(all, l)
		}
	}
	return all
}

// Close lets go of files and connections. What was opened has to be closed before.
func (i *Image) Close() error { return i.src.close() }

// Limits bound an image. Zero values stand for the defaults.
type Limits struct {
	Layers int   // 1000
	Bytes  int64 // of all layers as they are stored, and of an archive; 128 GiB
}

// Retry says how often a request is repeated that failed for a reason that may pass:
// the network, 429, or 5xx. Zero values stand for the defaults.
type Retry struct {
	Attempts int           // without getting further; 6
	Pause    time.Duration // before the second, then twice as long each time; 500 ms
	MaxPause time.Duration // 20 s; also if the server asks for more, up to ten times that
	Silence  time.Duration // how long a server may say nothing; 60 s
}

func (r Retry) withDefaults() Retry {
	return Retry{
		Attempts: orDefault(r.Attempts, 6), Pause: orDefault(r.Pause, 500*time.Millisecond),
		MaxPause: orDefault(r.MaxPause, 20*time.Second), Silence: orDefault(r.Silence, 60*time.Second),
	}
}

// Options is what Resolve has to know.
type Options struct {
	Cache     *blobs.Cache
	Platform  Platform            // zero: HostPlatform
	Insecure  bool                // allow http, and TLS that cannot be verified, for the registry
	Mirrors   map[string][]string // by host, as in references: mirrors to try before it, in order; [http://]HOST[:PORT][/PREFIX]
	Keychain  Keychain            // nil: no credentials
	UserAgent string
	Transport *http.Transport // to make connections like; nil: proxies from the environment
	Sockets   []string        // of Docker's and Podman's daemons, in the order to try; nil: DefaultSockets
	Limits    Limits
	Retry     Retry
}

func (o Options) withDefaults() Options {
	if o.Platform == (Platform{}) {
		o.Platform = HostPlatform()
	}
	o.Platform = o.Platform.normal()
	o.Limits.Layers = orDefault(o.Limits.Layers, 1000)
	o.Limits.Bytes = orDefault(o.Limits.Bytes, 128<<30)
	o.Retry = o.Retry.withDefaults()
	if o.UserAgent == "" {
		o.UserAgent = "banger"
	}
	return o
}

func orDefault[T int | int64 | time.Duration](v, otherwise T) T {
	if v == 0 {
		return otherwise
	}
	return v
}

// source is where the content of one image comes from.
type source interface {
	// document returns what the reference names, or a manifest or index by its digest.
	document(ctx context.Context, want blobs.Digest) (document, error)
	// config returns the config of the image; it is checked against its digest.
	config(ctx context.Context, d blobs.Digest, size int64) ([]byte, error)
	// fill writes a layer; it may go on where an earlier attempt ended.
	fill(ctx context.Context, d blobs.Digest, w *blobs.Writer) error
	// local opens a layer that is on this host; nil for others.
	local(d blobs.Digest) (io.ReadCloser, error)
	close() error
}

// Resolve finds out what a reference leads to. For a tag of a registry that has not
// moved since, that takes one request for a manifest; for a digest whose image is in
// the cache, none. The caller closes the image.
func Resolve(ctx context.Context, ref Reference, o Options) (*Image, error) {
	o = o.withDefaults()
	if o.Cache == nil {
		return nil, errdefs.Internal("resolve an image: no cache")
	}
	src, err := openSource(ctx, ref, o)
	if err != nil {
		return nil, errdefs.Wrap(err, "image %s", ref.Familiar())
	}
	img, err := resolve(ctx, src, ref, o)
	if err != nil {
		return nil, errdefs.Wrap(errors.Join(err, src.close()), "image %s", ref.Familiar())
	}
	if err := remember(img, o.Cache); err != nil {
		return nil, errdefs.Wrap(errors.Join(err, src.close()), "image %s", ref.Familiar())
	}
	return img, nil
}

func openSource(ctx context.Context, ref Reference, o Options) (source, error) {
	switch ref.Kind {
	case Registry:
		return newRegistry(ref, o)
	case Layout, LayoutArchive:
		return openLayout(ctx, ref, o)
	case DockerArchive, DockerDaemon:
		return openDocker(ctx, ref, o)
	case RootTar:
		return openRootTar(ctx, ref, o)
	}
	return nil, errdefs.Invalid("an image cannot be taken from %q", ref.Kind).WithHint(refHint)
}

func resolve(ctx context.Context, src source, ref Reference, o Options) (*Image, error) {
	top, err := src.document(ctx, ref.Digest)
	if err != nil {
		return nil, err
	}
	s := search{src: src, platform: o.Platform, left: maxDocuments}
	doc, err := s.manifest(ctx, top, 0)
	if err != nil {
		return nil, err
	}
	m, err := parseManifest(doc, o.Limits)
	if err != nil {
		return nil, err
	}
	raw, err := src.config(ctx, blobs.Digest(m.Config.Digest.String()), m.Config.Size)
	if err != nil {
		return nil, errdefs.Wrap(err, "get its config")
	}
	config, err := parseConfig(raw, len(m.Layers), o.Platform)
	if err != nil {
		return nil, err
	}
	img := &Image{
		Ref: ref, Platform: o.Platform, Top: blobs.Of(top.raw), Digest: blobs.Of(doc.raw), Manifest: doc.raw,
		Config: config, RawConfig: raw, src: src,
	}
	for n, d := range m.Layers {
		img.Layers = append(img.Layers, Layer{
			Digest: blobs.Digest(d.Digest.String()), DiffID: blobs.Digest(config.RootFS.DiffIDs[n].String()),
			Size: d.Size, MediaType: string(d.MediaType),
		})
	}
	return img, nil
}

// Bounds of the way from an index to a manifest.
const (
	maxNesting   = 4
	maxDocuments = 16
)

// search looks for the manifest for a platform in an index, and in those it names.
type search struct {
	src      source
	platform Platform
	left     int // how many more documents may be read
	have     []string
}

func (s *search) manifest(ctx context.Context, doc document, depth int) (document, error) {
	if !doc.index() {
		return doc, nil
	}
	if depth == maxNesting {
		return document{}, errdefs.Invalid("its indexes are nested more than %d levels deep", maxNesting)
	}
	all, have, err := candidates(doc, s.platform)
	if err != nil {
		return document{}, err
	}
	s.have = append(s.have, have...)
	var unnamed int
	for _, d := range all {
		if d.Platform == nil && d.MediaType.IsImage() {
			unnamed++
		}
	}
	for _, d := range all {
		if d.Platform == nil && d.MediaType.IsImage() && unnamed > 1 {
			return document{}, errdefs.Invalid("its index has %d images and does not say for which platforms", unnamed).
				WithHint("take the digest of one of them")
		}
		digest, err := sized(d, "manifest", maxManifest)
		if err != nil {
			return document{}, err
		}
		if s.left--; s.left < 0 {
			return document{}, errdefs.Invalid("its index leads to more than %d others", maxDocuments)
		}
		next, err := s.src.document(ctx, digest)
		if err != nil {
			return document{}, err
		}
		if int64(len(next.raw)) != d.Size {
			return document{}, errdefs.Invalid("manifest %s has %d bytes and not %d", digest.Short(), len(next.raw), d.Size)
		}
		if next.index() != d.MediaType.IsIndex() {
			return document{}, errdefs.Invalid("manifest %s is %q and not %q", digest.Short(), next.media, d.MediaType)
		}
		found, err := s.manifest(ctx, next, depth+1)
		if !errors.Is(err, errNotHere) {
			return found, err
		}
	}
	if depth > 0 {
		return document{}, errNotHere
	}
	return document{}, noPlatform(s.platform, s.have)
}

var errNotHere = errors.New("no image for this platform in this index")

// remember notes what the reference led to. For an image on this host it costs nothing
// to look again.
func remember(img *Image, c *blobs.Cache) error {
	if img.Ref.Local() {
		return nil
	}
	return c.PutRef(blobs.Ref{
		Name: refKey(img.Ref, img.Platform), Top: img.Top, Blobs: img.Digests(), Seen: time.Now().UTC().Truncate(time.Second),
	})
}

func refKey(r Reference, p Platform) string { return r.String() + " " + p.String() }

// Open reads a layer as it is stored. One that is not in the cache is fetched on the
// way; one on this host is read where it lies and not cached. Of these, io.EOF means
// that all of it was there and its digest is right; nothing is to be believed before. A
// download that had to begin anew, or that others had begun and that failed, ends the
// reading with blobs.ErrRestarted: the layer is to be opened again. What was in
// the cache is not hashed again: that the disk has damaged it the DiffID shows, and
// Verify of the cache then removes it.
func (i *Image) Open(ctx context.Context, c *blobs.Cache, l Layer) (io.ReadCloser, error) {
	r, err := i.src.local(l.Digest)
	if err != nil {
		return nil, errdefs.Wrap(err, "layer %s", l.Digest.Short())
	}
	if r != nil {
		return struct {
			io.Reader
			io.Closer
		}{newVerifier(r, l.Digest, l.Size), r}, nil
	}
	rc, err := c.Stream(ctx, l.Digest, l.Size, i.filler(l.Digest))
	return rc, errdefs.Wrap(err, "layer %s", l.Digest.Short())
}

func (i *Image) filler(d blobs.Digest) blobs.Fill {
	return func(ctx context.Context, w *blobs.Writer) error { return i.src.fill(ctx, d, w) }
}

// Progress is how far fetching is, in bytes of layers as they are stored.
type Progress struct {
	Layer   Layer // that got further
	Done    int64 // of it
	AllDone int64
	All     int64
}

// Fetch brings all layers into the cache, several at once: parallel of them, or 4. Those
// of local images are copied. Progress may be nil; it is called by one goroutine at a
// time. What is fetched stays when a layer fails or ctx ends, and is gone on with.
func (i *Image) Fetch(ctx context.Context, c *blobs.Cache, parallel int, progress func(Progress)) error {
	layers := i.distinct()
	defer c.Pin(i.Digests()...)()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	t := tracker{all: i.Size(), done: map[blobs.Digest]int64{}, report: progress}
	queue := make(chan Layer)
	var wg sync.WaitGroup
	for range min(orDefault(parallel, 4), len(layers)) {
		wg.Go(func() {
			for l := range queue {
				tell := func(done int64) { t.tell(l, done) }
				if progress == nil {
					tell = nil
				}
				if err := c.Fetch(ctx, l.Digest, l.Size, i.filler(l.Digest), tell); err != nil {
					cancel(fmt.Errorf("layer %s: %w", l.Digest.Short(), err)) // the first one counts
				}
			}
		})
	}
	for _, l := range layers {
		select {
		case queue <- l:
		case <-ctx.Done():
		}
	}
	close(queue)
	wg.Wait()
	if ctx.Err() != nil {
		return errdefs.Wrap(context.Cause(ctx), "fetch image %s", i.Ref.Familiar())
	}
	return nil
}

// tracker adds up what several layers report.
type tracker struct {
	all    int64
	report func(Progress)

	mu      sync.Mutex // a leaf; guards the fields below, and orders the reports
	done    map[blobs.Digest]int64
	allDone int64
}

func (t *tracker) tell(l Layer, done int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.allDone += done - t.done[l.Digest]
	t.done[l.Digest] = done
	t.report(Progress{Layer: l, Done: done, AllDone: t.allDone, All: t.all})
}

// madeUp is the manifest of an image whose source has none.
func madeUp(config []byte, layers []v1.Descriptor) (document, error) {
	m := v1.Manifest{SchemaVersion: 2, MediaType: types.DockerManifestSchema2, Layers: layers}
	m.Config = v1.Descriptor{MediaType: types.DockerConfigJSON, Size: int64(len(config)), Digest: hashOf(blobs.Of(config))}
	raw, err := json.Marshal(m)
	return document{raw: raw, media: m.MediaType}, err
}
