// Package client is the typed client of the daemon: one method per procedure,
// byte streams to the agents of VMs, and the start of a daemon that is not there.
//
// It dials on first use, so a Client costs nothing until a method is called, and
// it learns the daemon's version from the first answer instead of asking for it.
// Every error it returns is classified (package errdefs).
package client

import (
	"bufio"
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"connectrpc.com/connect"

	"banger/internal/api"
	"banger/internal/api/bangerv1"
	"banger/internal/api/bangerv1/bangerv1connect"
	"banger/internal/errdefs"
	"banger/internal/paths"
)

// Options say which daemon to talk to.
type Options struct {
	// Sockets are the API sockets to try, in order; the first that accepts is used.
	Sockets []string
	// Version is this program's build; empty accepts any daemon that speaks
	// our protocol.
	Version string
	// AnyProtocol accepts a daemon of another protocol. Only DaemonService is the
	// same in all of them.
	AnyProtocol bool
	// Missing is called when no socket accepts; when it returns nil the first
	// socket is dialled once more. Nil: that is an error.
	Missing func(ctx context.Context) error
	// Outdated is called, at most once, when the daemon is of another build, before
	// anything that changes state was sent to it. It returns true when it
	// replaced the daemon.
	Outdated func(ctx context.Context, r Remote) (bool, error)
	// Notice is called with each thing that the daemon wants its user to know, once
	// its version is settled.
	Notice func(*bangerv1.Notice)
}

// Remote is a daemon that answered.
type Remote struct {
	Socket   string
	Version  string
	Protocol int
}

// Client talks to one daemon. Its methods may be called concurrently.
type Client struct {
	opts Options
	http *http.Client

	vms        bangerv1connect.VMServiceClient
	ports      bangerv1connect.PortServiceClient
	images     bangerv1connect.ImageServiceClient
	kernels    bangerv1connect.KernelServiceClient
	networks   bangerv1connect.NetworkServiceClient
	operations bangerv1connect.OperationServiceClient
	workspaces bangerv1connect.WorkspaceServiceClient
	daemon     bangerv1connect.DaemonServiceClient

	dialMu sync.Mutex // held while the daemon is looked for, so that it is started once
	socket string     // the socket in use; guarded by dialMu

	checkMu sync.Mutex // held while the version is settled, so that it is settled once
	checked atomic.Bool
}

// baseURL names no host: the transport always dials the socket.
const baseURL = "http://bangerd"

// New returns a client of the daemon behind one socket.
func New(socket string) *Client { return Open(Options{Sockets: []string{socket}}) }

// Open returns a client. Nothing is dialled yet.
func Open(opts Options) *Client {
	c := &Client{opts: opts}
	transport := &http.Transport{
		DialContext:        func(ctx context.Context, _, _ string) (net.Conn, error) { return c.dial(ctx) },
		DisableCompression: true,
		// A unix socket is as fast as gzip is slow, and streams have no end in sight.
		MaxIdleConnsPerHost: 16,
	}
	c.http = &http.Client{Transport: &guard{client: c, base: transport}}
	plain := connect.WithAcceptCompression("gzip", nil, nil)
	c.vms = bangerv1connect.NewVMServiceClient(c.http, baseURL, plain)
	c.ports = bangerv1connect.NewPortServiceClient(c.http, baseURL, plain)
	c.images = bangerv1connect.NewImageServiceClient(c.http, baseURL, plain)
	c.kernels = bangerv1connect.NewKernelServiceClient(c.http, baseURL, plain)
	c.networks = bangerv1connect.NewNetworkServiceClient(c.http, baseURL, plain)
	c.operations = bangerv1connect.NewOperationServiceClient(c.http, baseURL, plain)
	c.workspaces = bangerv1connect.NewWorkspaceServiceClient(c.http, baseURL, plain)
	c.daemon = bangerv1connect.NewDaemonServiceClient(c.http, baseURL, plain)
	return c
}

// Close gives up idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Socket returns the socket in use, or the first candidate.
func (c *Client) Socket() string {
	c.dialMu.Lock()
	defer c.dialMu.Unlock()
	if c.socket == "" && len(c.opts.Sockets) > 0 {
		return c.opts.Sockets[0]
	}
	return c.socket
}

// dial connects to the daemon, looking for it (and having it started) once.
func (c *Client) dial(ctx context.Context) (net.Conn, error) {
	c.dialMu.Lock()
	defer c.dialMu.Unlock()
	if c.socket != "" {
		return dialSocket(ctx, c.socket)
	}
	var first error
	for _, socket := range c.opts.Sockets {
		conn, err := dialSocket(ctx, socket)
		if err == nil {
			c.socket = socket
			return conn, nil
		}
		if first == nil {
			first = err
		}
	}
	if c.opts.Missing == nil || !errors.Is(first, errdefs.ErrUnavailable) {
		return nil, first
	}
	if err := c.opts.Missing(ctx); err != nil {
		return nil, err
	}
	conn, err := dialSocket(ctx, c.opts.Sockets[0])
	if err == nil {
		c.socket = c.opts.Sockets[0]
	}
	return conn, err
}

// dialSocket connects to one socket and says in our terms why that failed.
func dialSocket(ctx context.Context, socket string) (net.Conn, error) {
	if err := paths.CheckSocket(socket); err != nil {
		return nil, err
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	switch {
	case err == nil:
		return conn, nil
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case errors.Is(err, fs.ErrPermission):
		return nil, errdefs.Permission("connect to the daemon at %s: %w", socket, syscall.EACCES).
			WithHint("only its user and root may talk to a daemon: run banger as that user, or use your own, without --socket, %s and %s",
				paths.EnvSocket, paths.EnvStateDir)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return nil, errdefs.Unavailable("no daemon at %s: the socket does not exist", socket).
			WithHint("banger daemon start")
	case errors.Is(err, syscall.ECONNREFUSED):
		return nil, errdefs.Unavailable("no daemon at %s: nothing listens on the socket", socket).
			WithHint("banger daemon start")
	}
	return nil, errdefs.Unavailable("connect to the daemon at %s: %w", socket, err).
		WithHint("banger daemon status")
}

// mapErr gives an error of a call its class. An error of the dialling inside is
// already in our terms and loses what the HTTP client put around it.
func mapErr(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil && !isDetail(err) {
		return context.Cause(ctx)
	}
	var known *errdefs.Error
	if errors.As(err, &known) {
		return known
	}
	err = api.FromConnect(err)
	if lost(err) {
		return errdefs.Unavailable("lost the connection to the daemon: %w", rootCause(err)).
			WithHint("banger daemon logs says why")
	}
	// The HTTP client has no types for these: an answer that is no HTTP, and one that
	// came before the question.
	if text := err.Error(); strings.Contains(text, "malformed HTTP") || strings.Contains(text, "readLoopPeekFailLocked") {
		return errdefs.Unavailable("what listens on the socket is no banger daemon: %w", rootCause(err)).
			WithHint("end it, or use another state directory: set %s", paths.EnvStateDir)
	}
	return err
}

// isDetail reports whether the daemon itself said what went wrong.
func isDetail(err error) bool {
	var ce *connect.Error
	return errors.As(err, &ce) && len(ce.Details()) > 0
}

func lost(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) ||
		strings.HasSuffix(err.Error(), "server closed idle connection")
}

func rootCause(err error) error {
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return err
		}
		err = next
	}
}

// bufferedConn is a connection of which a reader holds the first bytes.
type bufferedConn struct {
	net.Conn
	r *bufio.Reader
}

func (b *bufferedConn) Read(p []byte) (int, error) { return b.r.Read(p) }

// CloseWrite ends our side of the connection.
func (b *bufferedConn) CloseWrite() error {
	if u, ok := b.Conn.(*net.UnixConn); ok {
		return u.CloseWrite()
	}
	return nil
}
