package client

import (
	"context"
	"io"
	"net/http"
	"path"
	"strconv"
	"strings"

	"banger/internal/api"
	"banger/internal/errdefs"
)

// guard is the transport below every procedure. It checks that the daemon speaks
// our protocol and is of our build: on the first answer, when that answers a
// procedure which only reads, so that the check costs nothing; ahead of the first
// request otherwise, because a request that changes something must not reach a
// daemon that is about to be replaced.
type guard struct {
	client *Client
	base   *http.Transport
}

// infoPath is the cheapest procedure there is.
const infoPath = "/banger.v1.DaemonService/Info"

func (g *guard) CloseIdleConnections() { g.base.CloseIdleConnections() }

// RoundTrip implements http.RoundTripper.
func (g *guard) RoundTrip(req *http.Request) (*http.Response, error) {
	if !g.client.checked.Load() {
		if resp, err := g.check(req); resp != nil || err != nil {
			return resp, err
		}
	}
	return g.base.RoundTrip(req)
}

// check checks the daemon, with req itself if that may be sent twice; then it
// returns the answer. Requests made at the same time wait for the check, and for
// nothing else.
func (g *guard) check(req *http.Request) (*http.Response, error) {
	c := g.client
	c.checkMu.Lock()
	defer c.checkMu.Unlock()
	if c.checked.Load() {
		return nil, nil
	}
	if !readsOnly(req) {
		return nil, g.probe(req.Context())
	}
	resp, err := g.base.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	replaced, err := c.settle(req.Context(), resp.Header)
	if err == nil && !replaced {
		return resp, nil
	}
	_ = resp.Body.Close()
	if err != nil {
		return nil, err
	}
	g.base.CloseIdleConnections()
	again := req.Clone(req.Context())
	if again.Body, err = req.GetBody(); err != nil {
		return nil, err
	}
	return g.base.RoundTrip(again)
}

// probe asks for nothing but the headers.
func (g *guard) probe(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, baseURL+infoPath, strings.NewReader("{}"))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := g.base.RoundTrip(req)
	if err != nil {
		return err
	}
	// Read to the end, so that the connection is used again.
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
	_ = resp.Body.Close()
	replaced, err := g.client.settle(ctx, resp.Header)
	if replaced {
		g.base.CloseIdleConnections()
	}
	return err
}

// readsOnly reports whether a request can be sent twice.
func readsOnly(req *http.Request) bool {
	if req.GetBody == nil {
		return false
	}
	switch path.Base(req.URL.Path) {
	case "List", "Get", "GetSSH", "Info":
		return true
	}
	return false
}

// settle looks at the headers of an answer; the caller holds checkMu. True means
// that another daemon answers from now on.
func (c *Client) settle(ctx context.Context, h http.Header) (replaced bool, err error) {
	proto, convErr := strconv.Atoi(h.Get(api.HeaderProtocol))
	remote := Remote{Socket: c.Socket(), Version: h.Get(api.HeaderVersion), Protocol: proto}
	if convErr != nil {
		return false, errdefs.Unavailable("what answers at %s is not a banger daemon", remote.Socket).
			WithHint("remove the socket or choose another with --socket")
	}
	if c.opts.AnyProtocol {
		c.checked.Store(true)
		return false, nil
	}
	if proto > api.Protocol {
		return false, errdefs.Unsupported("the daemon at %s speaks protocol %d; this banger knows %d", remote.Socket, proto, api.Protocol).
			WithHint("upgrade this banger to %s, or go back to its daemon: banger daemon stop", remote.Version)
	}
	if c.opts.Version != "" && remote.Version != c.opts.Version && c.opts.Outdated != nil {
		if replaced, err = c.opts.Outdated(ctx, remote); err != nil {
			return false, err
		}
	}
	if !replaced && proto < api.Protocol {
		return false, errdefs.Unsupported("the daemon at %s speaks protocol %d; this banger needs %d", remote.Socket, proto, api.Protocol).
			WithHint("end it, the next command starts one of this version: banger daemon stop")
	}
	c.checked.Store(true)
	// Of a daemon that was just started nothing is known yet.
	if c.opts.Notice != nil && (replaced || h.Get(api.HeaderNotices) != "") {
		info, err := c.Info(ctx)
		if err != nil {
			return replaced, err
		}
		for _, n := range info.GetNotices() {
			c.opts.Notice(n)
		}
	}
	return replaced, nil
}
