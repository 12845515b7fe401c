package rootdisk

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/daemon/dmsnap"
	"banger/internal/errdefs"
	"banger/internal/hypervisor/vmproc"
	"banger/internal/logkey"
)

// Watcher is implemented by methods whose disks must be watched while they are used.
type Watcher interface {
	Method
	// Watch watches over an active disk until the Watch is closed. One that an earlier
	// daemon left held goes on if there is space. That the disk is not active, as the
	// host has booted since, is no error.
	Watch(d Disk) (Watch, error)
	// Release lets a VMM be ended that waits for a disk which is held: what it waits
	// for fails. A disk that is not held, or not active, is left alone.
	Release(d Disk) error
}

// Watch is a disk that is watched.
type Watch interface {
	// Stalled says since when the disk is held because the host has no space (zero: it
	// is not). The channel closes when that changes.
	Stalled() (since time.Time, changed <-chan struct{})
	// Continue lets a held disk go on if there is space again. It is no error that
	// there is none.
	Continue(ctx context.Context) error
	// Lost says why the disk is lost, for people; empty: it is not.
	Lost() string
	// Close ends the watch and leaves the disk as it is, held or not. It waits a moment
	// for what holds it just now, and says with class unavailable when that takes longer;
	// the watch has ended all the same. Closing it again waits again.
	Close() error
}

const (
	// holdSpace is how little free space makes disks be held: what may be written until
	// somebody looks again has to fit into it. A write that the host cannot take makes
	// the kernel give the whole layer up.
	holdSpace = 256 << 20
	// goOnSpace is how much lets them go on.
	goOnSpace = holdSpace + 64<<20
	// fastest bounds how fast space may go, in bytes per second, and so when to look
	// again.
	fastest = 4 << 30
	soonest = 20 * time.Millisecond
	latest  = time.Second
	// closeTime bounds how long what was begun on a disk may take.
	closeTime = 10 * time.Second
)

// kernel is what a guard needs of a host: see dmsnap.
type kernel interface {
	Hold(v dmsnap.Volume) error
	Thaw(v dmsnap.Volume) error
	Sound(v dmsnap.Volume) error
	Watch(ctx context.Context, look func()) error
}

// guard watches all disks by device-mapper of a host. The kernel announces neither
// that space gets scarce nor, before it is too late, that a layer fills; so it looks
// at the space, once for all disks, and the oftener the less there is.
type guard struct {
	host kernel
	log  *slog.Logger
	free func(dir string) (int64, error)
	// anew holds a token when a disk has begun, or may have begun, to be written: until
	// when nobody had to look was said without it.
	anew chan struct{}

	mu     sync.Mutex // a leaf; guards the fields below
	disks  map[*watch]struct{}
	cancel context.CancelFunc // ends the watching; nil: nothing is watched
}

// watch is one disk that is watched.
type watch struct {
	vmproc.Stall
	guard  *guard
	disk   Disk
	volume dmsnap.Volume
	// turn holds a token while nobody holds the disk or lets it go on. It is held over
	// I/O, so it is a channel.
	turn chan struct{}

	mu     sync.Mutex // a leaf; guards the fields below
	lost   string
	closed bool
}

func newGuard(host kernel, log *slog.Logger) *guard {
	return &guard{host: host, log: log, free: freeSpace, anew: make(chan struct{}, 1), disks: make(map[*watch]struct{})}
}

func freeSpace(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("measure the space for disks: %w", err)
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// watch begins to watch a disk. An earlier daemon may have left it suspended, with
// writes that wait: they are let through only where they have room, by somebody who
// watches already.
func (g *guard) watch(d Disk, v dmsnap.Volume) (Watch, error) {
	w := &watch{guard: g, disk: d, volume: v, turn: make(chan struct{}, 1)} // ours until it is judged
	g.add(w)
	err := w.judge()
	w.release()
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return w, nil
}

// add enters a disk, the first of which begins the watching.
func (g *guard) add(w *watch) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.disks[w] = struct{}{}
	if g.cancel != nil {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	g.cancel = cancel
	go g.watchSpace(ctx)
	go func() {
		err := g.host.Watch(ctx, g.lookForLost)
		if ctx.Err() == nil {
			g.log.Error("watch device-mapper", logkey.Err, err)
		}
	}()
}

// judge holds a new disk, or lets it go on, by the space there is now. Its turn is the
// caller's.
func (w *watch) judge() error {
	free, err := w.guard.free(w.disk.Dir)
	if err != nil {
		return err
	}
	if free < holdSpace {
		return w.suspend()
	}
	return w.guard.host.Thaw(w.volume)
}

// release gives the turn back after which the disk may run: the time until somebody
// looks was reckoned without it.
func (w *watch) release() {
	w.turn <- struct{}{}
	select {
	case w.guard.anew <- struct{}{}:
	default:
	}
}

func (g *guard) all() []*watch {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Collect(maps.Keys(g.disks))
}

// watchSpace holds disks while there is too little space for what they may write.
func (g *guard) watchSpace(ctx context.Context) {
	for {
		wait := latest
		for _, w := range g.all() {
			free, err := g.free(w.disk.Dir)
			if err != nil {
				continue // its directory is about to go
			}
			if free < holdSpace {
				go w.hold() // which waits for what was begun, and must not keep others from it
				continue
			}
			wait = min(wait, lookAgain(free))
		}
		select {
		case <-time.After(wait):
		case <-g.anew:
		case <-ctx.Done():
			return
		}
	}
}

// lookAgain is when the space may be used up at the earliest.
func lookAgain(free int64) time.Duration {
	spare := min(free-holdSpace, fastest) // a second's worth, which is the latest
	return max(soonest, time.Duration(spare)*time.Second/fastest)
}

// hold leaves a disk alone whose turn somebody has: who does makes the guard look again,
// or holds it just now. It asks for the space itself, as that may be there again since it
// was found scarce.
func (w *watch) hold() {
	select {
	case <-w.turn:
	default:
		return
	}
	defer func() { w.turn <- struct{}{} }()
	if since, _ := w.Stalled(); !since.IsZero() || w.isClosed() {
		return
	}
	if free, err := w.guard.free(w.disk.Dir); err != nil || free >= holdSpace {
		return
	}
	if err := w.suspend(); err != nil {
		w.guard.log.Error("hold a disk for which there is no space", logkey.VM, w.disk.VMID, logkey.Err, err)
	}
}

func (w *watch) suspend() error {
	if err := w.guard.host.Hold(w.volume); err != nil {
		return err
	}
	w.Set(true)
	return nil
}

// Continue implements Watch.
func (w *watch) Continue(ctx context.Context) error {
	select {
	case <-w.turn:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer w.release()
	if since, _ := w.Stalled(); since.IsZero() || w.isClosed() {
		return nil
	}
	free, err := w.guard.free(w.disk.Dir)
	if err != nil || free < goOnSpace {
		return err
	}
	if err := w.guard.host.Thaw(w.volume); err != nil {
		return err
	}
	w.Set(false)
	return nil
}

// freeze runs do, which freezes a disk that a VMM uses, while nobody holds the disk or
// lets it go on. One that do leaves suspended goes on as it was before, or counts as
// held, to be let go on later.
func (g *guard) freeze(ctx context.Context, d Disk, do func() error) error {
	all := g.all()
	i := slices.IndexFunc(all, func(w *watch) bool { return w.disk.Dir == d.Dir })
	if i < 0 {
		return errdefs.Internal("disk of vm %s is used, and nobody watches it", d.VMID)
	}
	w := all[i]
	select {
	case <-w.turn:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer w.release()
	if since, _ := w.Stalled(); !since.IsZero() {
		return errdefs.Exhausted("the disk is held, as the host has no space for what it writes").
			WithHint("make room, then try again")
	}
	err := do()
	if err == nil {
		return nil
	}
	if thaw := g.host.Thaw(w.volume); thaw != nil {
		w.Set(true)
		return errors.Join(err, thaw)
	}
	return err
}

// lookForLost finds disks of which the kernel has given a layer up.
func (g *guard) lookForLost() {
	for _, w := range g.all() {
		err := g.host.Sound(w.volume)
		w.mu.Lock()
		found := err != nil && w.lost == "" && !w.closed
		if found {
			w.lost = err.Error()
		}
		w.mu.Unlock()
		if found {
			g.log.Error("a disk is lost", logkey.VM, w.disk.VMID, logkey.Err, err)
		}
	}
}

// Lost implements Watch.
func (w *watch) Lost() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lost
}

func (w *watch) isClosed() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.closed
}

// Close implements Watch. What holds the disk just now comes to its end first: who
// releases the disk next must find it held or running, not on the way from one to the
// other.
func (w *watch) Close() (err error) {
	select {
	case <-w.turn:
		defer func() { w.turn <- struct{}{} }()
	case <-time.After(closeTime):
		err = errdefs.Unavailable("the disk of vm %s is still being held, as what was written to it before does not end", w.disk.VMID).
			WithHint("see what is wrong with the host's disk (its kernel log), and try again")
	}
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	g := w.guard
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.disks, w)
	if len(g.disks) == 0 && g.cancel != nil {
		g.cancel()
		g.cancel = nil
	}
	return err
}
