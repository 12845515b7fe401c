package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"banger/internal/daemon/vmlock"
	"banger/internal/errdefs"
	"banger/internal/guest"
	"banger/internal/hypervisor"
	"banger/internal/logkey"
	"banger/internal/model"
	"banger/internal/paths"
)

// live is a running VM: its VMM and the one connection to its agent. It is an
// entry of the handle cache; handles.json is what it is rebuilt from.
type live struct {
	machine hypervisor.Machine
	// turn holds a token while nobody is connecting to the agent. It is held over
	// I/O, so it is a channel that a waiter can leave, not a mutex.
	turn    chan struct{}
	session *guest.Session // guarded by turn
	lease   *lease         // nil: the VM stays when its client goes; set before it is shared
}

func newLive(m hypervisor.Machine) *live {
	l := &live{machine: m, turn: make(chan struct{}, 1)}
	l.turn <- struct{}{}
	return l
}

// agent returns the session with the agent, connecting when there is none or the
// old one broke. It waits for the agent to be ready, and errors at once when the
// guest stands still.
func (l *live) agent(ctx context.Context) (*guest.Session, error) {
	ctx, cancel := l.whileRuns(ctx)
	defer cancel()
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	select {
	case <-l.turn:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	defer func() { l.turn <- struct{}{} }()
	if l.session != nil {
		select {
		case <-l.session.Done():
			_ = l.session.Close()
			l.session = nil
		default:
			return l.session, nil
		}
	}
	conn, err := l.machine.DialAgent(ctx)
	if err != nil {
		return nil, fmt.Errorf("dial the agent: %w", why(ctx, err))
	}
	session, err := guest.Connect(ctx, conn)
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("greet the agent: %w", why(ctx, err))
	}
	l.session = session
	return session, nil
}

// why is what ended ctx, else err.
func why(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// ended reports whether the VMM has ended.
func (l *live) ended() bool {
	select {
	case <-l.machine.Done():
		return true
	default:
		return false
	}
}

// open opens a stream to the agent.
func (l *live) open(ctx context.Context) (net.Conn, error) {
	session, err := l.agent(ctx)
	if err != nil {
		return nil, err
	}
	return session.Open(ctx)
}

// call makes one request of the agent and returns its answer.
func (l *live) call(ctx context.Context, req guest.Request) (guest.Control, error) {
	ctx, cancel := l.whileRuns(ctx)
	defer cancel()
	conn, err := l.open(ctx)
	if err != nil {
		return guest.Control{}, err
	}
	defer func() { _ = conn.Close() }()
	return guest.Call(ctx, conn, req)
}

// close lets go of the VM without disturbing it.
func (l *live) close() error {
	l.lease.end()
	<-l.turn
	defer func() { l.turn <- struct{}{} }()
	var err error
	if l.session != nil {
		err = l.session.Close()
		l.session = nil
	}
	return errors.Join(err, l.machine.Close())
}

// handles is the content of handles.json.
type handles struct {
	BootID string            `json:"boot_id"`
	VMM    hypervisor.Handle `json:"vmm"`
}

// stagedHandles is where handles.json is written before it takes its name.
const stagedHandles = paths.StagingPrefix + paths.HandlesFile

// writeHandles records a started VMM. The file is scratch: it is not synced, and
// a lost one is made up for by Driver.Find.
func writeHandles(dir string, h handles) error {
	b, err := json.MarshalIndent(h, "", "  ")
	if err != nil {
		return err
	}
	tmp := filepath.Join(dir, stagedHandles)
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return fmt.Errorf("write handles: %w", err)
	}
	if err := os.Rename(tmp, filepath.Join(dir, paths.HandlesFile)); err != nil {
		return fmt.Errorf("write handles: %w", err)
	}
	return nil
}

// readHandles returns the recorded handles; zero when there are none or they
// cannot be read, which Driver.Find makes up for.
func readHandles(dir string) handles {
	var h handles
	b, err := os.ReadFile(filepath.Join(dir, paths.HandlesFile))
	if err != nil || json.Unmarshal(b, &h) != nil {
		return handles{}
	}
	return h
}

func removeHandles(dir string) error {
	var errs []error
	for _, name := range []string{paths.HandlesFile, stagedHandles} {
		if err := os.Remove(filepath.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// lookup returns the live entry of a VM, or nil.
func (s *Service) lookup(id string) *live {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.live[id]
}

// running returns the live entry of a VM or an error that says what it is instead.
func (s *Service) running(v *model.VM) (*live, error) {
	if l := s.lookup(v.ID); l != nil && v.State == model.StateRunning {
		return l, nil
	}
	if v.State == model.StateRunning {
		return nil, lost(v)
	}
	return nil, errdefs.Precondition("vm %q is %s, not running", v.Name, v.State).
		WithHint("start it: banger vm start %s", v.Name)
}

// adopt enters a VMM into the cache and watches for its end.
func (s *Service) adopt(v *model.VM, l *live) {
	if v.Spec.AutoRemove {
		orphan := *v
		l.lease = newLease(s.After, func() { s.expire(&orphan) })
	}
	s.mu.Lock()
	s.live[v.ID] = l
	s.mu.Unlock()
	id := v.ID
	s.wg.Go(func() { s.watch(id, l) })
}

// drop takes a VMM out of the cache and lets go of it.
func (s *Service) drop(id string, l *live) error {
	s.mu.Lock()
	if s.live[id] == l {
		delete(s.live, id)
	}
	s.mu.Unlock()
	return l.close()
}

// lost is the error for a VM whose VMM runs out of our reach.
func lost(v *model.VM) error {
	return errdefs.Unavailable("the VMM of vm %q did not answer when the daemon started", v.Name).
		WithHint("restart the daemon to look for it again, or end it: banger vm kill %s", v.Name)
}

// reapRetry is the pause after an ended VM could not be settled: the disk may be
// full, and nobody else would come to look.
const reapRetry = time.Second

// reap settles a VM whose VMM ended by itself: the guest powered off, or it died.
// A verb that ended it holds the claim and settles it before we get the claim.
func (s *Service) reap(id string, l *live) {
	for {
		err := s.tryReap(id, l)
		if err == nil || s.ctx.Err() != nil {
			return // closing: recovery settles it
		}
		s.Log.Error("settle an ended vm", logkey.VM, id, logkey.Err, err)
		select {
		case <-time.After(reapRetry):
		case <-s.ctx.Done():
		}
	}
}

func (s *Service) tryReap(id string, l *live) error {
	h, err := s.Locks.Acquire(s.ctx, id, "settle")
	if err != nil {
		return err
	}
	defer h.Release()
	if s.lookup(id) != l {
		return nil
	}
	ctx := h.Context(s.ctx)
	v, err := s.Store.GetVM(ctx, id)
	if err != nil {
		return err
	}
	return s.bury(ctx, h, &v, l)
}

// bury settles a VM whose VMM has ended, and deletes one that was not to outlive it.
func (s *Service) bury(ctx context.Context, held *vmlock.Held, v *model.VM, l *live) error {
	exit := l.machine.Exit()
	v.LastError = ""
	if exit.Known && (exit.Code != 0 || exit.Signal != 0) {
		v.LastError = exitText(exit)
	}
	s.Log.InfoContext(ctx, "vmm ended", logkey.VM, v.ID, logkey.Code, exit.Code, logkey.Signal, exit.Signal, logkey.Known, exit.Known)
	if err := s.settle(ctx, &ending{held: held, vm: v, from: v.State, live: l}); err != nil {
		return err
	}
	if v.Spec.AutoRemove || v.State == model.StateDeleting {
		return s.deleteHeld(ctx, held, v)
	}
	return nil
}

func exitText(e hypervisor.Exit) string {
	what := fmt.Sprintf("the VMM exited with status %d", e.Code)
	if e.Signal != 0 {
		what = fmt.Sprintf("the VMM was ended by signal %d", e.Signal)
	}
	if e.Detail != "" {
		what += ": " + printable(e.Detail, 500)
	}
	return what
}
