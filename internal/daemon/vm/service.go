// Package vm is the service that owns virtual machines: their rows, directories,
// lifecycle verbs and the connections to their VMMs and agents.
//
// Every verb takes the VM's claim (vmLocks, rank 10) for its whole length, writes
// its intent to the row, acts, and writes the outcome; see recover.go for what a
// crash in between means.
package vm

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"banger/internal/api/bangerv1"
	"banger/internal/daemon/steps"
	"banger/internal/daemon/vmcap"
	"banger/internal/daemon/vmlock"
	"banger/internal/errdefs"
	"banger/internal/hypervisor"
	"banger/internal/lockrank"
	"banger/internal/logkey"
	"banger/internal/model"
	"banger/internal/paths"
)

// Store is what the service needs of the database.
type Store interface {
	InsertVM(ctx context.Context, v *model.VM, uidBase int) error
	UpdateVM(ctx context.Context, v *model.VM) error
	DeleteVM(ctx context.Context, id string) error
	GetVM(ctx context.Context, id string) (model.VM, error)
	FindVM(ctx context.Context, ref string) (model.VM, error)
	ListVMs(ctx context.Context) ([]model.VM, error)
	ImageByID(ctx context.Context, id string) (model.Image, error)
	KernelByID(ctx context.Context, id string) (model.Kernel, error)
	ListKernels(ctx context.Context) ([]model.Kernel, error)
}

// Artifacts provides images and kernels, fetching them when they are absent.
type Artifacts interface {
	EnsureImage(ctx context.Context, name string, p model.Progress) (model.Image, error)
	EnsureKernel(ctx context.Context, name string, p model.Progress) (model.Kernel, error)
	BootFiles(ctx context.Context, k model.Kernel) (model.BootFiles, error)
}

// Operations runs long work.
type Operations interface {
	Begin(kind, subject string, work func(ctx context.Context, p model.Progress) (string, error)) *bangerv1.Operation
}

// Defaults fill what a request leaves open.
type Defaults struct {
	CPUs        int
	MemoryMiB   int64
	DiskBytes   int64
	Image       string
	Kernel      string
	Net         model.Net
	StopTimeout time.Duration // how long an orderly stop may take
	BootTimeout time.Duration // how long a guest may take to become ready
}

// Want is what a new VM asks of its driver.
type Want struct {
	Driver string // by name, or "auto"; empty: as configured
	Net    model.Net
	Nested bool
}

// Choice is the driver of a new VM.
type Choice struct {
	Driver hypervisor.Driver
	Why    string // it is this one, for people
}

// Deps are the service's collaborators; all are required but After and Faults.
type Deps struct {
	Store     Store
	Layout    paths.Layout
	Drivers   map[string]hypervisor.Driver
	Pick      func(ctx context.Context, want Want) (Choice, error) // driver of a new VM
	Artifacts Artifacts
	Caps      *vmcap.Registry // what VMs have beyond a machine and a disk
	Disks     Disks
	Ops       Operations
	Defaults  Defaults
	MAC       string // of every VM's card, until its guest is told another
	MaxVMs    int    // how many may exist
	MaxBoots  int    // how many may boot at once
	UIDBase   int    // first uid for VMMs when the daemon is root; 0: VMMs run as the daemon
	Locks     *vmlock.Set
	Log       *slog.Logger
	// After runs a function later; nil: time.AfterFunc. Tests have a clock of their own.
	After func(time.Duration, func()) Timer
	// Faults is a seam for tests: see steps.Runner.
	Faults func(step string, done bool) error
}

// Service owns the VMs of one daemon.
type Service struct {
	Deps
	ctx    context.Context // lifetime of watchers; ends at Close
	cancel context.CancelFunc
	wg     sync.WaitGroup
	slots  chan struct{} // one token per VM that may boot now

	// createVMMu guards the names that are set aside until a row has them: two creates
	// of one name, or two made-up names that are the same, must not both pass. Rank 30.
	createVMMu lockrank.Mutex
	pending    map[string]bool // see reserveName

	mu      sync.Mutex               // a leaf (rank 40); guards the maps below
	live    map[string]*live         // running VMs: the handle cache
	strays  map[string]*stray        // VMs that run, but whose VMM does not answer
	changed map[string]chan struct{} // closed when the VM's state changes; made by waiters
	uses    map[use]int              // how often clients do what now
}

// New returns a service that has touched nothing yet.
func New(d Deps) *Service {
	if d.After == nil {
		d.After = func(d time.Duration, f func()) Timer { return time.AfterFunc(d, f) }
	}
	ctx, cancel := context.WithCancel(context.Background())
	slots := make(chan struct{}, max(1, d.MaxBoots))
	for range cap(slots) {
		slots <- struct{}{}
	}
	return &Service{
		Deps: d, slots: slots, ctx: ctx, cancel: cancel, pending: make(map[string]bool),
		live: make(map[string]*live), strays: make(map[string]*stray), changed: make(map[string]chan struct{}), uses: make(map[use]int),
	}
}

// Close lets go of all VMs, which go on running.
func (s *Service) Close() error {
	s.cancel()
	s.mu.Lock()
	all := make([]*live, 0, len(s.live))
	for _, l := range s.live {
		all = append(all, l)
	}
	s.mu.Unlock()
	var errs []error
	for _, l := range all {
		errs = append(errs, l.close())
	}
	s.wg.Wait()
	s.mu.Lock()
	strays := slices.Collect(maps.Keys(s.strays))
	s.mu.Unlock()
	for _, id := range strays {
		if disk := s.takeStray(id); disk != nil {
			errs = append(errs, disk.Close())
		}
	}
	return errors.Join(errs...)
}

// claimTimeout is how long a verb waits for another one to finish with a VM.
const claimTimeout = 60 * time.Second

// claim takes the lifecycle claim of a VM. The returned context ends with ctx or
// when a kill or forced delete seizes the claim.
func (s *Service) claim(ctx context.Context, id, action string) (context.Context, *vmlock.Held, error) {
	return s.take(ctx, id, action, s.Locks.Acquire)
}

// seize is claim for the verbs that do not queue: it ends the verbs before it.
func (s *Service) seize(ctx context.Context, id, action string) (context.Context, *vmlock.Held, error) {
	return s.take(ctx, id, action, s.Locks.Seize)
}

func (s *Service) take(ctx context.Context, id, action string, how func(ctx context.Context, key, action string) (*vmlock.Held, error)) (context.Context, *vmlock.Held, error) {
	wait, cancel := context.WithTimeout(ctx, claimTimeout)
	defer cancel()
	h, err := how(wait, id, action)
	if err != nil {
		return nil, nil, err
	}
	held := h.Context(ctx)
	if err := context.Cause(held); err != nil {
		h.Release()
		return nil, nil, err
	}
	return held, h, nil
}

// setState moves v to next in the row and wakes whoever waits for it.
func (s *Service) setState(ctx context.Context, _ *vmlock.Held, v *model.VM, next model.State) error {
	if v.State != next {
		if err := v.Transition(next); err != nil {
			return err
		}
	}
	if err := s.Store.UpdateVM(ctx, v); err != nil {
		return err
	}
	s.notify(v.ID)
	return nil
}

// putBack makes v what it was before a change that is undone, which no transition
// allows.
func (s *Service) putBack(ctx context.Context, _ *vmlock.Held, v *model.VM, was model.VM) error {
	*v = was
	if err := s.Store.UpdateVM(ctx, v); err != nil {
		return err
	}
	s.notify(v.ID)
	return nil
}

// notify wakes the waiters of a VM.
func (s *Service) notify(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c, ok := s.changed[id]; ok {
		close(c)
		delete(s.changed, id)
	}
}

// nextChange returns a channel that closes when the VM's state changes.
func (s *Service) nextChange(id string) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.changed[id]
	if !ok {
		c = make(chan struct{})
		s.changed[id] = c
	}
	return c
}

// driver returns the driver a VM was made with.
func (s *Service) driver(v *model.VM) (hypervisor.Driver, error) {
	d, ok := s.Drivers[v.Spec.Driver]
	if !ok {
		return nil, errdefs.Unsupported("vm %q needs driver %q, which this bangerd does not have", v.Name, v.Spec.Driver).
			WithHint("install a bangerd that has it, such as the one that made this VM")
	}
	return d, nil
}

// runner runs the steps of one verb.
func (s *Service) runner(v *model.VM, verb string, p model.Progress) steps.Runner {
	r := steps.Runner{Log: s.Log.With(logkey.VM, v.ID, logkey.Verb, verb), Faults: s.Faults}
	if p != nil {
		r.Observer = p
	}
	return r
}

// stepTime bounds a step that waits for the kernel, a VMM, or whoever has a disk open.
const stepTime = 30 * time.Second

// untilSeized is for work that must happen although ctx has ended. It ends when the
// claim is taken away: whoever does that does the work anew.
func untilSeized(ctx context.Context, held *vmlock.Held) context.Context {
	return held.Context(context.WithoutCancel(ctx))
}
