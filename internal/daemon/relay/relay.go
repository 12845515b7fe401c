// Package relay is the daemon's end of the byte-stream endpoints: it upgrades an
// HTTP request to a raw connection, reads the client's request frame, and copies
// bytes between the client and an agent.
package relay

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protojson"

	"banger/internal/api"
	"banger/internal/errdefs"
	"banger/internal/guest"
)

// requestTimeout bounds how long a client may take to send its request frame.
const requestTimeout = 30 * time.Second

// hangupTimeout is how long an agent may take to end the stream of a client that
// went away.
const hangupTimeout = 30 * time.Second

// Check reports whether r asks for a stream.
func Check(r *http.Request) error {
	if r.Header.Get("Upgrade") != api.UpgradeProtocol {
		return errdefs.Invalid("%s is a stream endpoint: the request has no \"Upgrade: %s\" header", r.URL.Path, api.UpgradeProtocol)
	}
	return nil
}

// WriteError answers a stream request that cannot be served.
func WriteError(w http.ResponseWriter, err error) {
	status := http.StatusInternalServerError
	switch errdefs.ClassOf(err) {
	case errdefs.ClassInvalidArgument:
		status = http.StatusBadRequest
	case errdefs.ClassNotFound:
		status = http.StatusNotFound
	case errdefs.ClassFailedPrecondition, errdefs.ClassBusy, errdefs.ClassAlreadyExists:
		status = http.StatusConflict
	case errdefs.ClassPermission:
		status = http.StatusForbidden
	case errdefs.ClassUnavailable:
		status = http.StatusServiceUnavailable
	}
	body, merr := protojson.Marshal(api.Detail(err))
	if merr != nil {
		http.Error(w, err.Error(), status)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(body)
}

// Accept upgrades a request that passed Check and reads the client's request
// frame. The returned connection is the caller's to close. Errors have been told
// to the client already.
func Accept(w http.ResponseWriter, r *http.Request) (net.Conn, guest.Request, error) {
	var req guest.Request
	hijacker, ok := w.(http.Hijacker)
	if !ok {
		err := errdefs.Internal("the connection cannot be taken over")
		WriteError(w, err)
		return nil, req, err
	}
	header := w.Header()
	conn, buf, err := hijacker.Hijack()
	if err != nil {
		return nil, req, err
	}
	client := &buffered{Conn: conn, r: buf.Reader}
	fail := func(err error) (net.Conn, guest.Request, error) {
		_ = conn.Close()
		return nil, req, err
	}
	if err := conn.SetDeadline(time.Now().Add(requestTimeout)); err != nil {
		return fail(err)
	}
	answer := bytes.NewBufferString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + api.UpgradeProtocol + "\r\n")
	_ = header.Write(answer) // a buffer takes everything
	answer.WriteString("\r\n")
	if _, err := answer.WriteTo(conn); err != nil {
		return fail(err)
	}
	if req, err = guest.ReadRequest(client); err != nil {
		Fail(client, err)
		return fail(err)
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return fail(err)
	}
	return client, req, nil
}

// Fail ends an accepted stream with an error frame.
func Fail(client net.Conn, err error) {
	_ = guest.NewFrameWriter(client).Control(guest.ErrorControl(err))
}

// buffered is a connection whose first bytes the HTTP server has read already.
type buffered struct {
	net.Conn
	r *bufio.Reader
}

func (b *buffered) Read(p []byte) (int, error) {
	if b.r.Buffered() > 0 {
		return b.r.Read(p)
	}
	return b.Conn.Read(p)
}

// buffers are reused between streams; 64 KiB is what one read of the channel gives.
var buffers = sync.Pool{New: func() any { b := make([]byte, 64<<10); return &b }}

// Splice copies both ways until one side has ended and closes both. The agent ends
// a stream by closing it after its last frame; a client that goes away closes the
// agent's side, which the agent takes as a hang-up.
func Splice(client, agent net.Conn) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		pump(&patient{Conn: agent, client: client}, client)
		_ = agent.Close()
		_ = agent.SetReadDeadline(time.Now().Add(hangupTimeout))
	}()
	pump(client, agent)
	_ = client.Close()
	_ = agent.Close() // nobody reads what is on its way to it
	<-done
}

func pump(dst io.Writer, src io.Reader) {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	// The wrappers keep io.CopyBuffer from ReadFrom and WriteTo, which would bring
	// buffers of their own.
	_, _ = io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, *buf)
}

// lookAfter is how long an agent may take nothing before we look whether the
// client, from which nobody reads meanwhile, is still there.
const lookAfter = time.Second

// patient writes to an agent for as long as the client is there.
type patient struct {
	net.Conn
	client net.Conn
}

func (p *patient) Write(b []byte) (int, error) {
	for written := 0; ; {
		if err := p.SetWriteDeadline(time.Now().Add(lookAfter)); err != nil {
			return written, err
		}
		n, err := p.Conn.Write(b[written:])
		written += n
		var e net.Error
		if err == nil || !errors.As(err, &e) || !e.Timeout() || gone(p.client) {
			return written, err
		}
	}
}

// gone reports whether a client has hung up, whatever it sent before that and is
// not read yet.
func gone(client net.Conn) bool {
	if b, ok := client.(*buffered); ok {
		client = b.Conn
	}
	c, ok := client.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return true
	}
	poll := []unix.PollFd{{Events: unix.POLLRDHUP}}
	if closed := raw.Control(func(fd uintptr) {
		poll[0].Fd = int32(fd)
		_, err = unix.Poll(poll, 0)
	}); closed != nil {
		return true // on our side
	}
	return err == nil && poll[0].Revents != 0
}
