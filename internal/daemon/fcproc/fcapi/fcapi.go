// Package fcapi is a small client of Firecracker's API: HTTP and JSON over a unix
// socket, as its public description has it from 1.8 on. The types hold what banger
// uses and no more.
package fcapi

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// maxAnswer bounds an answer, in bytes; the longest in use has a few kB.
const maxAnswer = 1 << 20

// idleTime is how long a connection is kept for the next call.
const idleTime = 10 * time.Second

// Fault is a call that Firecracker refused, in its own words.
type Fault struct {
	Call    string // "PUT /boot-source"
	Status  int
	Message string
}

func (f *Fault) Error() string { return f.Call + ": " + f.Message }

// Client calls one Firecracker. Its methods may be called concurrently.
type Client struct{ http *http.Client }

// New returns a client whose connections dial makes; it makes none yet.
func New(dial func(ctx context.Context) (net.Conn, error)) *Client {
	return &Client{http: &http.Client{Transport: &http.Transport{
		DialContext:        func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		DisableCompression: true, // it refuses what it does not know
		MaxIdleConns:       1,
		IdleConnTimeout:    idleTime,
	}}}
}

// Close closes the connections that are kept.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Put sends in, as JSON, to path.
func (c *Client) Put(ctx context.Context, path string, in any) error {
	return c.call(ctx, http.MethodPut, path, in, nil)
}

// Patch sends in, as JSON, to path.
func (c *Client) Patch(ctx context.Context, path string, in any) error {
	return c.call(ctx, http.MethodPatch, path, in, nil)
}

// Get reads path into out.
func (c *Client) Get(ctx context.Context, path string, out any) error {
	return c.call(ctx, http.MethodGet, path, nil, out)
}

func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	name := method + " " + path
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://firecracker"+path, body)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	req.Header.Set("Accept", "application/json")
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return fmt.Errorf("%s: %w", name, err)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", name, err)
	case len(answer) > maxAnswer:
		return fmt.Errorf("%s: the answer has more than %d bytes", name, maxAnswer)
	case res.StatusCode >= 300:
		return fault(name, res.StatusCode, answer)
	case out == nil:
		return nil
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return fmt.Errorf("%s: decode the answer: %w", name, err)
	}
	return nil
}

func fault(name string, status int, answer []byte) error {
	var f struct {
		Message string `json:"fault_message"`
	}
	if json.Unmarshal(answer, &f) != nil || f.Message == "" {
		f.Message = string(bytes.TrimSpace(answer[:min(len(answer), 512)]))
		if f.Message == "" {
			f.Message = fmt.Sprintf("refused with status %d", status)
		}
	}
	return &Fault{Call: name, Status: status, Message: f.Message}
}
