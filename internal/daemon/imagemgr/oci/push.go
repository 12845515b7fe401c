package oci

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"banger/internal/daemon/imagemgr/blobs"
	"banger/internal/errdefs"
)

// Blob is content to be pushed.
type Blob struct {
	Layer
	Open func() (io.ReadSeekCloser, error) // may be called more than once
}

// Upload is an image to be pushed.
type Upload struct {
	Manifest  []byte
	MediaType string   // of it
	Blobs     []Blob   // the layers and the config: all that the manifest names
	From      []string // repositories on the same registry that may have some of the blobs already
}

// Push brings an image to a registry, with the credentials, retries and guards of a pull,
// and returns the manifest's digest. What is there is not sent again; what is in another
// of the user's repositories is taken from there; an upload that breaks off goes on where
// it ended, if the registry knows where that is. The manifest comes last, so the tag leads
// to all of it or stays what it was. Mirrors are not asked. Of o the cache and the
// platform are not needed. Progress may be nil.
func Push(ctx context.Context, ref Reference, u Upload, o Options, progress func(Progress)) (blobs.Digest, error) {
	digest := blobs.Of(u.Manifest)
	if ref.Kind != Registry {
		return "", errdefs.Invalid("push to %s: that is no registry", ref).WithHint("give the name of a repository, such as HOST/NAME:TAG")
	}
	if ref.Digest != "" && ref.Digest != digest {
		return "", errdefs.Invalid("push to %s: the image is %s", ref.Familiar(), digest)
	}
	e, err := newPushEndpoint(ref, u.From, o.withDefaults())
	if err != nil {
		return "", errdefs.Wrap(err, "push to %s", ref.Familiar())
	}
	defer e.guard.closeIdle()
	p := &pusher{e: e, ref: ref, from: u.From, retry: o.withDefaults().Retry, progress: progress}
	defer p.silent()
	for _, b := range u.Blobs {
		p.all += b.Size
	}
	for _, b := range u.Blobs {
		if err := p.blob(ctx, b); err != nil {
			return "", errdefs.Wrap(p.explain(err), "push to %s: blob %s", ref.Familiar(), b.Digest.Short())
		}
	}
	err = p.retry.again(ctx, func() (bool, error) { return false, p.manifest(ctx, u, digest) })
	return digest, errdefs.Wrap(p.explain(err), "push to %s: manifest", ref.Familiar())
}

func newPushEndpoint(ref Reference, from []string, o Options) (*endpoint, error) {
	e, err := newEndpoint(ref.Host, ref.Repository, o.Insecure, false, o)
	if err != nil {
		return nil, err
	}
	e.pushing = true
	e.scopes = []string{"repository:" + e.repo + ":" + transport.PushScope}
	for _, repo := range from {
		if !repoExp.MatchString(repo) || len(repo) > maxRepo {
			return nil, errdefs.Invalid("no repository is called %.100q", repo)
		}
		e.scopes = append(e.scopes, "repository:"+repo+":"+transport.PullScope)
	}
	return e, nil
}

// pusher pushes one image.
type pusher struct {
	e         *endpoint
	ref       Reference
	from      []string
	retry     Retry
	sent, all int64 // of blobs; sent without the present one

	mu       sync.Mutex // a leaf; orders the reports: a request that failed may still read its body
	progress func(Progress)
}

// silent lets nothing be reported any more.
func (p *pusher) silent() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.progress = nil
}

func (p *pusher) explain(err error) error {
	var local *localError
	if errors.As(err, &local) {
		return local.error
	}
	return p.e.explain(err)
}

func (p *pusher) tell(b Blob, done int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.progress != nil {
		p.progress(Progress{Layer: b.Layer, Done: done, AllDone: p.sent + done, All: p.all})
	}
}

// upload is one blob on its way.
type upload struct {
	*pusher
	Blob
	location string // where to go on; "": nowhere yet
	at       int64  // how much of it the registry has
	resumed  bool   // as it says
}

func (p *pusher) blob(ctx context.Context, b Blob) error {
	up := &upload{pusher: p, Blob: b}
	err := p.retry.again(ctx, func() (further bool, err error) {
		there, err := p.has(ctx, b.Digest)
		if there || err != nil {
			return false, err
		}
		before := up.at
		if there, err = up.begin(ctx); there || err != nil {
			return false, err
		}
		return up.at > before, up.doubt(up.finish(ctx))
	})
	if err == nil {
		p.tell(b, b.Size)
		p.sent += b.Size
	}
	return err
}

// has asks whether the registry has a blob.
func (p *pusher) has(ctx context.Context, d blobs.Digest) (bool, error) {
	ctx, quiet := withSilence(ctx, p.retry.Silence)
	defer quiet.stop()
	resp, err := p.e.request(ctx, http.MethodHead, "/blobs/"+string(d), nil, http.StatusOK, http.StatusNotFound)
	if err != nil {
		return false, err
	}
	return resp.StatusCode == http.StatusOK, resp.Body.Close()
}

// begin finds out where an upload that broke off goes on, or begins a new one. There it
// is if another repository has it.
func (u *upload) begin(ctx context.Context) (there bool, err error) {
	if u.location != "" && u.resume(ctx) {
		return false, nil
	}
	u.location, u.at, u.resumed = "", 0, false
	for _, from := range u.from {
		query := "?mount=" + url.QueryEscape(string(u.Digest)) + "&from=" + url.QueryEscape(from)
		if there, err := u.start(ctx, query); there || err != nil {
			return there, err
		}
	}
	if u.location != "" { // what cannot be mounted may be sent instead
		return false, nil
	}
	return u.start(ctx, "")
}

// start begins an upload, or mounts the blob.
func (u *upload) start(ctx context.Context, query string) (there bool, err error) {
	ctx, quiet := withSilence(ctx, u.retry.Silence)
	defer quiet.stop()
	want := []int{http.StatusAccepted}
	if query != "" {
		want = append(want, http.StatusCreated)
	}
	resp, err := u.e.request(ctx, http.MethodPost, "/blobs/uploads/"+query, nil, want...)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusCreated {
		return true, nil
	}
	return false, u.follow(resp)
}

// follow notes where the registry wants to be told more.
func (u *upload) follow(resp *http.Response) error {
	to, err := resp.Location()
	if err != nil {
		return errdefs.Unavailable("%s does not say where the upload goes on: %w", u.e.host, &tamed{err})
	}
	to.Fragment = ""
	u.location = to.String()
	return nil
}

// resume asks how much of an upload the registry has, and reports whether it knows.
func (u *upload) resume(ctx context.Context) bool {
	ctx, quiet := withSilence(ctx, u.retry.Silence)
	defer quiet.stop()
	resp, err := u.e.request(ctx, http.MethodGet, u.location, nil, http.StatusNoContent, http.StatusOK, http.StatusAccepted)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	at, ok := received(resp.Header.Get("Range"))
	if !ok || at > u.Size {
		return false
	}
	if resp.Header.Get("Location") != "" && u.follow(resp) != nil {
		return false
	}
	u.at, u.resumed = at, true
	return true
}

// doubt makes an error of the registry's one that passes, where the upload was gone on
// with: it may not know as well as it says.
func (u *upload) doubt(err error) error {
	var se *statusError
	if !u.resumed || !errors.As(err, &se) {
		return err
	}
	u.location = ""
	return fmt.Errorf("%w: an upload that was to go on: %v", errRead, err)
}

// received reads a header that says which bytes have come: 0-LAST. Nothing is 0-0 for some
// and no header for others; a registry that has one byte says the same, so that counts as
// nothing, which it notices.
func received(s string) (int64, bool) {
	var from, last int64
	if n, _ := fmt.Sscanf(strings.TrimPrefix(s, "bytes="), "%d-%d", &from, &last); n != 2 || from != 0 || last < 0 {
		return 0, false
	}
	if last == 0 {
		return 0, true
	}
	return last + 1, true
}

// finish sends what is missing, and has the registry check all of it.
func (u *upload) finish(ctx context.Context) error {
	if u.at < u.Size {
		if err := u.patch(ctx); err != nil {
			return err
		}
	}
	ctx, quiet := withSilence(ctx, u.retry.Silence)
	defer quiet.stop()
	to, sep := u.location, "?"
	if strings.Contains(to, "?") {
		sep = "&"
	}
	// What comes before stays as it came: it may be signed.
	resp, err := u.e.request(ctx, http.MethodPut, to+sep+"digest="+url.QueryEscape(string(u.Digest)), nil, http.StatusCreated, http.StatusNoContent)
	if err != nil {
		u.location = "" // whatever it has, it is not the blob
		return err
	}
	return resp.Body.Close()
}

// patch sends the rest of the content.
func (u *upload) patch(ctx context.Context) error {
	ctx, quiet := withSilence(ctx, u.retry.Silence)
	defer quiet.stop()
	header := http.Header{"Content-Type": {"application/octet-stream"}}
	if u.at > 0 { // some registries want no ranges, and need none where all comes at once
		header.Set("Content-Range", fmt.Sprintf("%d-%d", u.at, u.Size-1))
	}
	resp, err := u.e.do(ctx, call{
		method: http.MethodPatch, path: u.location, header: header, size: u.Size - u.at,
		body: func() (io.ReadCloser, error) {
			f, err := u.Open()
			if err != nil {
				return nil, err
			}
			if _, err := f.Seek(u.at, io.SeekStart); err != nil {
				return nil, errors.Join(err, f.Close())
			}
			return struct {
				io.Reader
				io.Closer
			}{quiet.reader(&sending{f, u, u.at}), f}, nil
		},
	}, http.StatusAccepted, http.StatusNoContent, http.StatusCreated)
	if err != nil {
		return err
	}
	u.at = u.Size
	return errors.Join(u.follow(resp), resp.Body.Close())
}

// sending reports how much was sent.
type sending struct {
	r    io.Reader
	u    *upload
	done int64
}

func (s *sending) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.done += int64(n)
	s.u.tell(s.u.Blob, s.done)
	if err != nil && err != io.EOF {
		err = &localError{err}
	}
	return n, err
}

// manifest stores the manifest under its tag, or its digest where there is none.
func (p *pusher) manifest(ctx context.Context, u Upload, digest blobs.Digest) error {
	ctx, quiet := withSilence(ctx, p.retry.Silence)
	defer quiet.stop()
	media := u.MediaType
	if media == "" {
		media = string(types.OCIManifestSchema1)
	}
	name := p.ref.Tag
	if name == "" {
		name = string(digest)
	}
	resp, err := p.e.do(ctx, call{
		method: http.MethodPut, path: "/manifests/" + name, header: http.Header{"Content-Type": {media}}, size: int64(len(u.Manifest)),
		body: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(u.Manifest)), nil },
	}, http.StatusCreated, http.StatusOK, http.StatusAccepted)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if got := resp.Header.Get("Docker-Content-Digest"); got != "" && got != string(digest) {
		return errdefs.Unavailable("%s: it has stored another manifest, %.100q", p.e.host, got).WithHint("push again; if that does not help, the registry or a proxy on the way to it damages what it is sent")
	}
	return nil
}
