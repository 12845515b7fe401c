package usernet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
	"banger/internal/logkey"
	"banger/internal/paths"
)

// EnvReadyFD names the descriptor on which a helper started by a Client says how
// its start went.
const EnvReadyFD = "BANGER_USERNET_READY_FD"

// What is written to that descriptor; anything else is an error's text.
const (
	readyLine = "ready"
	takenLine = "taken" // another helper serves this socket
)

const (
	defaultGrace = 10 * time.Second
	maxSessions  = 16
	fileReserve  = 128 // descriptors kept for everything but flows
)

// HelperConfig is what the helper process needs.
type HelperConfig struct {
	Socket string       // path of the control socket; its directory exists
	Log    *slog.Logger // nil: none

	// Ready is called once the socket answers. Nil: the descriptor named by
	// EnvReadyFD is told, if there is one.
	Ready func()
	// Policy decides on flows; nil is HostPolicy of this host.
	Policy Policy
	Limits Limits
	// Resolvers is the file with the host's resolvers; empty: HostResolvers.
	Resolvers string
	// Grace is how long a helper without VMs and without clients stays; 0: 10s.
	Grace time.Duration
	// Shared is for a helper inside another program: leave the settings that
	// belong to the whole process (memory, privileges) as they are.
	Shared bool

	redirect func(netip.AddrPort) netip.AddrPort // see host
}

// Serve is the helper: it serves the control socket and the networks of the VMs
// attached through it. It returns nil when it was not needed for a while, or was
// asked to end; when ctx is done; or with class already_exists when another
// helper serves the socket. VMs must be attached again after it ended.
func Serve(ctx context.Context, cfg HelperConfig) error {
	ready := cfg.Ready
	report := func(string) {}
	if ready == nil {
		report = reportTo(os.Getenv(EnvReadyFD))
		ready = func() { report(readyLine) }
	}
	h, err := newHelper(cfg)
	if err != nil {
		if errors.Is(err, errdefs.ErrAlreadyExists) {
			report(takenLine)
		} else {
			report(strings.ReplaceAll(err.Error(), "\n", "; "))
		}
		return err
	}
	ready()
	h.log.InfoContext(ctx, "serving", logkey.Socket, cfg.Socket)
	return h.serve(ctx)
}

// reportTo writes one line to a descriptor given by number and closes it.
func reportTo(number string) func(string) {
	fd, err := strconv.Atoi(number)
	if err != nil || fd < 3 {
		return func(string) {}
	}
	unix.CloseOnExec(fd)
	f := os.NewFile(uintptr(fd), "ready")
	return func(line string) {
		_, _ = f.WriteString(line + "\n")
		_ = f.Close()
	}
}

// helper is a running helper.
type helper struct {
	cfg      HelperConfig
	log      *slog.Logger
	host     host
	addrs    *hostAddrs // nil with a policy of the caller's
	listener *net.UnixListener
	file     os.FileInfo   // the listener's, to tell it from a later one
	quit     chan struct{} // closed by the exit request
	quitOnce sync.Once
	idle     *time.Timer
	sessions sync.WaitGroup

	// mu guards what is there; a change decides whether the idle timer runs.
	mu      sync.Mutex
	vms     map[string]*attachment
	last    uint64 // number of the last attachment
	clients map[*client]struct{}
	closing bool
}

// newHelper does what can fail before the socket answers.
func newHelper(cfg HelperConfig) (*helper, error) {
	if cfg.Grace == 0 {
		cfg.Grace = defaultGrace
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Resolvers == "" {
		cfg.Resolvers = HostResolvers
	}
	h := &helper{cfg: cfg, log: cfg.Log, quit: make(chan struct{}),
		vms: make(map[string]*attachment), clients: make(map[*client]struct{})}
	h.idle = time.NewTimer(cfg.Grace)
	if !cfg.Shared {
		err := settle()
		if errors.Is(err, errors.ErrUnsupported) {
			h.log.Warn("keeping privileges that are of no use", logkey.Err, err)
		} else if err != nil {
			return nil, err
		}
	}
	h.host = host{policy: cfg.Policy, names: NewResolver(cfg.Resolvers), files: &slots{max: fileLimit()},
		limits: cfg.Limits.withDefaults(), log: cfg.Log, redirect: cfg.redirect}
	l, err := listen(cfg.Socket)
	if err != nil {
		return nil, err
	}
	h.listener = l
	h.file, _ = os.Lstat(cfg.Socket)
	if cfg.Policy == nil {
		if h.addrs, err = openHostAddrs(cfg.Log); err != nil {
			h.unlisten()
			return nil, err
		}
		h.host.policy = HostPolicy(h.addrs.Inside)
	}
	return h, nil
}

func fileLimit() int64 {
	var lim unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &lim) != nil {
		return 512
	}
	return max(int64(min(lim.Cur, 1<<20))-fileReserve, 64)
}

// lockDir serialises coming and going of helpers in one directory: who holds
// the lock may take a dead socket away and bind its own, or remove its own. It
// is held for that moment only; whether a helper lives, its socket tells.
func lockDir(socket string) (unlock func(), err error) {
	d, err := os.Open(filepath.Dir(socket))
	if err != nil {
		return nil, fmt.Errorf("open directory of control socket: %w", err)
	}
	for {
		err = unix.Flock(int(d.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		_ = d.Close()
		return nil, fmt.Errorf("lock directory of control socket: %w", err)
	}
	return func() { _ = d.Close() }, nil
}

func listen(socket string) (*net.UnixListener, error) {
	if err := paths.CheckSocket(socket); err != nil {
		return nil, err
	}
	unlock, err := lockDir(socket)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if c, err := net.Dial("unix", socket); err == nil {
		_ = c.Close()
		return nil, errdefs.AlreadyExists("a network helper already serves %s", socket)
	}
	switch st, err := os.Lstat(socket); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("look at control socket: %w", err)
	case st.Mode().Type() != fs.ModeSocket:
		return nil, errdefs.Precondition("%s is in the way and is not a socket", socket).
			WithHint("move it away")
	default:
		if err := os.Remove(socket); err != nil {
			return nil, fmt.Errorf("remove stale control socket: %w", err)
		}
	}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		// The mode of the socket becomes that of the file, so there is no moment
		// in which others could connect.
		var chmodErr error
		if err := c.Control(func(fd uintptr) { chmodErr = unix.Fchmod(int(fd), 0o600) }); err != nil {
			return err
		}
		return chmodErr
	}}
	l, err := lc.Listen(context.Background(), "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("listen on control socket: %w", err)
	}
	ul := l.(*net.UnixListener)
	ul.SetUnlinkOnClose(false)
	return ul, nil
}

// unlisten closes the socket and removes its file. The order matters: while the
// file is there and answers, nobody else takes its place.
func (h *helper) unlisten() {
	unlock, err := lockDir(h.cfg.Socket)
	if err == nil {
		defer unlock()
		if st, err := os.Lstat(h.cfg.Socket); err == nil && os.SameFile(st, h.file) {
			_ = os.Remove(h.cfg.Socket)
		}
	}
	_ = h.listener.Close()
}

func (h *helper) serve(ctx context.Context) error {
	accepting := make(chan error, 1)
	go func() { accepting <- h.accept() }()
	var err error
	for waiting := true; waiting; {
		select {
		case <-h.idle.C:
			h.mu.Lock()
			waiting = !h.idleLocked()
			h.mu.Unlock()
		case <-h.quit:
			waiting = false
		case <-ctx.Done():
			waiting = false
		case err = <-accepting:
			waiting = false
			accepting <- nil
		}
	}
	h.mu.Lock()
	h.closing = true
	clients := make([]*client, 0, len(h.clients))
	for c := range h.clients {
		clients = append(clients, c)
	}
	vms := make([]*attachment, 0, len(h.vms))
	for _, a := range h.vms {
		vms = append(vms, a)
	}
	h.mu.Unlock()
	h.unlisten()
	<-accepting
	// A client that connected at the last moment is cut off, and starts anew.
	for _, c := range clients {
		_ = c.conn.Close()
	}
	for _, a := range vms {
		a.detach()
	}
	h.sessions.Wait()
	if h.addrs != nil {
		h.addrs.Close()
	}
	h.idle.Stop()
	return err
}

// idleLocked reports whether nobody needs this helper.
func (h *helper) idleLocked() bool { return len(h.vms) == 0 && len(h.clients) == 0 }

// changedLocked starts the grace time when the last VM or client is gone.
func (h *helper) changedLocked() {
	if h.idleLocked() {
		h.idle.Reset(h.cfg.Grace)
	} else {
		h.idle.Stop()
	}
}

func (h *helper) accept() error {
	for {
		conn, err := h.listener.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		if err := checkPeer(conn); err != nil {
			h.log.Warn("refused a client", logkey.Err, err)
			_ = conn.Close()
			continue
		}
		c := &client{h: h, conn: conn}
		h.mu.Lock()
		if h.closing || len(h.clients) >= maxSessions {
			h.mu.Unlock()
			_ = conn.Close()
			continue
		}
		h.clients[c] = struct{}{}
		h.changedLocked()
		h.sessions.Go(c.serve)
		h.mu.Unlock()
	}
}

// client is the helper's end of a control connection.
type client struct {
	h    *helper
	conn *net.UnixConn

	mu sync.Mutex // one line at a time
}

// serve works on requests side by side, so that one that has to wait for its VM
// holds up nobody else's.
func (c *client) serve() {
	defer func() {
		_ = c.conn.Close()
		c.h.mu.Lock()
		delete(c.h.clients, c)
		c.h.changedLocked()
		c.h.mu.Unlock()
	}()
	calls := make(chan struct{}, maxCalls)
	in := lines(c.conn)
	for in.Scan() {
		var q request
		if err := json.Unmarshal(in.Bytes(), &q); err != nil || q.ID == 0 {
			c.h.log.Warn("a client sent a malformed request", logkey.Err, err)
			return
		}
		calls <- struct{}{}
		c.h.sessions.Go(func() {
			defer func() { <-calls }()
			r := c.h.handle(q)
			r.ID = q.ID
			if c.send(r) != nil {
				_ = c.conn.Close()
			}
			if q.Op == opExit {
				c.h.quitOnce.Do(func() { close(c.h.quit) })
			}
		})
	}
}

// sendTimeout is how long a client may leave its answers unread.
const sendTimeout = 5 * time.Second

func (c *client) send(r reply) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = c.conn.SetWriteDeadline(time.Now().Add(sendTimeout))
	return writeLine(c.conn, r)
}

func (h *helper) handle(q request) reply {
	err := q.check()
	if err == nil {
		switch q.Op {
		case opHello:
			return reply{Version: protocolVersion}
		case opAttach:
			var number uint64
			if number, err = h.attach(q.VM, q.Socket, q.Fresh); err == nil {
				return reply{Number: number}
			}
		case opDetach:
			h.detach(q.VM)
		case opList:
			return reply{VMs: h.list()}
		}
	}
	if err != nil {
		return reply{Class: errdefs.ClassOf(err), Error: err.Error()}
	}
	return reply{}
}

// attach returns once the VM is connected. A VM that is attached already stays
// so, unless its socket is another now or its connection is not sound.
func (h *helper) attach(vm, socket string, fresh bool) (uint64, error) {
	for {
		h.mu.Lock()
		if h.closing {
			h.mu.Unlock()
			return 0, errdefs.Unavailable("the network helper is ending")
		}
		a := h.vms[vm]
		if a == nil {
			if len(h.vms) >= maxVMs {
				h.mu.Unlock()
				return 0, errdefs.Exhausted("%d VMs are attached already", maxVMs)
			}
			h.last++
			var patience time.Duration
			if fresh {
				patience = listenPatience
			}
			a = attach(vm, socket, patience, h.last, h.host, h.gone)
			h.vms[vm] = a
			h.changedLocked()
			h.mu.Unlock()
			<-a.connected
			if a.err != nil {
				<-a.ended
				h.forget(a)
			}
			return a.number, a.err
		}
		h.mu.Unlock()
		<-a.connected
		if a.err == nil && a.socket == socket && a.sound() {
			return a.number, nil
		}
		a.detach()
		h.forget(a)
	}
}

// detach returns once nothing of the VM's network is left.
func (h *helper) detach(vm string) {
	h.mu.Lock()
	a := h.vms[vm]
	h.mu.Unlock()
	if a == nil {
		return
	}
	a.detach()
	h.forget(a)
}

// forget takes an attachment that has ended from the list.
func (h *helper) forget(a *attachment) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.vms[a.vm] != a {
		return false
	}
	delete(h.vms, a.vm)
	h.changedLocked()
	return true
}

// gone tells the clients of a VM that ended on its own.
func (h *helper) gone(a *attachment) {
	if !h.forget(a) || a.err != nil || errors.Is(a.why, errDetached) {
		return // who asked knows already
	}
	h.log.Info("VM gone", logkey.VM, a.vm, logkey.Why, a.why)
	h.mu.Lock()
	clients := make([]*client, 0, len(h.clients))
	for c := range h.clients {
		clients = append(clients, c)
	}
	h.mu.Unlock()
	for _, c := range clients {
		if c.send(reply{Gone: a.vm, Number: a.number}) != nil {
			_ = c.conn.Close()
		}
	}
}

func (h *helper) list() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	vms := make([]string, 0, len(h.vms))
	for vm := range h.vms {
		vms = append(vms, vm)
	}
	return vms
}
