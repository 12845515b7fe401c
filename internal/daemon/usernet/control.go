package usernet

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
	"banger/internal/paths"
)

const (
	// protocolVersion changes when an old helper could misunderstand a client.
	// Requests hello and exit stay what they are in all versions.
	protocolVersion = 1

	maxLine = 1 << 20 // bytes of one line; a list of all VMs must fit
	maxID   = 128     // bytes of a VM's id
	maxPath = 4095    // bytes of a socket's path
	maxVMs  = 4096    // of one helper
	// maxCalls is how many requests of one client are worked on at a time.
	maxCalls = 64
)

// The operations of a request.
const (
	opHello  = "hello"  // answered with Version
	opAttach = "attach" // VM, Socket, Fresh
	opDetach = "detach" // VM
	opList   = "list"   // answered with VMs
	opExit   = "exit"   // answered, then the helper ends
)

// request goes from the client to the helper.
type request struct {
	ID     uint64 `json:"id"`
	Op     string `json:"op"`
	VM     string `json:"vm,omitempty"`
	Socket string `json:"socket,omitempty"` // absolute path
	Fresh  bool   `json:"fresh,omitempty"`  // the VMM was just started: wait for it to listen
}

// reply goes from the helper to the client: the answer to a request, or, with no
// id, an event: the VM named in Gone has ended and is not attached any more.
// Number tells one attachment of a VM from the next.
type reply struct {
	ID      uint64        `json:"id,omitempty"`
	Gone    string        `json:"gone,omitempty"`
	Number  uint64        `json:"number,omitempty"`
	Version int           `json:"version,omitempty"`
	VMs     []string      `json:"vms,omitempty"`
	Class   errdefs.Class `json:"class,omitempty"` // set when the request failed
	Error   string        `json:"error,omitempty"`
}

func (r reply) err() error {
	if r.Class == "" {
		return nil
	}
	return errdefs.New(r.Class, "%s", r.Error)
}

// check validates what came over the socket.
func (r request) check() error {
	switch r.Op {
	case opHello, opList, opExit:
		return nil
	case opAttach:
		if err := checkID(r.VM); err != nil {
			return err
		}
		return checkNetSocket(r.Socket)
	case opDetach:
		return checkID(r.VM)
	}
	return errdefs.Invalid("unknown request %q", r.Op)
}

func checkID(id string) error {
	if id == "" || len(id) > maxID {
		return errdefs.Invalid("vm id has %d bytes; 1 to %d are allowed", len(id), maxID)
	}
	for _, c := range []byte(id) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_', c == '.':
		default:
			return errdefs.Invalid("vm id %q has a character that is not allowed", id)
		}
	}
	return nil
}

func checkNetSocket(path string) error {
	if len(path) > maxPath || !filepath.IsAbs(path) || filepath.Clean(path) != path {
		return errdefs.Invalid("network socket %.200q is not a clean absolute path", path)
	}
	for _, c := range []byte(path) {
		if c == 0 {
			return errdefs.Invalid("network socket %q has a zero byte", path)
		}
	}
	return nil
}

// lines reads JSON objects, one a line, of at most maxLine bytes.
func lines(c net.Conn) *bufio.Scanner {
	s := bufio.NewScanner(c)
	s.Buffer(make([]byte, 0, 1024), maxLine)
	return s
}

func writeLine(c net.Conn, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = c.Write(append(b, '\n'))
	return err
}

// checkPeer refuses a peer of another user.
func checkPeer(c *net.UnixConn) error {
	cred, err := peerOf(c)
	if err != nil {
		return err
	}
	if int(cred.Uid) != os.Geteuid() {
		return errdefs.Permission("control socket: peer is user %d, not %d", cred.Uid, os.Geteuid())
	}
	return nil
}

func peerOf(c *net.UnixConn) (*unix.Ucred, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("read peer credentials: %w", err)
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return nil, fmt.Errorf("read peer credentials: %w", err)
	}
	if credErr != nil {
		return nil, fmt.Errorf("read peer credentials: %w", credErr)
	}
	return cred, nil
}

// dialSocket connects to a unix socket whose path may be longer than a socket
// address: then by way of a descriptor of its directory.
func dialSocket(ctx context.Context, path string) (*net.UnixConn, error) {
	if len(path) > paths.MaxSocketPath {
		dir, err := os.OpenFile(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		defer func() { _ = dir.Close() }()
		path = fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path))
	}
	if err := paths.CheckSocket(path); err != nil {
		return nil, err
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	return c.(*net.UnixConn), nil
}

// nobody reports whether err says that no process listens on a socket.
func nobody(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOENT)
}

// errLost is a control connection that ended before the answer came.
var errLost = errdefs.Unavailable("the network helper went away")

// session is the client's end of a control connection.
type session struct {
	conn  *net.UnixConn
	gone  func(vm string, number uint64) // called for events, on the reader's goroutine
	ended chan struct{}                  // closed when the connection is no more
	began time.Time

	// mu guards the requests under way; writes happen under it so that lines
	// stay whole (they are short, and the helper reads at once).
	mu      sync.Mutex
	lastID  uint64
	waiting map[uint64]chan reply
}

func newSession(conn *net.UnixConn, gone func(string, uint64)) *session {
	s := &session{conn: conn, gone: gone, ended: make(chan struct{}), began: time.Now(), waiting: make(map[uint64]chan reply)}
	go s.read()
	return s
}

func (s *session) read() {
	defer close(s.ended)
	defer func() { _ = s.conn.Close() }()
	in := lines(s.conn)
	for in.Scan() {
		var r reply
		if json.Unmarshal(in.Bytes(), &r) != nil {
			return
		}
		if r.ID == 0 {
			if r.Gone != "" {
				s.gone(r.Gone, r.Number)
			}
			continue
		}
		s.mu.Lock()
		ch := s.waiting[r.ID]
		delete(s.waiting, r.ID)
		s.mu.Unlock()
		if ch != nil {
			ch <- r
		}
	}
}

// call sends a request and waits for its answer. It errors with errLost when
// the helper goes away first.
func (s *session) call(ctx context.Context, q request) (reply, error) {
	ch := make(chan reply, 1)
	s.mu.Lock()
	s.lastID++
	q.ID = s.lastID
	s.waiting[q.ID] = ch
	err := writeLine(s.conn, q)
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.waiting, q.ID)
		s.mu.Unlock()
	}()
	if err != nil {
		return reply{}, errLost
	}
	select {
	case r := <-ch:
		return r, r.err()
	case <-s.ended:
		// The answer may have come just before the end.
		select {
		case r := <-ch:
			return r, r.err()
		default:
			return reply{}, errLost
		}
	case <-ctx.Done():
		return reply{}, context.Cause(ctx)
	}
}

func (s *session) close() {
	_ = s.conn.Close()
	<-s.ended
}
