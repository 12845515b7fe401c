package oci

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"banger/internal/daemon/imagemgr/blobs"
	"banger/internal/errdefs"
)

// Web fetches from web servers that are no registries, with the patience and the bounds
// that layers are fetched with. It trusts nothing to the way: whoever uses it knows a
// signature or a digest of what has to come.
type Web struct {
	client *http.Client
	agent  string
	retry  Retry
}

// NewWeb returns a Web. A nil transport takes proxies from the environment; of retry,
// what is zero is as for registries.
func NewWeb(agent string, transport *http.Transport, retry Retry) *Web {
	if transport == nil {
		transport = &http.Transport{
			Proxy:               http.ProxyFromEnvironment,
			DialContext:         (&net.Dialer{Timeout: dialTimeout}).DialContext,
			TLSHandshakeTimeout: dialTimeout,
			IdleConnTimeout:     30 * time.Second,
		}
	}
	retry = retry.withDefaults()
	return &Web{client: &http.Client{Transport: bounded(transport, retry.Silence)}, agent: agent, retry: retry}
}

// Close closes connections that nobody uses.
func (w *Web) Close() { w.client.CloseIdleConnections() }

// Get returns what is at an address, at most limit bytes. Errors have a class:
// not_found, permission, exhausted (too long) or unavailable.
func (w *Web) Get(ctx context.Context, at string, limit int64) (data []byte, err error) {
	err = w.retry.again(ctx, func() (bool, error) {
		ctx, quiet := withSilence(ctx, w.retry.Silence)
		defer quiet.stop()
		resp, err := w.request(ctx, at, nil, http.StatusOK)
		if err != nil {
			return false, err
		}
		defer resp.Body.Close()
		data, err = io.ReadAll(io.LimitReader(quiet.reader(resp.Body), limit+1))
		switch {
		case err != nil:
			return false, fmt.Errorf("%w after %d bytes: %w", errRead, len(data), err)
		case int64(len(data)) > limit:
			return false, errdefs.Exhausted("it has more than %d bytes", limit)
		}
		return false, nil
	})
	if err != nil {
		return nil, explainWeb(ctx, at, err)
	}
	return data, nil
}

// Fill writes a blob from an address: see blobs.Fill.
func (w *Web) Fill(at string, d blobs.Digest) blobs.Fill {
	return func(ctx context.Context, b *blobs.Writer) error {
		err := w.retry.fill(ctx, shown(at), b, func() (bool, error) {
			if b.Offset() == b.Size() && b.Size() > 0 {
				return false, nil
			}
			ctx, quiet := withSilence(ctx, w.retry.Silence)
			defer quiet.stop()
			header, wanted := lacking(b)
			resp, err := w.request(ctx, at, header, wanted...)
			if err != nil {
				return false, err
			}
			return receive(resp, quiet, shown(at), d, b)
		})
		var local *localError
		if errors.As(err, &local) {
			return local.error
		}
		return explainWeb(ctx, at, err)
	}
}

func (w *Web) request(ctx context.Context, at string, header http.Header, want ...int) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return nil, errdefs.Invalid("%s: %w", shown(at), err)
	}
	if header != nil {
		req.Header = header
	}
	req.Header.Set("User-Agent", w.agent)
	resp, err := w.client.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		var ue *url.Error
		if errors.As(err, &ue) {
			ue.URL = shown(ue.URL)
		}
		return nil, err
	}
	if slices.Contains(want, resp.StatusCode) {
		return resp, nil
	}
	_ = resp.Body.Close()
	return nil, &statusError{code: resp.StatusCode, after: retryAfter(resp.Header.Get("Retry-After"), time.Now()), web: true}
}

// shown is an address as it may stand in an error: without what may be a key in it.
func shown(at string) string {
	at, _, _ = strings.Cut(at, "?")
	if u, err := url.Parse(at); err == nil {
		return u.Redacted()
	}
	return at
}

func explainWeb(ctx context.Context, at string, err error) error {
	if err == nil || ctx.Err() != nil {
		return err
	}
	var classed *errdefs.Error
	if errors.As(err, &classed) {
		return errdefs.Wrap(err, "fetch %s", shown(at))
	}
	var (
		se   *statusError
		cert *tls.CertificateVerificationError
	)
	err = fmt.Errorf("fetch %s: %w", shown(at), &tamed{err})
	switch {
	case errors.As(err, &se) && (se.code == http.StatusNotFound || se.code == http.StatusGone):
		return errdefs.NotFound("%w", err)
	case errors.As(err, &se) && (se.code == http.StatusUnauthorized || se.code == http.StatusForbidden):
		return errdefs.Permission("%w", err)
	case errors.As(err, &cert):
		return errdefs.Unavailable("%w", err).WithHint("the certificate is not one that this host trusts")
	}
	return errdefs.Unavailable("%w", err).WithHint("check the network and the proxy (HTTPS_PROXY), and try again: what was fetched is kept")
}
