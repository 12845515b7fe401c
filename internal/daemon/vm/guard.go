package vm

import (
	"context"
	"errors"
	"sync"
	"time"

	"banger/internal/daemon/rootdisk"
	"banger/internal/errdefs"
	"banger/internal/hypervisor"
	"banger/internal/hypervisor/vmproc"
	"banger/internal/model"
)

// guarded is a machine whose disk is watched: while the disk is held, the guest stands
// still as on a VMM that has stopped it.
type guarded struct {
	hypervisor.Machine
	disk rootdisk.Watch

	stall   vmproc.Stall       // set by follow alone
	looks   chan chan struct{} // asks follow to look now; it closes what it is sent
	over    chan struct{}      // closed by Close
	once    sync.Once
	watcher sync.WaitGroup
}

// guard watches the disk of a machine that has just been started, if that is needed.
func (s *Service) guard(v *model.VM, l *live) error {
	disk, err := s.watchDisk(v)
	if err == nil && disk != nil {
		l.guard(disk)
	}
	return err
}

// watchDisk begins to watch the disk of a VM, which is judged by it, or takes over who
// does; nil: it needs no watching.
func (s *Service) watchDisk(v *model.VM) (rootdisk.Watch, error) {
	if disk := s.takeStray(v.ID); disk != nil {
		return disk, nil
	}
	watcher, err := s.watcher(v)
	if watcher == nil {
		return nil, err
	}
	disk, err := watcher.Watch(s.disk(v, ""))
	return disk, errdefs.Wrap(err, "watch the root disk")
}

// guard puts a machine under the watch of its disk. l is not shared yet.
func (l *live) guard(disk rootdisk.Watch) {
	g := &guarded{Machine: l.machine, disk: disk, looks: make(chan chan struct{}), over: make(chan struct{})}
	g.watcher.Go(g.follow)
	l.machine = g
}

// watcher watches the disk of a VM; nil: it is of a kind that needs none, or an error.
func (s *Service) watcher(v *model.VM) (rootdisk.Watcher, error) {
	m, err := s.method(v)
	if err != nil {
		return nil, err
	}
	w, _ := m.(rootdisk.Watcher)
	return w, nil
}

// follow keeps what Stalled says true.
func (g *guarded) follow() {
	var asked chan struct{} // by look, for the look that comes next
	for {
		machine, machineChanged := g.Machine.Stalled()
		disk, diskChanged := g.disk.Stalled()
		g.stall.Set(!machine.IsZero() || !disk.IsZero())
		if asked != nil {
			close(asked)
			asked = nil
		}
		select {
		case <-machineChanged:
		case <-diskChanged:
		case asked = <-g.looks:
		case <-g.over:
			return
		}
	}
}

// look makes what Stalled says true now.
func (g *guarded) look() {
	looked := make(chan struct{})
	select {
	case g.looks <- looked:
		<-looked
	case <-g.over:
	}
}

// Stalled implements hypervisor.Machine.
func (g *guarded) Stalled() (since time.Time, changed <-chan struct{}) { return g.stall.Stalled() }

// Continue implements hypervisor.Machine.
func (g *guarded) Continue(ctx context.Context) error {
	defer g.look()
	if err := g.disk.Continue(ctx); err != nil {
		return err
	}
	return g.Machine.Continue(ctx)
}

// Close implements hypervisor.Machine.
func (g *guarded) Close() error {
	g.once.Do(func() { close(g.over) })
	g.watcher.Wait()
	return errors.Join(g.disk.Close(), g.Machine.Close())
}

// as is the driver's own machine as one that can do more, if it can: a guarded one shows
// only what all can.
func as[T any](l *live) (T, bool) {
	m := l.machine
	if g, ok := m.(*guarded); ok {
		m = g.Machine
	}
	t, ok := m.(T)
	return t, ok
}

// unguard lets a VMM be ended that may wait for its disk. l may be nil.
func (s *Service) unguard(v *model.VM, l *live) error {
	watcher, err := s.watcher(v)
	if watcher == nil {
		return err
	}
	disk := s.takeStray(v.ID)
	if l != nil {
		if g, ok := l.machine.(*guarded); ok {
			disk = g.disk
		}
	}
	if disk != nil {
		err = disk.Close() // or it would be held again
	}
	return errors.Join(err, watcher.Release(s.disk(v, "")))
}

// lostDisk says why the disk of a running VM is lost; empty: it is not.
func (l *live) lostDisk() string {
	if g, ok := l.machine.(*guarded); ok {
		return g.disk.Lost()
	}
	return ""
}
