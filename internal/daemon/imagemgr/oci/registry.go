package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/types"

	"banger/internal/daemon/imagemgr/blobs"
	"banger/internal/errdefs"
)

// firstAttempts is how often a manifest is asked for at most: nothing has been fetched yet
// that would be lost, and somebody without a network wants to be told.
const firstAttempts = 3

// registry is an image on a registry.
type registry struct {
	ref   Reference
	o     Options
	ends  []*endpoint // mirrors first, the registry itself last
	first int         // of ends: the one that the manifest came from
}

const manifestTypes = string(types.OCIImageIndex) + ", " + string(types.OCIManifestSchema1) + ", " +
	string(types.DockerManifestList) + ", " + string(types.DockerManifestSchema2)

func newRegistry(ref Reference, o Options) (*registry, error) {
	r := &registry{ref: ref, o: o}
	for _, m := range o.Mirrors[ref.Host] {
		host, plain := strings.TrimPrefix(m, "https://"), false
		if rest, ok := strings.CutPrefix(m, "http://"); ok {
			host, plain = rest, true
		}
		host, prefix, _ := strings.Cut(strings.TrimSuffix(host, "/"), "/")
		if !hostExp.MatchString(host) || prefix != "" && !repoExp.MatchString(prefix) {
			return nil, errdefs.Invalid("mirror %q of %s: no place of a registry", m, ref.Host).WithHint("write it as [http://]HOST[:PORT][/PREFIX]")
		}
		repo := ref.Repository
		if prefix != "" {
			repo = prefix + "/" + repo
		}
		e, err := newEndpoint(host, repo, false, plain, o)
		if err != nil {
			return nil, err
		}
		r.ends = append(r.ends, e)
	}
	e, err := newEndpoint(ref.Host, ref.Repository, o.Insecure, false, o)
	r.ends = append(r.ends, e)
	return r, err
}

func (r *registry) close() error {
	for _, e := range r.ends {
		e.guard.closeIdle()
	}
	return nil
}

func (r *registry) local(blobs.Digest) (io.ReadCloser, error) { return nil, nil }

// try asks the endpoints in turn, that of the manifest first, and says which one was
// right. Of the errors that of the registry itself counts.
func (r *registry) try(ctx context.Context, do func(*endpoint, Retry) error) (int, error) {
	order := []int{r.first}
	for i := range r.ends {
		if i != r.first {
			order = append(order, i)
		}
	}
	var own error
	for n, i := range order {
		retry := r.o.Retry
		if n < len(order)-1 {
			retry.Attempts = min(retry.Attempts, 2) // there are others
		}
		e := r.ends[i]
		err := do(e, retry)
		if err == nil {
			return i, nil
		}
		if ctx.Err() != nil {
			return i, context.Cause(ctx)
		}
		var local *localError
		if errors.As(err, &local) {
			return i, local.error
		}
		if own == nil || i == len(r.ends)-1 {
			own = e.explain(err)
		}
	}
	return 0, own
}

// localError is one of this host: no other registry helps against it.
type localError struct{ error }

func (e *localError) Unwrap() error { return e.error }

// document gets a manifest or an index, from the cache if it is there. Of a tag that
// was resolved before only the digest is asked for, as long as it is the same.
func (r *registry) document(ctx context.Context, want blobs.Digest) (document, error) {
	if want == "" {
		if known, ok := r.o.Cache.Ref(refKey(r.ref, r.o.Platform)); ok && r.unmoved(ctx, known.Top) {
			want = known.Top
		}
	}
	if want != "" {
		if raw, err := r.o.Cache.ReadAll(want, maxManifest); err == nil {
			if doc, err := newDocument(raw, ""); err == nil {
				return doc, nil
			}
		}
	}
	var doc document
	from, err := r.try(ctx, func(e *endpoint, retry Retry) error {
		retry.Attempts = min(retry.Attempts, firstAttempts)
		return retry.again(ctx, func() (_ bool, err error) {
			doc, err = r.getDocument(ctx, e, want)
			return false, err
		})
	})
	if err != nil {
		return document{}, err
	}
	r.first = from
	_, err = r.o.Cache.Put(ctx, doc.raw)
	return doc, err
}

// unmoved reports whether the tag still leads to that digest. Whatever speaks against
// it, the request for the manifest says better.
func (r *registry) unmoved(ctx context.Context, top blobs.Digest) bool {
	same := false
	from, err := r.try(ctx, func(e *endpoint, _ Retry) error {
		ctx, cancel := context.WithTimeout(ctx, r.o.Retry.Silence)
		defer cancel()
		resp, err := e.request(ctx, http.MethodHead, "/manifests/"+r.ref.Tag, http.Header{"Accept": {manifestTypes}}, http.StatusOK)
		if err != nil {
			return err
		}
		same = resp.Header.Get("Docker-Content-Digest") == string(top)
		return resp.Body.Close()
	})
	if err == nil {
		r.first = from
	}
	return same
}

func (r *registry) getDocument(ctx context.Context, e *endpoint, want blobs.Digest) (document, error) {
	name := r.ref.Tag
	if want != "" {
		name = string(want)
	}
	ctx, quiet := withSilence(ctx, r.o.Retry.Silence)
	defer quiet.stop()
	resp, err := e.request(ctx, http.MethodGet, "/manifests/"+name, http.Header{"Accept": {manifestTypes}}, http.StatusOK)
	if err != nil {
		return document{}, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(quiet.reader(resp.Body), maxManifest+1))
	if err != nil {
		return document{}, fmt.Errorf("%w: %w", errRead, err)
	}
	if want == "" {
		// A check against damage only: the registry is what says where a tag leads.
		want, err = blobs.ParseDigest(resp.Header.Get("Docker-Content-Digest"))
		if err != nil {
			want = ""
		}
	}
	if len(raw) > maxManifest {
		return document{}, errdefs.Invalid("%s: the manifest has more than %d bytes", e.host, maxManifest)
	}
	if got := blobs.Of(raw); want != "" && got != want {
		return document{}, errdefs.Unavailable("%s: manifest %s: %w, it is %s", e.host, want.Short(), blobs.ErrDigest, got).WithHint(damagedHint)
	}
	return newDocument(raw, resp.Header.Get("Content-Type"))
}

const damagedHint = "pull again; if that does not help, the registry or a proxy on the way to it damages what it sends"

func (r *registry) config(ctx context.Context, d blobs.Digest, size int64) ([]byte, error) {
	fetch := func() error {
		return r.o.Cache.Fetch(ctx, d, size, func(ctx context.Context, w *blobs.Writer) error { return r.fill(ctx, d, w) }, nil)
	}
	if err := fetch(); err != nil {
		return nil, err
	}
	raw, err := r.o.Cache.ReadAll(d, size)
	if !errors.Is(err, fs.ErrNotExist) {
		return raw, err
	}
	// It was in the cache, but damaged, or somebody prunes at this moment.
	if err := fetch(); err != nil {
		return nil, err
	}
	return r.o.Cache.ReadAll(d, size)
}

// enough is how many bytes make a try count as one that got further.
const enough = 256 << 10

// fill fetches a blob. A server that cannot begin in the middle begins anew; content
// that is wrong is fetched once more in one piece, for its beginning may have been
// damaged on this host, and from the next endpoint then.
func (r *registry) fill(ctx context.Context, d blobs.Digest, w *blobs.Writer) error {
	_, err := r.try(ctx, func(e *endpoint, retry Retry) error {
		return retry.fill(ctx, e.host, w, func() (bool, error) { return r.piece(ctx, e, d, w) })
	})
	return err
}

// fill makes requests with piece, which says whether it was one for the whole blob,
// until all of it is there. Host is who is blamed for content that is wrong.
func (r Retry) fill(ctx context.Context, host string, w *blobs.Writer, piece func() (whole bool, err error)) error {
	best, afresh := w.Offset(), false
	return r.again(ctx, func() (bool, error) {
		whole, err := piece()
		if err == nil {
			if err = w.Verify(); errors.Is(err, blobs.ErrDigest) {
				if whole || afresh {
					return false, errdefs.Unavailable("%s: %w", host, err).WithHint(damagedHint)
				}
				afresh = true
				_, err = piece()
				if err == nil {
					err = w.Verify()
				}
			}
		}
		further := w.Offset() >= best+enough
		if further {
			best = w.Offset()
		}
		return further, err
	})
}

// errRead marks content that broke off.
var errRead = errors.New("the connection was lost")

// piece makes one request for what a blob lacks; whole says that it was for all of it.
func (r *registry) piece(ctx context.Context, e *endpoint, d blobs.Digest, w *blobs.Writer) (whole bool, err error) {
	if w.Offset() == w.Size() && w.Size() > 0 {
		return false, nil
	}
	ctx, quiet := withSilence(context.WithValue(ctx, layerKey{}, true), r.o.Retry.Silence)
	defer quiet.stop()
	header, wanted := lacking(w)
	resp, err := e.request(ctx, http.MethodGet, "/blobs/"+string(d), header, wanted...)
	if err != nil {
		return false, err
	}
	return receive(resp, quiet, e.host, d, w)
}

// lacking is how to ask for what a blob lacks, and which answers are good.
func lacking(w *blobs.Writer) (header http.Header, wanted []int) {
	header, wanted = http.Header{}, []int{http.StatusOK}
	if w.Offset() > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-", w.Offset()))
		wanted = append(wanted, http.StatusPartialContent, http.StatusRequestedRangeNotSatisfiable)
	}
	return header, wanted
}

// receive takes the answer to what lacking asks for, and closes it.
func receive(resp *http.Response, quiet *silence, host string, d blobs.Digest, w *blobs.Writer) (whole bool, err error) {
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusPartialContent && !continues(resp.Header.Get("Content-Range"), w) || resp.StatusCode == http.StatusRequestedRangeNotSatisfiable {
		if err := w.Reset(); err != nil {
			return false, &localError{err}
		}
		return false, fmt.Errorf("%w: the server has no such range", errRead)
	}
	left := w.Size() - w.Offset()
	if whole = resp.StatusCode == http.StatusOK; whole {
		left = w.Size()
	}
	if resp.ContentLength >= 0 && resp.ContentLength != left {
		return whole, errdefs.Unavailable("%s: blob %s: %w: it sends %d bytes of %d", host, d.Short(), blobs.ErrSize, resp.ContentLength, left).WithHint(damagedHint)
	}
	if whole && w.Offset() > 0 {
		if err := w.Reset(); err != nil {
			return whole, &localError{err}
		}
	}
	buf := make([]byte, copyBuffer)
	body := quiet.reader(resp.Body)
	for {
		n, err := body.Read(buf)
		if n > 0 {
			if _, werr := w.Write(buf[:n]); errors.Is(werr, blobs.ErrSize) {
				return whole, errdefs.Unavailable("%s: %w", host, werr).WithHint(damagedHint)
			} else if werr != nil {
				return whole, &localError{werr}
			}
		}
		switch {
		case err == io.EOF && w.Offset() < w.Size():
			return whole, fmt.Errorf("%w after %d of %d bytes", errRead, w.Offset(), w.Size())
		case err == io.EOF:
			return whole, nil
		case err != nil:
			return whole, fmt.Errorf("%w after %d of %d bytes: %w", errRead, w.Offset(), w.Size(), err)
		}
	}
}

// continues reports whether a part that is sent is the one that is lacking.
func continues(contentRange string, w *blobs.Writer) bool {
	var from, to int64
	var total string
	if n, _ := fmt.Sscanf(contentRange, "bytes %d-%d/%s", &from, &to, &total); n != 3 {
		return false
	}
	return from == w.Offset() && to == w.Size()-1 && (total == "*" || total == fmt.Sprint(w.Size()))
}

// silence ends a request whose server says nothing for too long.
type silence struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	watch  *time.Timer
	limit  time.Duration
}

func withSilence(ctx context.Context, limit time.Duration) (context.Context, *silence) {
	ctx, cancel := context.WithCancelCause(ctx)
	s := &silence{ctx: ctx, cancel: cancel, limit: limit}
	s.watch = time.AfterFunc(limit, func() { cancel(fmt.Errorf("%w: the server has said nothing for %s", errRead, limit)) })
	return ctx, s
}

func (s *silence) stop() {
	s.watch.Stop()
	s.cancel(nil)
}

func (s *silence) reader(r io.Reader) io.Reader { return &silentReader{s, r} }

type silentReader struct {
	s *silence
	r io.Reader
}

func (r *silentReader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	r.s.watch.Reset(r.s.limit)
	if err != nil && err != io.EOF && r.s.ctx.Err() != nil {
		err = context.Cause(r.s.ctx)
	}
	return n, err
}
