package rootdisk

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"banger/internal/daemon/dmsnap"
	"banger/internal/errdefs"
)

// fakeKernel stands for device-mapper, with a disk that many write: what waits when a
// volume goes on without space is lost with its layer.
type fakeKernel struct {
	mu    sync.Mutex
	space int64
	// suspended are the volumes that are, by name; waiting those with a write that waits.
	suspended, waiting, lost map[string]bool
	// stuck are the volumes whose I/O ends only when their channel closes.
	stuck map[string]chan struct{}
	// thawFails is what Thaw says, if anything.
	thawFails error
}

func newFakeKernel(space int64) *fakeKernel {
	return &fakeKernel{
		space: space, suspended: map[string]bool{}, waiting: map[string]bool{}, lost: map[string]bool{},
		stuck: map[string]chan struct{}{},
	}
}

func (k *fakeKernel) free(string) (int64, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.space, nil
}

func (k *fakeKernel) leave(space int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.space = space
}

func (k *fakeKernel) isSuspended(name string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.suspended[name]
}

func (k *fakeKernel) Hold(v dmsnap.Volume) error {
	k.mu.Lock()
	stuck := k.stuck[v.Name]
	k.mu.Unlock()
	if stuck != nil {
		<-stuck
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.suspended[v.Name] = true
	return nil
}

func (k *fakeKernel) Thaw(v dmsnap.Volume) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.thawFails != nil {
		return k.thawFails
	}
	k.lost[v.Name] = k.lost[v.Name] || k.suspended[v.Name] && k.waiting[v.Name] && k.space == 0
	delete(k.suspended, v.Name)
	return nil
}

func (k *fakeKernel) Sound(v dmsnap.Volume) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.lost[v.Name] {
		return errors.New("lost")
	}
	return nil
}

func (k *fakeKernel) Watch(ctx context.Context, look func()) error {
	look()
	<-ctx.Done()
	return context.Cause(ctx)
}

// guarding runs a test with a guard of a fake kernel, in a time of its own.
func guarding(t *testing.T, space int64, test func(t *testing.T, g *guard, k *fakeKernel)) {
	synctest.Test(t, func(t *testing.T) {
		k := newFakeKernel(space)
		g := newGuard(k, slog.New(slog.DiscardHandler))
		g.free = k.free
		test(t, g, k)
	})
}

// watched watches a disk until the test ends.
func watched(t *testing.T, g *guard, name string) Watch {
	t.Helper()
	w, err := g.watch(Disk{VMID: name, Dir: name}, dmsnap.Volume{Name: name})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

func isHeld(w Watch) bool {
	since, _ := w.Stalled()
	return !since.IsZero()
}

// elapse lets time pass, and whoever waited for that do what they will.
func elapse(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

// A disk that an earlier daemon has left held, with a write that waits, stays held while
// there is no space for it.
func TestWatchedAgainWithoutSpace(t *testing.T) {
	guarding(t, 0, func(t *testing.T, g *guard, k *fakeKernel) {
		k.suspended["a"], k.waiting["a"] = true, true
		w := watched(t, g, "a")
		elapse(time.Minute)
		if err := w.Continue(t.Context()); err != nil {
			t.Fatal(err)
		}
		if !isHeld(w) || !k.isSuspended("a") || w.Lost() != "" {
			t.Errorf("held %v, suspended %v, lost %q", isHeld(w), k.isSuspended("a"), w.Lost())
		}
		k.leave(goOnSpace)
		if err := w.Continue(t.Context()); err != nil {
			t.Fatal(err)
		}
		if isHeld(w) || k.isSuspended("a") || w.Lost() != "" {
			t.Errorf("with space: held %v, suspended %v, lost %q", isHeld(w), k.isSuspended("a"), w.Lost())
		}
	})
	// What a crash in Freeze left suspended goes on by the watching alone.
	guarding(t, goOnSpace, func(t *testing.T, g *guard, k *fakeKernel) {
		k.suspended["a"] = true
		if w := watched(t, g, "a"); isHeld(w) || k.isSuspended("a") {
			t.Errorf("held %v, suspended %v", isHeld(w), k.isSuspended("a"))
		}
	})
	guarding(t, 0, func(t *testing.T, g *guard, _ *fakeKernel) {
		boom := errors.New("boom")
		g.free = func(string) (int64, error) { return 0, boom }
		if _, err := g.watch(Disk{}, dmsnap.Volume{}); !errors.Is(err, boom) || len(g.all()) > 0 {
			t.Errorf("space that cannot be measured: %v, watched are %d", err, len(g.all()))
		}
	})
}

// A disk that begins to be written while nobody had to look for a while is looked at
// as soon as its space asks for.
func TestLookedAtAtOnce(t *testing.T) {
	guarding(t, 0, func(t *testing.T, g *guard, k *fakeKernel) {
		first := watched(t, g, "first")
		elapse(2*latest + latest/4) // the next look is far away
		k.leave(holdSpace + mebi)
		second := watched(t, g, "second")
		if isHeld(second) {
			t.Fatal("held with enough space")
		}
		synctest.Wait()
		k.leave(0)
		elapse(soonest)
		if !isHeld(second) {
			t.Error("a further disk was written unwatched")
		}
		elapse(2 * latest)
		k.leave(goOnSpace)
		if err := first.Continue(t.Context()); err != nil || isHeld(first) {
			t.Fatal(err, isHeld(first))
		}
		synctest.Wait()
		k.leave(0)
		elapse(soonest)
		if !isHeld(first) {
			t.Error("a disk that was let go on was written unwatched")
		}
	})
}

// When space gets scarce all disks are held at once, whatever one of them waits for.
func TestHeldTogether(t *testing.T) {
	guarding(t, goOnSpace, func(t *testing.T, g *guard, k *fakeKernel) {
		stuck := make(chan struct{})
		all := map[string]Watch{}
		for _, name := range []string{"a", "b", "c", "d"} {
			all[name] = watched(t, g, name)
			if name != "d" {
				k.stuck[name] = stuck
			}
		}
		synctest.Wait()
		k.leave(0)
		elapse(latest)
		if !isHeld(all["d"]) || isHeld(all["a"]) {
			t.Errorf("held: d %v, a %v", isHeld(all["d"]), isHeld(all["a"]))
		}
		further := watched(t, g, "further")
		if !isHeld(further) {
			t.Error("a further disk is not held")
		}
		close(stuck)
		synctest.Wait()
		if !isHeld(all["a"]) || !isHeld(all["b"]) || !isHeld(all["c"]) {
			t.Error("not held in the end")
		}
	})
}

// A disk whose space is there again by the time its turn comes is not held: nobody would
// let it go on, as nobody was told that it stands.
func TestNotHeldWithSpace(t *testing.T) {
	guarding(t, goOnSpace, func(t *testing.T, g *guard, k *fakeKernel) {
		w := watched(t, g, "a").(*watch)
		w.hold() // as a look decided that came before the space
		if isHeld(w) || k.isSuspended("a") {
			t.Error("held with enough space")
		}
	})
}

// beingHeld watches disk "a" of a host that is full; holding it ends when stuck is closed.
func beingHeld(t *testing.T, g *guard, k *fakeKernel) (w Watch, stuck chan struct{}) {
	t.Helper()
	stuck = make(chan struct{})
	k.stuck["a"] = stuck
	w = watched(t, g, "a")
	synctest.Wait()
	k.leave(0)
	elapse(latest)
	return w, stuck
}

// A watch that ends while its disk is being held ends when it is held: who releases the
// disk then finds it so. One that is never held ends as well, and says so.
func TestCloseWhileHolding(t *testing.T) {
	guarding(t, goOnSpace, func(t *testing.T, g *guard, k *fakeKernel) {
		w, stuck := beingHeld(t, g, k)
		closed := make(chan error, 1)
		go func() { closed <- w.Close() }()
		synctest.Wait()
		select {
		case err := <-closed:
			t.Fatalf("closed (%v) before the disk was held", err)
		default:
		}
		close(stuck)
		if err := <-closed; err != nil || !k.isSuspended("a") {
			t.Errorf("closed: %v; suspended: %v", err, k.isSuspended("a"))
		}
	})
	guarding(t, goOnSpace, func(t *testing.T, g *guard, k *fakeKernel) {
		w, stuck := beingHeld(t, g, k)
		if err := w.Close(); !errors.Is(err, errdefs.ErrUnavailable) || errdefs.HintOf(err) == "" || len(g.all()) > 0 {
			t.Errorf("closed: %v; watched are %d", err, len(g.all()))
		}
		close(stuck)
	})
}

// A disk is not frozen while it is held, nor held while it is frozen, and is looked at
// afterwards. One that cannot go on counts as held, until it can.
func TestFreezeUnderGuard(t *testing.T) {
	guarding(t, 0, func(t *testing.T, g *guard, k *fakeKernel) {
		w := watched(t, g, "a")
		never := func() error { t.Error("frozen"); return nil }
		if err := g.freeze(t.Context(), Disk{Dir: "a"}, never); !errors.Is(err, errdefs.ErrExhausted) || errdefs.HintOf(err) == "" || !k.isSuspended("a") {
			t.Errorf("freeze of a held disk: %v", err)
		}
		if err := g.freeze(t.Context(), Disk{Dir: "b"}, never); err == nil {
			t.Error("freeze of a disk that is used unwatched")
		}
		k.leave(goOnSpace)
		if err := w.Continue(t.Context()); err != nil {
			t.Fatal(err)
		}
		err := g.freeze(t.Context(), Disk{Dir: "a"}, func() error {
			k.leave(0)
			elapse(2 * latest)
			if k.isSuspended("a") {
				t.Error("held while it is frozen")
			}
			ended, cancel := context.WithCancel(t.Context())
			cancel()
			if err := g.freeze(ended, Disk{Dir: "a"}, never); !errors.Is(err, context.Canceled) {
				t.Errorf("frozen by two: %v", err)
			}
			return nil
		})
		synctest.Wait()
		if err != nil || !isHeld(w) {
			t.Errorf("freeze: %v; held afterwards: %v", err, isHeld(w))
		}
	})
	guarding(t, goOnSpace, func(t *testing.T, g *guard, k *fakeKernel) {
		w := watched(t, g, "a")
		boom := errors.New("boom")
		suspends := func() error { return errors.Join(boom, k.Hold(dmsnap.Volume{Name: "a"})) }
		if err := g.freeze(t.Context(), Disk{Dir: "a"}, suspends); !errors.Is(err, boom) || isHeld(w) || k.isSuspended("a") {
			t.Errorf("a freeze that leaves a disk suspended: %v; held %v", err, isHeld(w))
		}
		k.thawFails = boom
		if err := g.freeze(t.Context(), Disk{Dir: "a"}, suspends); !errors.Is(err, boom) || !isHeld(w) {
			t.Errorf("a disk that cannot go on: %v; held %v", err, isHeld(w))
		}
		k.thawFails = nil
		if err := w.Continue(t.Context()); err != nil || isHeld(w) || k.isSuspended("a") {
			t.Errorf("it goes on later: %v; held %v", err, isHeld(w))
		}
	})
}

const mebi = 1 << 20
