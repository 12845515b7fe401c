package imagemgr

import (
	"context"
	"errors"
	"time"

	"banger/internal/daemon/imagemgr/blobs"
	"banger/internal/daemon/imagemgr/catalog"
	"banger/internal/errdefs"
	"banger/internal/logkey"
)

const (
	// keptPart is for how long what there is of a layer is gone on with.
	keptPart = 7 * 24 * time.Hour
	// keptBlob is for how long a prune keeps what nobody uses.
	keptBlob = 7 * 24 * time.Hour
)

// openCache opens the cache of what is fetched, and removes what pulls have left there
// that nobody has gone on with.
func (s *Service) openCache(ctx context.Context) (err error) {
	if s.cache, err = blobs.Open(s.Layout.Cache()); err != nil {
		return errdefs.Wrap(err, "open the image cache")
	}
	_, err = s.cache.Sweep(ctx, keptPart, false)
	if err = errors.Join(err, s.cache.RemoveScratch(0)); err != nil { // no other daemon uses it
		s.Log.WarnContext(ctx, "leaving unfinished downloads", logkey.Err, err)
	}
	s.trimCache(ctx)
	return nil
}

// openCatalogs gets the catalogs ready, whose bundles lie in the cache. None is asked yet.
func (s *Service) openCatalogs() (err error) {
	s.catalogs, err = catalog.New(catalog.Options{
		Sources: s.Sources.Catalogs, Dir: s.Layout.Catalogs(), Blobs: s.cache,
		UserAgent: s.Sources.UserAgent, Transport: s.Sources.Transport, Retry: s.Sources.Retry, Log: s.Log,
	})
	if err == nil {
		err = s.catalogs.Tidy()
	}
	return err
}

// trimCache removes the longest unused from a cache that is larger than it may be.
func (s *Service) trimCache(ctx context.Context) {
	if s.Sources.CacheBytes == 0 {
		return
	}
	if _, err := s.cache.Prune(ctx, blobs.Prune{MaxBytes: s.Sources.CacheBytes}); err != nil {
		s.Log.WarnContext(ctx, "the image cache stays larger than it may be", logkey.Err, err)
	}
}

// Cached is what the image cache holds.
type Cached struct {
	Blobs []blobs.Blob // the longest unused first
	Parts []blobs.Part
}

// ListCache says what the image cache holds.
func (s *Service) ListCache(ctx context.Context) (c Cached, err error) {
	c.Blobs, c.Parts, err = s.cache.List(ctx)
	return c, err
}

// CachePrune says what is to go from the image cache: all; or the longest unused, until
// the rest has no more than Keep bytes; or else what nobody has used for a week. What a
// pull is using stays.
type CachePrune struct {
	All    bool
	Keep   *int64
	DryRun bool
}

// PruneCache makes the cache smaller and returns what went, or with DryRun would go:
// blobs, and how many bytes of unfinished downloads.
func (s *Service) PruneCache(ctx context.Context, p CachePrune) (gone []blobs.Blob, parts int64, err error) {
	b, unfinished := blobs.Prune{Unused: keptBlob, MaxBytes: -1, DryRun: p.DryRun}, keptPart
	switch {
	case p.All && p.Keep != nil:
		return nil, 0, errdefs.Invalid("all and a size to keep exclude each other").WithHint("use one of --all and --keep")
	case p.Keep != nil && *p.Keep < 0:
		return nil, 0, errdefs.Invalid("a size of %d bytes is less than nothing", *p.Keep).WithHint("e.g. --keep 10G")
	case p.All:
		b.Unused, b.MaxBytes, unfinished = 0, 0, 0
	case p.Keep != nil:
		b.Unused, b.MaxBytes = 0, *p.Keep
	}
	if gone, err = s.cache.Prune(ctx, b); err == nil {
		parts, err = s.cache.Sweep(ctx, unfinished, p.DryRun)
	}
	return gone, parts, errdefs.Wrap(err, "prune the image cache")
}
