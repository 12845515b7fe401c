package fcfetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"banger/internal/errdefs"
)

// stall is how long a server may say nothing.
const stall = 60 * time.Second

const offlineHint = "check the network and the proxy (HTTPS_PROXY); or bring the archive here by other means and give it: --from FILE"

// get opens what is behind a URL; total is its size, or 0 when the server does not say.
// A server that falls silent ends the reading.
func get(ctx context.Context, url string) (_ io.ReadCloser, total int64, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	b := &body{cancel: cancel}
	b.watch = time.AfterFunc(stall, func() { cancel(errSilent) })
	defer func() {
		if err != nil {
			_ = b.Close()
		}
	}()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, 0, errdefs.Invalid("%w", err).WithHint("give the URL of a mirror that is laid out as %s", Releases)
	}
	c := &http.Client{
		// Packed on the way it would have another size than it has.
		Transport:     &http.Transport{Proxy: http.ProxyFromEnvironment, DisableCompression: true, DisableKeepAlives: true},
		CheckRedirect: checkRedirect,
	}
	resp, err := c.Do(req)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return nil, 0, lost(ctx, err)
	}
	b.body, b.ctx = resp.Body, ctx
	switch resp.StatusCode {
	case http.StatusOK:
		return b, max(resp.ContentLength, 0), nil
	case http.StatusNotFound:
		return nil, 0, errdefs.NotFound("there is no %s", url).WithHint("choose a release that is listed at %s: --version", Releases)
	}
	return nil, 0, errdefs.Unavailable("get %s: the server says %s", url, resp.Status).WithHint(offlineHint)
}

var errSilent = fmt.Errorf("the server has said nothing for %s", stall)

// checkRedirect refuses to go on without encryption where there was one.
func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) >= 10 {
		return errors.New("it is redirected again and again")
	}
	if via[0].URL.Scheme == "https" && req.URL.Scheme != "https" {
		return fmt.Errorf("it is redirected to %s, without encryption", req.URL.Redacted())
	}
	return nil
}

// lost explains a download that ended early.
func lost(ctx context.Context, err error) error {
	if ctx.Err() != nil && !errors.Is(context.Cause(ctx), errSilent) {
		return context.Cause(ctx)
	}
	return errdefs.Unavailable("download: %w", err).WithHint(offlineHint)
}

// body is what a server sends.
type body struct {
	body   io.ReadCloser
	ctx    context.Context // of this request alone
	cancel context.CancelCauseFunc
	watch  *time.Timer
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.body.Read(p)
	b.watch.Reset(stall)
	if err != nil && !errors.Is(err, io.EOF) {
		if cause := context.Cause(b.ctx); cause != nil {
			err = cause
		}
		err = lost(b.ctx, err)
	}
	return n, err
}

func (b *body) Close() error {
	b.watch.Stop()
	b.cancel(nil)
	if b.body == nil {
		return nil
	}
	return b.body.Close()
}
