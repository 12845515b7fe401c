package vm_test

import (
	"context"
	"errors"
	"maps"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	"banger/internal/api/bangerv1"
	"banger/internal/daemon/fakevm"
	"banger/internal/daemon/vm"
	"banger/internal/daemon/vmcap"
	"banger/internal/errdefs"
	"banger/internal/guest"
	"banger/internal/model"
)

func (w *world) pid(name string) int {
	w.t.Helper()
	resp, err := w.svc.Handlers().Get(context.Background(), connect.NewRequest(&bangerv1.VMRef{Ref: name}))
	w.must(err)
	return int(resp.Msg.Pid)
}

// A kill ends the verbs that queue before it, not only the one that holds the VM.
func TestKillDoesNotQueueBehindAQueue(t *testing.T) {
	w := newWorld(t)
	_, hung := w.hung("dev")
	queued := make(chan error, 3)
	for range cap(queued) {
		go func() { queued <- w.start("dev") }()
	}
	w.must(w.kill("dev"))
	if err := <-hung; !errors.Is(err, errdefs.ErrCanceled) {
		t.Errorf("the start ended with %v", err)
	}
	// Those that came too late for a kill hang until the next.
	for ended := 0; ended < cap(queued); {
		w.must(w.kill("dev"))
		select {
		case err := <-queued:
			if ended++; !errors.Is(err, errdefs.ErrCanceled) {
				t.Errorf("a queued start ended with %v", err)
			}
		default:
		}
	}
}

// A start that comes before the watcher of a VMM that has just ended starts it anew.
func TestStartOfAVMWhoseVMMHasJustEnded(t *testing.T) {
	w := newWorld(t)
	w.must(w.create("dev", true))
	for range 3 {
		id, pid := w.vms()[0].ID, w.pid("dev")
		held, err := w.locks.Acquire(context.Background(), id, "test")
		w.must(err)
		started := make(chan error, 1)
		go func() { started <- w.start("dev") }()
		w.must(unix.Kill(pid, unix.SIGKILL))
		<-(*w.fake.last.Load()).Done()
		held.Release()
		w.must(<-started)
		if now := w.pid("dev"); now == pid || w.vms()[0].State != model.StateRunning {
			t.Fatalf("after a start the VM is %s, pid %d, was %d", w.vms()[0].State, now, pid)
		}
	}
	w.checkLegal()
}

// The daemon ends while it undoes a create: recovery goes on undoing.
func TestCrashWhileACreateIsUndone(t *testing.T) {
	w := newWorld(t)
	failed := false
	w.injectAt(func(p point) error {
		switch {
		case p == point{"boot", "", true}:
			failed = true
			return errInjected
		case failed && p.call == "DeleteVM" && !p.done:
			return errInjected
		}
		return nil
	})
	if err := w.create("dev", true); !errors.Is(err, errdefs.ErrInternal) {
		t.Fatalf("create: %v", err)
	}
	w.restart()
	if n := len(w.vms()); n != 0 {
		t.Errorf("a VM nobody was told of is %s", w.vms()[0].State)
	}
	w.checkLegal()
}

// The end of a VMM is noted although the database could not be written at first.
func TestEndOfAVMMIsNotedInTheEnd(t *testing.T) {
	w := newWorld(t)
	w.must(w.create("dev", true))
	var once sync.Once
	w.injectAt(func(p point) (err error) {
		if p.call == "UpdateVM" && !p.done {
			once.Do(func() { err = errInjected })
		}
		return err
	})
	w.must(unix.Kill(w.pid("dev"), unix.SIGKILL))
	if got := w.settled("dev"); got != model.StateStopped {
		t.Errorf("settled as %s", got)
	}
}

// A VMM that does not answer a new daemon runs on, network and all; it can be
// ended, and nobody takes it for usable or for stopped.
func TestUnreachableVMMAfterARestart(t *testing.T) {
	w := newWorld(t)
	w.must(w.create("dev", true))
	id := w.vms()[0].ID
	w.knob(id, fakevm.Knobs{AttachError: "busy"})
	w.restart()
	w.checkLegal()
	if err := w.start("dev"); !errors.Is(err, errdefs.ErrUnavailable) || errdefs.HintOf(err) == "" {
		t.Errorf("start: %v", err)
	}
	w.must(w.kill("dev"))
	w.checkLegal()
	w.knob(id, fakevm.Knobs{})
	w.must(w.start("dev"))
}

// A daemon that is told to end while it recovers leaves everything as it is.
func TestRecoveryThatIsCutOff(t *testing.T) {
	w := newWorld(t)
	w.must(w.create("dev", true))
	was := w.snapshot()
	w.close()
	w.open()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := w.svc.Restore(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("restore: %v", err)
	}
	if now := w.snapshot(); now != was {
		t.Errorf("the world is\n%swas\n%s", now, was)
	}
	w.restart()
	w.checkLegal()
}

// bell is a timer that rings when the test says so.
type bell struct {
	ring func()
	mu   sync.Mutex
	set  bool // guarded by mu
}

func (b *bell) change(set bool) (was bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	was, b.set = b.set, set
	return was
}

func (b *bell) Stop() bool               { return b.change(false) }
func (b *bell) Reset(time.Duration) bool { return b.change(true) }

// over is the end of its time; false: it had been stopped.
func (b *bell) over() bool {
	if !b.change(false) {
		return false
	}
	b.ring()
	return true
}

// A client that died before it began its command cannot end its VM; the lease does.
func TestOrphanedVMGoes(t *testing.T) {
	var lease *bell
	w := newWorldWith(t, func(w *world) {
		w.clock = func(_ time.Duration, ring func()) vm.Timer {
			lease = &bell{ring: ring, set: true}
			return lease
		}
	})
	create := func() model.VM {
		w.must(w.wait(w.svc.Handlers().Create(context.Background(),
			connect.NewRequest(&bangerv1.CreateRequest{Name: "dev", AutoRemove: true}))))
		return w.vms()[0]
	}
	goes := func() {
		if !lease.over() {
			t.Fatal("nothing ends a VM without a client")
		}
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		resp, err := w.svc.Handlers().Wait(ctx, connect.NewRequest(&bangerv1.VMRef{Ref: "dev"}))
		if connect.CodeOf(err) == connect.CodeNotFound {
			return
		}
		w.must(err)
		if got := model.State(resp.Msg.State); got != model.StateDeleting {
			t.Errorf("the VM is %s", got)
		}
	}
	create()
	goes()
	// A stream keeps it, however long; its end does not.
	v := create()
	conn, err := w.svc.OpenAgent(context.Background(), v.ID, guest.Request{Kind: guest.KindPing})
	w.must(err)
	if lease.over() {
		t.Error("the lease runs while a stream is open")
	}
	w.must(conn.Close())
	goes()
	w.checkLegal()
}

// A VMM that a guest has taken over runs as the owner of its disk, and of nothing
// that says where we look for what.
func TestVMMCannotChangeItsDirectory(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root gives VMMs users of their own")
	}
	w := newWorldWith(t, func(w *world) { w.uids = 1_900_000_000 })
	w.must(w.create("dev", true))
	v := w.vms()[0]
	st, err := os.Stat(w.layout.VM(v.ID))
	w.must(err)
	sys := st.Sys().(*syscall.Stat_t)
	if v.VMMUID == 0 || sys.Uid != 0 || int(sys.Gid) != v.VMMUID || st.Mode().Perm() != 0o710 {
		t.Errorf("the directory of a VMM with uid %d belongs to %d:%d, mode %o", v.VMMUID, sys.Uid, sys.Gid, st.Mode().Perm())
	}
}

// hanging is a capability that hangs the first time a hook of it is called, until its
// context ends.
type hanging struct {
	hook    string
	once    sync.Once
	reached chan struct{}
}

func (h *hanging) hooks(*world) vmcap.Capability {
	hang := func(ctx context.Context, _ *model.VM) (err error) {
		h.once.Do(func() {
			close(h.reached)
			<-ctx.Done()
			err = context.Cause(ctx)
		})
		return err
	}
	if h.hook == "CleanUp" {
		return vmcap.Capability{Name: "hanging", CleanUp: hang}
	}
	return vmcap.Capability{Name: "hanging", Release: hang}
}

func (*hanging) state() string             { return "" }
func (*hanging) legal(_, _ []string) error { return nil }

// Kill and forced delete take over from who settles a VM that ended by itself, and from
// a delete, at once: they do the same anew.
func TestKillDoesNotQueueBehindASettling(t *testing.T) {
	for _, c := range []struct {
		hook string
		end  func(w *world) error
		over func(w *world) error
	}{
		{"CleanUp", func(w *world) error { return unix.Kill(w.pid("dev"), unix.SIGKILL) }, func(w *world) error { return w.kill("dev") }},
		{"CleanUp", func(w *world) error { return unix.Kill(w.pid("dev"), unix.SIGKILL) }, func(w *world) error { return w.delete("dev", true) }},
		{"Release", func(w *world) error {
			err := w.stop("dev")
			go func() { _ = w.delete("dev", false) }()
			return err
		}, func(w *world) error { return w.delete("dev", true) }},
	} {
		h := &hanging{hook: c.hook, reached: make(chan struct{})}
		w := newWorldWith(t, func(w *world) { w.more = append(w.more, h) })
		w.must(w.create("dev", true))
		w.must(c.end(w))
		<-h.reached
		over := make(chan error, 1)
		go func() { over <- c.over(w) }()
		select {
		case err := <-over:
			w.must(err)
		case <-time.After(20 * time.Second):
			t.Fatalf("queued behind what hangs in %s", c.hook)
		}
		w.checkLegal()
	}
}

// What may wait for others has a deadline of its own; removing files has none, nor do
// they share one.
func TestStepsAreBoundedEach(t *testing.T) {
	w := newWorld(t)
	w.must(w.create("dev", true))
	w.must(w.delete("dev", true))
	if want := map[string]bool{"Activate": true, "Deactivate": true, "Remove": false}; !maps.Equal(w.disks.bounded, want) {
		t.Errorf("bounded are %v, want %v", w.disks.bounded, want)
	}
}
