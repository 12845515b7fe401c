package imagemgr

import (
	"cmp"
	"context"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"banger/internal/daemon/ext4"
	"banger/internal/daemon/imagemgr/blobs"
	"banger/internal/daemon/imagemgr/flatten"
	"banger/internal/daemon/imagemgr/oci"
	"banger/internal/errdefs"
	"banger/internal/logkey"
	"banger/internal/model"
	"banger/internal/paths"
)

// pullRef makes an image of the layers that a reference leads to. Where the plan only
// looks and that is what is here already, nothing is made.
func (s *Service) pullRef(ctx context.Context, pl plan, p model.Progress) (model.Image, error) {
	img, err := s.resolve(ctx, pl, p)
	if img != nil {
		defer func() { _ = img.Close() }() // all that was read of it was checked
	}
	if err != nil {
		return model.Image{}, err
	}
	defer s.cache.Pin(img.Digests()...)()
	if !pl.Force {
		i, err := s.presentImage(ctx, pl.name, pl)
		switch {
		case err == nil && i.Digest == string(img.Digest):
			p.Detail("up to date")
			return i, nil
		case err == nil && pl.gentle && i.Source != pl.ref.String():
			return model.Image{}, taken(pl.name)
		}
	}
	return s.makeOfLayers(ctx, pl, img, p, s.put)
}

// resolve finds out what a plan's reference leads to.
func (s *Service) resolve(ctx context.Context, pl plan, p model.Progress) (img *oci.Image, err error) {
	p.Stage("resolve")
	err = s.step("resolve", func() (err error) {
		img, err = oci.Resolve(ctx, *pl.ref, oci.Options{
			Cache: s.cache, Platform: pl.platform, Insecure: pl.Insecure, Mirrors: s.Sources.Mirrors, Keychain: s.Sources.Keychain,
			UserAgent: s.Sources.UserAgent, Transport: s.Sources.Transport, Sockets: s.Sources.Sockets,
			Limits: s.Sources.Layers, Retry: s.Sources.Retry,
		})
		return err
	})
	return img, err
}

// makeOfLayers makes and publishes the image that a plan's reference led to; put is as with
// publishImage.
func (s *Service) makeOfLayers(ctx context.Context, pl plan, img *oci.Image, p model.Progress, put func(context.Context, *model.Image) error) (model.Image, error) {
	return s.assembleImage(ctx, pl.name, p, put, func(dir string) (madeImage, error) {
		made := madeImage{
			path: filepath.Join(dir, paths.RootfsFile), config: configOf(img, pl.platform), digest: string(img.Digest),
			source: cmp.Or(pl.source, pl.ref.String()),
		}
		for _, l := range img.Layers {
			made.layers = append(made.layers, model.ImageLayer{Digest: string(l.Digest), SizeBytes: l.Size})
		}
		size := s.plannedBytes(img)
		if !pl.Force && s.linkSame(ctx, made, size) {
			return made, nil
		}
		return made, s.layersToDisk(ctx, img, made.path, size, p)
	})
}

// configOf is how the image's author wants commands to run: in "/" if nothing is said, as
// in a container.
func configOf(img *oci.Image, platform oci.Platform) model.ImageConfig {
	c := img.Config.Config
	config := model.ImageConfig{
		User: c.User, Workdir: cmp.Or(c.WorkingDir, "/"), Env: c.Env, Entrypoint: c.Entrypoint, Cmd: c.Cmd, StopSignal: c.StopSignal,
		ExposedPorts: slices.Sorted(maps.Keys(c.ExposedPorts)), Volumes: slices.Sorted(maps.Keys(c.Volumes)), Labels: c.Labels,
	}
	if platform != oci.HostPlatform() {
		config.Platform = platform.String()
	}
	return config
}

// unpacks is how many bytes one of a layer may well become, and how many times larger a
// disk is made where that was too little.
const unpacks = 4

// plannedBytes is how large the image's file system is made: as those of all images, but
// for one that is large itself. What is not written takes no space.
func (s *Service) plannedBytes(img *oci.Image) int64 {
	const whole = 1 << 20
	return max(s.DiskBytes, img.Size()*unpacks) / whole * whole
}

// linkSame gives the image the disk of another one that was made of the same manifest, as
// a hard link: nobody ever writes to either.
func (s *Service) linkSame(ctx context.Context, made madeImage, size int64) bool {
	all, err := s.Store.ListImages(ctx)
	if err != nil {
		return false // whoever publishes will find out
	}
	for _, i := range all {
		if i.Managed && i.Digest == made.digest && i.SizeBytes == size && checkImage(i) == nil && os.Link(i.Path, made.path) == nil {
			return true
		}
	}
	return false
}

// maxRounds is how often a disk is begun anew because the content of a layer was, or
// because it was too small.
const maxRounds = 4

// layersToDisk writes the file system of an image to a new file.
func (s *Service) layersToDisk(ctx context.Context, img *oci.Image, path string, size int64, p model.Progress) error {
	healed := false
	for round := 1; ; round++ {
		err := s.writeDisk(ctx, img, path, size, p)
		again := errors.Is(err, blobs.ErrRestarted)
		if errors.Is(err, ext4.ErrFull) {
			again, size = true, size*unpacks // what bounds an image is its own limits
		}
		if !again && !healed && errors.Is(err, errdefs.ErrInvalidArgument) {
			again = s.dropDamaged(ctx, img)
			healed = true
		}
		if !again || round == maxRounds || ctx.Err() != nil {
			return err
		}
		s.Log.InfoContext(ctx, "writing an image anew", logkey.Image, img.Ref.Familiar(), logkey.Err, err)
	}
}

// dropDamaged looks for layers that the disk has damaged since they were fetched, and
// reports whether there were any. They are gone from the cache then.
func (s *Service) dropDamaged(ctx context.Context, img *oci.Image) bool {
	damaged := false
	for _, l := range img.Layers {
		if img.Ref.Local() {
			break // they are read where they lie
		}
		damaged = errors.Is(s.cache.Verify(ctx, l.Digest), blobs.ErrDigest) || damaged
	}
	return damaged
}

// writeDisk fetches the layers and, while they come, writes what is in them.
func (s *Service) writeDisk(parent context.Context, img *oci.Image, path string, size int64, p model.Progress) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	w, err := ext4.New(f, ext4.Options{Size: size})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(parent)
	defer cancel(nil)
	coming := s.fetch(ctx, cancel, img, p)
	layers := make([]flatten.Layer, len(img.Layers))
	for n, l := range img.Layers {
		layers[n] = flatten.Layer{
			Name: string(l.Digest), MediaType: l.MediaType, DiffID: string(l.DiffID),
			Open: func(ctx context.Context) (io.ReadCloser, error) {
				if err := coming.wait(ctx, l); err != nil {
					return nil, err
				}
				return img.Open(ctx, s.cache, l)
			},
		}
	}
	root, _, err := flatten.Flatten(ctx, layers, w, s.Sources.Tree, func(_ int, n int64) { coming.wrote(n) })
	if err == nil {
		err = w.Finish(ctx, root)
	} else if !errors.Is(err, blobs.ErrRestarted) {
		cancel(err)
	}
	// A layer that could not be fetched says more than one that could not be read.
	if ferr := coming.end(); ferr != nil && !errors.Is(ferr, err) {
		err = ferr
	}
	return err
}

// coming is the layers of an image on their way.
type coming struct {
	done chan struct{} // closed when all have come, or none will any more
	err  error         // after done

	mu      sync.Mutex // guards the fields below, and orders what is told of progress
	p       model.Progress
	last    time.Time // when something was told
	told    int64     // what of the bytes to come
	arrives map[blobs.Digest]chan struct{}
	writing bool
	written int64 // bytes of layers, unpacked
}

// fetch begins to bring the layers of an image into the cache, those that are not on this
// host anyway. When one cannot be fetched it ends ctx with the reason.
func (s *Service) fetch(ctx context.Context, cancel context.CancelCauseFunc, img *oci.Image, p model.Progress) *coming {
	c := &coming{done: make(chan struct{}), p: p, arrives: map[blobs.Digest]chan struct{}{}}
	if !img.Ref.Local() {
		for _, l := range img.Layers {
			if n, err := s.cache.Stat(l.Digest); err != nil || n != l.Size {
				c.arrives[l.Digest] = make(chan struct{})
			}
		}
	}
	if len(c.arrives) == 0 {
		c.write()
		close(c.done)
		return c
	}
	p.Stage("download")
	s.wg.Go(func() {
		defer close(c.done)
		if c.err = img.Fetch(ctx, s.cache, 0, c.moved); c.err != nil {
			cancel(c.err)
			return
		}
		c.write()
	})
	return c
}

// wait returns when the layer has begun to come, so that no more are opened than are
// fetched at once.
func (c *coming) wait(ctx context.Context, l oci.Layer) error {
	c.mu.Lock()
	begun := c.arrives[l.Digest]
	c.mu.Unlock()
	if begun == nil {
		return nil
	}
	select {
	case <-begun:
	case <-c.done:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return nil
}

// end waits for the fetching to end.
func (c *coming) end() error {
	<-c.done
	return c.err
}

// tellEvery is how often progress is told.
const tellEvery = 100 * time.Millisecond

// moved notes that a layer got further.
func (c *coming) moved(at oci.Progress) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if begun := c.arrives[at.Layer.Digest]; begun != nil {
		close(begun)
		delete(c.arrives, at.Layer.Digest)
	}
	if at.AllDone == at.All || at.AllDone-c.told > at.All/100 || c.dueLocked() {
		c.told = at.AllDone
		c.p.Count(at.AllDone, at.All, "bytes")
	}
}

// wrote notes that n more bytes have been read of the layers.
func (c *coming) wrote(n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.written += n; c.writing && c.dueLocked() {
		c.p.Count(c.written, 0, "bytes")
	}
}

// write notes that all layers are there: what is left is writing.
func (c *coming) write() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.writing = true
	c.p.Stage("write")
}

func (c *coming) dueLocked() bool {
	now := time.Now()
	if now.Sub(c.last) < tellEvery {
		return false
	}
	c.last = now
	return true
}
