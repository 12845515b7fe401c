package blobs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Blob is one blob as List shows it.
type Blob struct {
	Digest Digest
	Size   int64 // bytes
	Used   time.Time
	Refs   []string // names of the references that led to it
	Pinned bool
}

// Part is what there is of a blob that is not there yet.
type Part struct {
	Digest  Digest
	Size    int64 // bytes
	Written time.Time
	Busy    bool // somebody writes it now
}

// List returns the blobs, the longest unused first, and the parts.
func (c *Cache) List(ctx context.Context) ([]Blob, []Part, error) {
	refs, _, err := c.refs()
	if err != nil {
		return nil, nil, err
	}
	names := map[Digest][]string{}
	for _, r := range refs {
		for _, d := range r.Blobs {
			if n := names[d]; len(n) == 0 || n[len(n)-1] != r.Name { // a layer can be in an image twice
				names[d] = append(n, r.Name)
			}
		}
	}
	var all []Blob
	err = c.each(ctx, c.blobDir(), func(d Digest, fi os.FileInfo) error {
		slices.Sort(names[d])
		all = append(all, Blob{Digest: d, Size: fi.Size(), Used: used(fi), Refs: names[d], Pinned: c.pinned(d)})
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	slices.SortFunc(all, func(a, b Blob) int {
		if n := a.Used.Compare(b.Used); n != 0 {
			return n
		}
		return strings.Compare(string(a.Digest), string(b.Digest))
	})
	var parts []Part
	err = c.each(ctx, c.partDir(), func(d Digest, fi os.FileInfo) error {
		p := Part{Digest: d, Size: fi.Size(), Written: fi.ModTime()}
		f, err := tryLock(c.part(d), 0)
		if err != nil && !isMissing(err) {
			return err
		}
		if p.Busy = f == nil; f != nil {
			_ = f.Close()
		}
		parts = append(parts, p)
		return nil
	})
	return all, parts, err
}

// each calls do with every file of a directory that a digest names.
func (c *Cache) each(ctx context.Context, dir string, do func(Digest, os.FileInfo) error) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("list the image cache: %w", err)
	}
	for _, e := range entries {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		d, err := ParseDigest(algorithm + e.Name())
		if err != nil {
			continue
		}
		fi, err := e.Info()
		if isMissing(err) {
			continue
		}
		if err == nil && fi.Mode().IsRegular() {
			err = do(d, fi)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// used is the time of access: touch sets it, and a read by anybody does no harm.
func used(fi os.FileInfo) time.Time {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return time.Unix(st.Atim.Unix())
	}
	return fi.ModTime()
}

func (c *Cache) pinned(d Digest) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pins[d] > 0 || c.flights[d] != nil
}

// Prune says what may go. What is pinned, or fetched at this moment, never does.
type Prune struct {
	Unused   time.Duration     // blobs that nobody has used for so long; 0: no age is too high
	MaxBytes int64             // then the longest unused, until the rest has no more; <0: no bound
	Keep     func(Digest) bool // blobs that stay whatever their age and size; may be nil
	DryRun   bool              // say what would go, and remove nothing
}

// Prune removes blobs and returns them, the longest unused first. References that lead
// to what is gone are forgotten.
func (c *Cache) Prune(ctx context.Context, p Prune) ([]Blob, error) {
	all, _, err := c.List(ctx)
	if err != nil {
		return nil, err
	}
	total := int64(0)
	for _, b := range all {
		total += b.Size
	}
	var gone []Blob
	now := time.Now()
	for _, b := range all {
		old := p.Unused > 0 && now.Sub(b.Used) >= p.Unused
		if over := p.MaxBytes >= 0 && total > p.MaxBytes; !old && !over {
			continue
		}
		if b.Pinned || p.Keep != nil && p.Keep(b.Digest) {
			continue
		}
		if !p.DryRun {
			// Somebody may have begun to use it since it was listed.
			removed, err := c.remove(b.Digest, func(fi os.FileInfo) bool { return !used(fi).After(b.Used) })
			if err != nil {
				return gone, err
			}
			if !removed {
				continue
			}
		}
		total -= b.Size
		gone = append(gone, b)
	}
	if p.DryRun {
		return gone, nil
	}
	return gone, c.forget()
}

// remove removes a blob that nobody has pinned and nobody fetches, if it is still as
// wanted. While it does, who asks for the blob waits, as for any other work on it.
func (c *Cache) remove(d Digest, still func(os.FileInfo) bool) (bool, error) {
	c.mu.Lock()
	if c.flights[d] != nil || still != nil && c.pins[d] > 0 {
		c.mu.Unlock()
		return false, nil
	}
	f := newFlight(-1, func(error) {})
	c.flights[d] = f
	c.mu.Unlock()
	defer func() {
		c.land(d, f)
		f.settle(nil)
	}()
	fi, err := os.Lstat(c.blob(d))
	if err == nil && (still == nil || still(fi)) {
		if err = os.Remove(c.blob(d)); err == nil {
			return true, nil
		}
	}
	if isMissing(err) {
		err = nil
	}
	return false, err
}

// forget removes records of references whose first blob is gone or that are broken.
func (c *Cache) forget() error {
	refs, broken, err := c.refs()
	if err != nil {
		return err
	}
	for _, r := range refs {
		if _, err := c.Stat(r.Top); isMissing(err) {
			broken = append(broken, c.refFile(r.Name))
		}
	}
	for _, file := range broken {
		if err := os.Remove(file); err != nil && !isMissing(err) {
			return fmt.Errorf("forget a reference: %w", err)
		}
	}
	return nil
}

// Sweep removes parts that nobody has written to for so long, and what a crash left in
// the making. Younger parts stay: they are what a download goes on from. It returns
// how many bytes that gave, or with dryRun would give.
func (c *Cache) Sweep(ctx context.Context, unused time.Duration, dryRun bool) (int64, error) {
	var bytes int64
	now := time.Now()
	err := c.each(ctx, c.partDir(), func(d Digest, fi os.FileInfo) error {
		if now.Sub(fi.ModTime()) < unused {
			return nil
		}
		f, err := tryLock(c.part(d), 0)
		if isMissing(err) || err == nil && f == nil {
			return nil // somebody is at it
		}
		if err != nil {
			return err
		}
		bytes += fi.Size()
		if !dryRun {
			err = os.Remove(c.part(d))
		}
		return errors.Join(err, f.Close())
	})
	if err != nil || dryRun {
		return bytes, err
	}
	return bytes, c.RemoveScratch(time.Minute) // named for a moment only; a minute is none
}

// RemoveScratch removes what a crash left in the making, if it is that old: 0 is for who
// uses the cache alone, and has not begun.
func (c *Cache) RemoveScratch(age time.Duration) error {
	for _, dir := range []string{c.partDir(), c.refDir()} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, e := range entries {
			fi, err := e.Info()
			if err != nil || !strings.HasPrefix(e.Name(), scratchPrefix) || time.Since(fi.ModTime()) < age {
				continue
			}
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil && !isMissing(err) {
				return err
			}
		}
	}
	return nil
}
