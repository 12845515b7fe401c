package client

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	"banger/internal/api"
	"banger/internal/api/bangerv1"
	"banger/internal/errdefs"
)

// Bounds of what is read of an answer to an upgrade.
const (
	maxStreamHead = 16 << 10
	maxStreamBody = 64 << 10
)

// OpenStream opens a byte stream to the agent of a VM (path as of api.StreamPath
// or api.WorkspacePath) and returns it once the daemon has agreed. ctx bounds the
// opening alone; what follows is guarded by whoever uses the connection.
//
// It speaks HTTP by hand: this is the path of every exec, and needs no pool, no
// redirects and no goroutines.
func (c *Client) OpenStream(ctx context.Context, path string) (net.Conn, error) {
	for {
		conn, header, err := c.upgrade(ctx, path)
		if header == nil || c.checked.Load() {
			return conn, err
		}
		// Nothing was asked of the agent yet: the daemon may still be replaced.
		replaced, settleErr := c.settleOnce(ctx, header)
		if settleErr == nil && !replaced {
			return conn, err
		}
		if conn != nil {
			_ = conn.Close()
		}
		if settleErr != nil {
			return nil, settleErr
		}
	}
}

func (c *Client) settleOnce(ctx context.Context, h http.Header) (bool, error) {
	c.checkMu.Lock()
	defer c.checkMu.Unlock()
	if c.checked.Load() {
		return false, nil
	}
	return c.settle(ctx, h)
}

// upgrade asks for the stream. The header is that of the daemon's answer, whether
// it agreed or not; nil without one.
func (c *Client) upgrade(ctx context.Context, path string) (net.Conn, http.Header, error) {
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	out, header, err := handshake(conn, path)
	if !stop() && err == nil {
		err = context.Cause(ctx) // the deadline hit just after the answer
	}
	if err != nil {
		_ = conn.Close()
		if ctx.Err() != nil {
			return nil, nil, context.Cause(ctx)
		}
		return nil, header, err
	}
	return out, header, nil
}

// handshake asks for the stream and reads the daemon's answer.
func handshake(conn net.Conn, path string) (net.Conn, http.Header, error) {
	_, err := fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: bangerd\r\nConnection: Upgrade\r\nUpgrade: %s\r\nContent-Length: 0\r\n\r\n",
		path, api.UpgradeProtocol)
	if err != nil {
		return nil, nil, streamLost(err)
	}
	head := &io.LimitedReader{R: conn, N: maxStreamHead}
	r := bufio.NewReaderSize(head, 4<<10)
	resp, err := http.ReadResponse(r, &http.Request{Method: http.MethodPost})
	if err != nil {
		return nil, nil, streamLost(err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		head.N = maxStreamBody
		return nil, resp.Header, refusal(resp)
	}
	if resp.Header.Get("Upgrade") != api.UpgradeProtocol {
		return nil, resp.Header, errdefs.Internal("the daemon switched to protocol %q", resp.Header.Get("Upgrade"))
	}
	if r.Buffered() == 0 {
		return conn, resp.Header, nil
	}
	head.N = int64(1) << 62 // what follows is the stream
	return &bufferedConn{Conn: conn, r: r}, resp.Header, nil
}

// refusal is the error in an answer that is no upgrade.
func refusal(resp *http.Response) error {
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxStreamBody))
	if err != nil {
		return streamLost(err)
	}
	if err := decodeDetail(body); err != nil {
		return err
	}
	return errdefs.Unavailable("the daemon answered %q to the request for a stream", resp.Status).
		WithHint("the daemon may be of another version; see: banger daemon status")
}

// decodeDetail returns the error that a JSON ErrorDetail stands for, or nil when
// body is none.
func decodeDetail(body []byte) error {
	var d bangerv1.ErrorDetail
	if (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(body, &d) != nil || d.Class == "" {
		return nil
	}
	return api.FromDetail(&d)
}

func streamLost(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = io.ErrUnexpectedEOF
	}
	return errdefs.Unavailable("open a stream to the VM: %w", err).WithHint("banger daemon logs says why")
}
