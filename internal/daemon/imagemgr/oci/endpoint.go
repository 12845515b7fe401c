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
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"banger/internal/errdefs"
)

const (
	maxRedirects = 10
	maxHeaders   = 64 << 10
	maxAnswer    = 8<<20 + 1 // bytes, of all answers but those with layers
	dialTimeout  = 20 * time.Second
)

// endpoint is one registry, or a mirror of it, as far as one repository is concerned.
type endpoint struct {
	host string // HOST[:PORT]
	repo string // with the prefix of a mirror
	reg  name.Registry
	keys Keychain
	// What the credentials are looked up by: a mirror has its own.
	keyHost, keyRepo string
	scopes           []string // what a token is asked for
	pushing          bool     // errors are those of a push

	guard  *guard
	turn   chan struct{} // of one place: whoever has put something there may shake hands, and has client
	client *http.Client  // nil before the handshake
	keyErr atomic.Value  // why there are no credentials, should it turn out that some are needed: an error's text
}

func newEndpoint(host, repo string, insecure, plain bool, o Options) (*endpoint, error) {
	opts := []name.Option{}
	loopback := isLoopback(host)
	if insecure || plain || loopback {
		opts = append(opts, name.Insecure)
	}
	reg, err := name.NewRegistry(host, opts...)
	if err != nil {
		return nil, errdefs.Invalid("registry %q: %w", host, err)
	}
	e := &endpoint{
		host: reg.RegistryStr(), repo: repo, reg: reg, keys: o.Keychain, keyHost: host, keyRepo: repo, turn: make(chan struct{}, 1),
		scopes: []string{"repository:" + repo + ":" + transport.PullScope},
	}
	base := o.Transport
	if base == nil {
		base = &http.Transport{
			Proxy:               http.ProxyFromEnvironment,
			DialContext:         (&net.Dialer{Timeout: dialTimeout}).DialContext,
			TLSHandshakeTimeout: dialTimeout,
			IdleConnTimeout:     30 * time.Second,
		}
	}
	e.guard = &guard{
		host: hostname(e.host), plain: insecure || plain || loopback, agent: o.UserAgent,
		strict: bounded(base, o.Retry.Silence),
	}
	e.guard.own = e.guard.strict
	if insecure {
		e.guard.own = bounded(base, o.Retry.Silence)
		if e.guard.own.TLSClientConfig == nil {
			e.guard.own.TLSClientConfig = &tls.Config{}
		}
		e.guard.own.TLSClientConfig.InsecureSkipVerify = true // asked for, for this host alone
	}
	return e, nil
}

func bounded(base *http.Transport, silence time.Duration) *http.Transport {
	t := base.Clone()
	t.MaxResponseHeaderBytes = maxHeaders
	t.ResponseHeaderTimeout = silence
	t.DisableCompression = true // what is packed on the way has another size and digest
	t.MaxIdleConnsPerHost = 8
	// Over HTTP/2 all layers would share one connection, and its window.
	t.ForceAttemptHTTP2, t.Protocols = false, new(http.Protocols)
	t.Protocols.SetHTTP1(true)
	return t
}

func hostname(hostport string) string {
	return strings.ToLower((&url.URL{Host: hostport}).Hostname())
}

// isLoopback reports whether a registry is on this host, so that nobody is in between.
func isLoopback(hostport string) bool {
	h := hostname(hostport)
	ip := net.ParseIP(h)
	return h == "localhost" || strings.HasSuffix(h, ".localhost") || ip != nil && ip.IsLoopback()
}

// errRefused marks requests that we do not make.
var errRefused = errors.New("refused")

// guard is what all requests for an endpoint go through in the end, those of the
// handshake included: it refuses to go without encryption where that was not asked for,
// and bounds what is answered.
type guard struct {
	host   string
	plain  bool            // http will do, for the host itself
	own    *http.Transport // for the host itself
	strict *http.Transport // for where it sends us
	agent  string
}

// What the context of a request says to the guard.
type (
	layerKey struct{} // it is for a layer: something else bounds the answer
	askedKey struct{} // it comes after the handshake
)

// challengeHeader is where guard keeps what else the library would see. It would ask for
// another token with every request that is refused, several at a time, which it is not
// made for, and where others may send us as well.
const challengeHeader = "X-Challenge-Kept"

func (g *guard) RoundTrip(req *http.Request) (*http.Response, error) {
	t, ours := g.strict, hostname(req.URL.Host) == g.host
	if ours {
		t = g.own
	}
	if req.URL.Scheme != "https" && (!ours || !g.plain || req.URL.Scheme != "http") {
		if req.Body != nil {
			_ = req.Body.Close()
		}
		return nil, fmt.Errorf("%s without encryption: %w", req.URL.Host, errRefused)
	}
	req = req.Clone(req.Context())
	req.Header.Set("User-Agent", g.agent)
	resp, err := t.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	if req.Context().Value(askedKey{}) != nil {
		resp.Header[challengeHeader] = resp.Header["Www-Authenticate"]
		delete(resp.Header, "Www-Authenticate")
	}
	if req.Context().Value(layerKey{}) == nil {
		resp.Body = &boundedBody{resp.Body, maxAnswer}
	}
	return resp, nil
}

func (g *guard) closeIdle() {
	g.own.CloseIdleConnections()
	g.strict.CloseIdleConnections()
}

// boundedBody ends with an error where a body is absurdly long.
type boundedBody struct {
	io.ReadCloser
	left int64
}

func (b *boundedBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, fmt.Errorf("the answer does not end: %w", errRefused)
	}
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}

// handshake finds out whether the endpoint speaks TLS and which credentials it wants,
// once, and again for whoever has found the client stale. The client it returns adds
// those to requests to the endpoint's own host; where it is sent elsewhere, it goes
// without.
func (e *endpoint) handshake(ctx context.Context, stale *http.Client) (*http.Client, error) {
	select {
	case e.turn <- struct{}{}:
		defer func() { <-e.turn }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if e.client != stale {
		return e.client, nil
	}
	auth := authn.Anonymous
	if e.keys != nil {
		c, err := e.keys.Credentials(ctx, e.keyHost, e.keyRepo)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		// Most images are for everybody: a helper that does not work stops nobody who
		// does not need it.
		switch {
		case err != nil:
			e.keyErr.Store(err.Error())
		case c != (Credentials{}):
			auth = authn.FromConfig(authn.AuthConfig{
				Username: c.Username, Password: c.Password, IdentityToken: c.IdentityToken, RegistryToken: c.RegistryToken,
			})
		}
	}
	t, err := transport.NewWithContext(ctx, e.reg, auth, e.guard, e.scopes)
	if err != nil {
		return nil, err
	}
	e.client = &http.Client{Transport: t, CheckRedirect: checkRedirect}
	return e.client, nil
}

// checkRedirect bounds redirects, and goes on without encryption only where there was
// none.
func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) >= maxRedirects {
		return fmt.Errorf("redirected more than %d times: %w", maxRedirects, errRefused)
	}
	if via[len(via)-1].URL.Scheme == "https" && req.URL.Scheme != "https" {
		return fmt.Errorf("redirected to %s without encryption: %w", req.URL.Host, errRefused)
	}
	req.Header.Del("Referer")
	return nil
}

// call is a request about the repository.
type call struct {
	method, path string // path below the repository's; or a whole URL, of a Location
	header       http.Header
	body         func() (io.ReadCloser, error) // may be called more than once; nil: there is none
	size         int64                         // of body
}

// request makes one request without a body. An answer other than want is an error; the
// caller closes the body of the others.
func (e *endpoint) request(ctx context.Context, method, path string, header http.Header, want ...int) (*http.Response, error) {
	return e.do(ctx, call{method: method, path: path, header: header}, want...)
}

// do makes any request.
func (e *endpoint) do(ctx context.Context, c call, want ...int) (*http.Response, error) {
	resp, err := e.send(ctx, c)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		var at *url.Error
		if errors.As(err, &at) {
			at.URL, _, _ = strings.Cut(at.URL, "?") // where we were sent, that may be a key
		}
		return nil, err
	}
	if slices.Contains(want, resp.StatusCode) {
		return resp, nil
	}
	return nil, newStatusError(resp)
}

func (e *endpoint) send(ctx context.Context, c call) (*http.Response, error) {
	var client *http.Client
	for {
		stale := client
		var err error
		client, err = e.handshake(context.WithValue(ctx, layerKey{}, nil), stale) // its answers are bounded in any case
		if err != nil {
			return nil, err
		}
		resp, err := e.ask(ctx, client, c)
		if err != nil || stale != nil || resp.StatusCode != http.StatusUnauthorized || !wantsToken(resp) {
			return resp, err
		}
		_ = resp.Body.Close() // the token has expired: a download may take longer than one lives
	}
}

// wantsToken reports whether a refusal is one that a token may help against.
func wantsToken(resp *http.Response) bool {
	return slices.ContainsFunc(resp.Header[challengeHeader], func(s string) bool {
		return strings.HasPrefix(strings.ToLower(s), "bearer ")
	})
}

func (e *endpoint) ask(ctx context.Context, client *http.Client, c call) (*http.Response, error) {
	to := c.path
	if strings.HasPrefix(to, "/") {
		to = "https://" + e.host + "/v2/" + e.repo + to
	}
	req, err := http.NewRequestWithContext(context.WithValue(ctx, askedKey{}, true), c.method, to, nil)
	if err != nil {
		return nil, err
	}
	for k, v := range c.header {
		req.Header[k] = v
	}
	if c.body != nil {
		if req.Body, err = c.body(); err != nil {
			return nil, &localError{err}
		}
		req.GetBody, req.ContentLength = c.body, c.size
	}
	return client.Do(req)
}
