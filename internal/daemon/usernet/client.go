package usernet

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"strings"
	"sync"
	"time"

	"banger/internal/errdefs"
	"banger/internal/logkey"
	"banger/internal/sysexec"
)

const (
	// attempts is how often a request is put to a helper that ends under it.
	attempts = 3
	// A helper that died is replaced at once; one that keeps dying, more slowly.
	firstBackoff = 100 * time.Millisecond
	lastBackoff  = 30 * time.Second
	// recoverTimeout bounds one try to do so.
	recoverTimeout = time.Minute
	// maxLog is when a new helper starts its log afresh, in bytes.
	maxLog = 4 << 20
)

// Deps is what a Client needs.
type Deps struct {
	Socket  string       // the helper's control socket
	LogFile string       // where the helper's output goes
	Command []string     // starts a helper on Socket; the first word is an absolute path
	Log     *slog.Logger // nil: none
}

// Client attaches VMs to their networks, by way of the helper, which it starts
// when needed and replaces when it dies. All methods may be called concurrently.
type Client struct {
	deps   Deps
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	tasks  sync.WaitGroup

	// connecting is held (by sending) while the helper is looked for or started,
	// so that one is started, not two.
	connecting chan struct{}

	// adopted is told (without blocking) of each new session, so that who waits to
	// bring the networks back need not wait longer.
	adopted chan struct{}

	// mu guards what is wanted and by whom it is served. tasks grows under it.
	mu      sync.Mutex
	want    map[string]wanted // VMs that are to be attached
	session *session          // nil: not connected
	calls   int               // requests under way on session
	pause   time.Duration     // before the next helper is started in place of a dead one
	retries bool              // somebody brings the networks back
	closed  bool
}

type wanted struct {
	socket string
	number uint64 // of the attachment in the present helper; zero before the first
}

// New returns a client; it does nothing until it is asked to.
func New(deps Deps) *Client {
	if deps.Log == nil {
		deps.Log = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancel(context.Background())
	return &Client{deps: deps, ctx: ctx, cancel: cancel,
		connecting: make(chan struct{}, 1), adopted: make(chan struct{}, 1), want: make(map[string]wanted)}
}

// Attach gives the VM a network: the helper connects to the socket on which its
// VMM listens. It starts the helper if there is none, and returns when the
// network is up. It may be called as soon as the VMM was started: it waits up to
// two seconds for it to listen, and errors with class not_found when it does not.
// Attaching an attached VM changes nothing.
func (c *Client) Attach(ctx context.Context, vmID, netSocket string) error {
	if err := (request{Op: opAttach, VM: vmID, Socket: netSocket}).check(); err != nil {
		return err
	}
	s, err := c.acquire(ctx, true)
	if err != nil {
		return errdefs.Wrap(err, "attach vm %s to its network", vmID)
	}
	defer c.release()
	if err := c.attach(ctx, s, request{Op: opAttach, VM: vmID, Socket: netSocket, Fresh: true}); err != nil {
		return errdefs.Wrap(err, "attach vm %s to its network", vmID)
	}
	return nil
}

// attach asks for it and notes that it is wanted.
func (c *Client) attach(ctx context.Context, s *session, q request) error {
	r, err := c.call(ctx, s, q)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.want[q.VM] = wanted{socket: q.Socket, number: r.Number}
	return nil
}

// call puts a request to the helper; when that ends under it, to the next one.
func (c *Client) call(ctx context.Context, s *session, q request) (reply, error) {
	for i := 1; ; i++ {
		r, err := s.call(ctx, q)
		if !errors.Is(err, errLost) || i == attempts {
			return r, err
		}
		if s, err = c.connect(ctx, true); err != nil {
			return reply{}, err
		}
	}
}

// Detach takes the VM's network away. It is no error when the VM was not
// attached; no helper is started for it.
func (c *Client) Detach(ctx context.Context, vmID string) error {
	if err := checkID(vmID); err != nil {
		return err
	}
	c.mu.Lock()
	delete(c.want, vmID)
	c.mu.Unlock()
	s, err := c.acquire(ctx, false)
	if err != nil {
		return errdefs.Wrap(err, "detach vm %s from its network", vmID)
	}
	defer c.release()
	if s == nil {
		return nil
	}
	// A helper that is gone serves nothing, and the next one will not be told of
	// this VM.
	_, err = s.call(ctx, request{Op: opDetach, VM: vmID})
	if err != nil && !errors.Is(err, errLost) {
		return errdefs.Wrap(err, "detach vm %s from its network", vmID)
	}
	return nil
}

// Restore makes the helper serve exactly these VMs, given by id with the path of
// the socket of each. It starts the helper when there are any. VMs that could
// not be attached are in the error; the others are attached all the same. Those
// that have not ended are tried again, as soon as there is a helper and with
// growing pauses.
func (c *Client) Restore(ctx context.Context, vms map[string]string) error {
	c.mu.Lock()
	for vm := range c.want {
		if _, ok := vms[vm]; !ok {
			delete(c.want, vm)
		}
	}
	for vm, socket := range vms {
		if c.want[vm].socket != socket {
			c.want[vm] = wanted{socket: socket}
		}
	}
	c.mu.Unlock()
	ended, failed := c.restore(ctx, vms)
	if failed != nil {
		c.retry()
	}
	if err := errors.Join(failed, ended); err != nil {
		return errdefs.Wrap(err, "restore networks")
	}
	return nil
}

// restore detaches the VMs that are not to be served and attaches those that are.
// It tells those that ended from what failed.
func (c *Client) restore(ctx context.Context, vms map[string]string) (ended, failed error) {
	s, err := c.acquire(ctx, len(vms) > 0)
	if err != nil {
		return nil, err
	}
	defer c.release()
	if s == nil {
		return nil, nil
	}
	r, err := s.call(ctx, request{Op: opList})
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, vm := range r.VMs {
		if _, ok := vms[vm]; !ok {
			if _, err := s.call(ctx, request{Op: opDetach, VM: vm}); err != nil {
				errs = append(errs, fmt.Errorf("detach vm %s: %w", vm, err))
			}
		}
	}
	ended, failed = c.attachWanted(ctx, s)
	return ended, errors.Join(append(errs, failed)...)
}

// attachWanted attaches all VMs that are to be. Those that ended are not any more.
func (c *Client) attachWanted(ctx context.Context, s *session) (ended, failed error) {
	c.mu.Lock()
	vms := maps.Clone(c.want)
	c.mu.Unlock()
	var gone, errs []error
	for vm, w := range vms {
		r, err := s.call(ctx, request{Op: opAttach, VM: vm, Socket: w.socket})
		switch {
		case errors.Is(err, errdefs.ErrNotFound):
			c.gone(vm, w.number) // while nobody watched
			gone = append(gone, fmt.Errorf("attach vm %s: %w", vm, err))
			continue
		case err != nil:
			errs = append(errs, fmt.Errorf("attach vm %s: %w", vm, err))
			continue
		}
		c.mu.Lock()
		_, still := c.want[vm]
		if still {
			c.want[vm] = wanted{socket: w.socket, number: r.Number}
		}
		c.mu.Unlock()
		if !still { // detached meanwhile
			_, _ = s.call(ctx, request{Op: opDetach, VM: vm})
		}
	}
	return errors.Join(gone...), errors.Join(errs...)
}

// Close ends the client and leaves the helper and its networks as they are.
func (c *Client) Close() error {
	c.mu.Lock()
	c.closed = true
	s := c.session
	c.mu.Unlock()
	c.cancel()
	if s != nil {
		s.close()
	}
	c.tasks.Wait()
	return nil
}

// acquire returns a session and keeps it until release. Without start it returns
// nil when there is no helper; release is due all the same, but not after an error.
func (c *Client) acquire(ctx context.Context, start bool) (*session, error) {
	c.mu.Lock()
	c.calls++
	c.mu.Unlock()
	s, err := c.connect(ctx, start)
	if err != nil {
		c.release()
		return nil, err
	}
	return s, nil
}

// release lets go of the helper when no VM needs it, so that it can end.
func (c *Client) release() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls--
	c.letGoLocked()
}

func (c *Client) letGoLocked() {
	if c.calls == 0 && len(c.want) == 0 && c.session != nil {
		_ = c.session.conn.Close()
		c.session = nil
	}
}

// connect returns the session, making one, and the helper too if start is set.
func (c *Client) connect(ctx context.Context, start bool) (*session, error) {
	select {
	case c.connecting <- struct{}{}:
		defer func() { <-c.connecting }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-c.ctx.Done():
		return nil, errdefs.Unavailable("the network client is closed")
	}
	c.mu.Lock()
	s, closed := c.session, c.closed
	c.mu.Unlock()
	if closed {
		return nil, errdefs.Unavailable("the network client is closed")
	}
	if s != nil {
		select {
		case <-s.ended:
		default:
			return s, nil
		}
	}
	for range attempts {
		s, err := c.greet(ctx)
		if err != nil && nobody(err) {
			if !start {
				return nil, nil
			}
			if err := c.startHelper(ctx); err != nil {
				return nil, err
			}
			s, err = c.greet(ctx)
		}
		switch {
		case err == nil:
			return c.adopt(s)
		case errors.Is(err, errLost), nobody(err):
			continue // it was just ending
		}
		return nil, errdefs.Wrap(err, "connect to the network helper")
	}
	return nil, errdefs.Unavailable("the network helper keeps ending").
		WithHint("see %s", c.deps.LogFile)
}

// greet connects to a helper that runs. One of another version is sent away.
func (c *Client) greet(ctx context.Context) (*session, error) {
	conn, err := dialSocket(ctx, c.deps.Socket)
	if err != nil {
		return nil, err
	}
	if err := checkPeer(conn); err != nil {
		_ = conn.Close()
		return nil, err
	}
	s := newSession(conn, c.gone)
	r, err := s.call(ctx, request{Op: opHello})
	if err != nil {
		s.close()
		return nil, err
	}
	if r.Version == protocolVersion {
		return s, nil
	}
	c.deps.Log.InfoContext(ctx, "replacing a network helper of another version", logkey.Version, r.Version)
	defer s.close()
	if _, err := s.call(ctx, request{Op: opExit}); err != nil && !errors.Is(err, errLost) {
		return nil, err
	}
	select {
	case <-s.ended:
		return nil, errLost
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// adopt makes s the session and watches over it.
func (c *Client) adopt(s *session) (*session, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		_ = s.conn.Close()
		return nil, errdefs.Unavailable("the network client is closed")
	}
	c.session = s
	select {
	case c.adopted <- struct{}{}:
	default:
	}
	c.tasks.Go(func() {
		<-s.ended
		c.lost(s)
	})
	return s, nil
}

// startHelper starts a helper and waits until it answers, or says why not.
func (c *Client) startHelper(ctx context.Context) error {
	if len(c.deps.Command) == 0 {
		return errdefs.Internal("no command to start the network helper with")
	}
	out, err := c.openLog()
	if err != nil {
		return errdefs.Wrap(err, "open the network helper's log")
	}
	defer func() { _ = out.Close() }()
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make pipe: %w", err)
	}
	defer func() { _ = r.Close() }()
	_, err = sysexec.StartDetached(sysexec.Detached{
		Path: c.deps.Command[0], Args: c.deps.Command[1:], Dir: "/",
		Env:    append(os.Environ(), EnvReadyFD+"=3"),
		Stdout: out, Stderr: out, ExtraFiles: []*os.File{w},
	})
	_ = w.Close()
	if err != nil {
		return errdefs.Wrap(err, "start the network helper")
	}
	stop := context.AfterFunc(ctx, func() { _ = r.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	line, err := bufio.NewReader(io.LimitReader(r, 4<<10)).ReadString('\n')
	line = strings.TrimSuffix(line, "\n")
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case line == readyLine, line == takenLine:
		return nil
	case line != "":
		return errdefs.Unavailable("the network helper did not start: %s", line).WithHint("see %s", c.deps.LogFile)
	}
	return errdefs.Unavailable("the network helper ended before it was ready: %w", err).
		WithHint("see %s", c.deps.LogFile)
}

func (c *Client) openLog() (*os.File, error) {
	flags := os.O_WRONLY | os.O_APPEND | os.O_CREATE
	if st, err := os.Stat(c.deps.LogFile); err == nil && st.Size() > maxLog {
		flags |= os.O_TRUNC
	}
	return os.OpenFile(c.deps.LogFile, flags, 0o600)
}

// gone notes that a VM ended on its own.
func (c *Client) gone(vm string, number uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if w, ok := c.want[vm]; ok && w.number == number {
		delete(c.want, vm)
	}
	c.letGoLocked()
}

// lost handles the end of a session: when VMs are attached, another helper takes
// over, whoever is to blame for the end of this one.
func (c *Client) lost(s *session) {
	c.mu.Lock()
	if c.session == s {
		c.session = nil
	}
	needed := !c.closed && len(c.want) > 0
	pause := c.pause
	if time.Since(s.began) > steady {
		pause = 0
	}
	c.pause = pause // recovering moves it on
	c.mu.Unlock()
	if !needed {
		return
	}
	c.deps.Log.Warn("the network helper ended; starting another", logkey.After, time.Since(s.began), logkey.Pause, pause)
	c.retry()
}

// retry brings the networks back in the background, again and again until it has.
func (c *Client) retry() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.retries {
		return
	}
	c.retries = true
	c.tasks.Go(func() {
		for c.awaitTurn() {
			err := c.recover()
			if err != nil && c.ctx.Err() == nil {
				c.deps.Log.Warn("bringing the networks back", logkey.Err, err)
			}
			c.mu.Lock()
			// A session that has ended by now left the rest to us.
			done := err == nil && (c.session != nil || len(c.want) == 0)
			c.retries = !done
			c.mu.Unlock()
			if done {
				return
			}
		}
	})
}

// awaitTurn waits for the pause before the next try, or until somebody else has
// found a helper. It reports false when the client is closed.
func (c *Client) awaitTurn() bool {
	select {
	case <-c.adopted: // the last try's own
	default:
	}
	t := time.NewTimer(c.nextPause())
	defer t.Stop()
	select {
	case <-t.C:
	case <-c.adopted:
	case <-c.ctx.Done():
	}
	return c.ctx.Err() == nil
}

// nextPause returns the pause before this try and doubles it for the next.
func (c *Client) nextPause() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	pause := c.pause
	c.pause = min(max(2*pause, firstBackoff), lastBackoff)
	return pause
}

// recover attaches what is wanted.
func (c *Client) recover() error {
	c.mu.Lock()
	n := len(c.want)
	c.mu.Unlock()
	if n == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(c.ctx, recoverTimeout)
	defer cancel()
	s, err := c.acquire(ctx, true)
	if err != nil {
		return err
	}
	defer c.release()
	ended, err := c.attachWanted(ctx, s)
	if err != nil {
		return err
	}
	if ended != nil {
		c.deps.Log.Info("a vm ended while it had no network", logkey.Err, ended)
	}
	c.deps.Log.Info("networks are back", logkey.VMs, n)
	return nil
}
