// Package hostnet joins VMs to the host's network through taps: it owns the bridge,
// the plan of addresses, a pool of warm taps and the firewall's state. It is for a
// daemon that is root; VMs of anybody else's have a network of user mode.
//
// The host is changed when the first VM is attached and not before. What was
// changed is written down first, so that Uninstall can undo it after any crash, and
// every device bears a mark of this daemon's (see tapdev), so that nothing else is
// taken for ours.
package hostnet

import (
	"context"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"

	"banger/internal/config"
	"banger/internal/daemon/firewalld"
	"banger/internal/daemon/nat"
	"banger/internal/daemon/steps"
	"banger/internal/daemon/tapdev"
	"banger/internal/logkey"
	"banger/internal/model"
)

// Record is what must outlive the daemon about the host.
type Record = model.HostNet

// Memory keeps the Record.
type Memory interface {
	// HostNet returns what was kept last; the zero Record when nothing was.
	HostNet(ctx context.Context) (Record, error)
	KeepHostNet(ctx context.Context, r Record) error
}

// Lease is a VM's address, and its tap while it runs.
type Lease = model.Lease

// Leases keeps the leases of all VMs.
type Leases interface {
	Leases(ctx context.Context) ([]Lease, error)
	// UpdateLease gives change the VM's lease, or one with only its VMID, and the
	// addresses of all others, and keeps what it makes of it; all in one transaction.
	// An error of change leaves everything as it was and is returned.
	UpdateLease(ctx context.Context, vmID string, change func(l *Lease, used []netip.Addr) error) error
	// DropLease forgets a lease; one that is not there is no error.
	DropLease(ctx context.Context, vmID string) error
}

// VM is what the network must know of a VM.
type VM struct {
	ID       string
	UID      int      // user id that may open the tap by name; 0: only root
	Isolated bool     // reaches nothing beyond the host
	Network  string   // VMs of one network see each other; empty: none
	Expose   []uint16 // ports of the host that it may reach at the gateway, TCP and UDP
}

// Attachment is how a VM is on the network, and what its guest must be told.
type Attachment struct {
	Bridge    string
	Tap       string
	MAC       net.HardwareAddr
	Addresses []netip.Prefix // IPv4, then IPv6 where the host has it
	Gateways  []netip.Addr   // likewise; each is the name server as well
	MTU       int
}

// Deps is what a Service needs.
type Deps struct {
	Memory Memory
	Leases Leases
	Bridge string       // the name of one to make, short enough for the config; see plan
	Prefix netip.Prefix // of IPv4; zero: one that no route of the host leads to
	MTU    int          // bytes
	Pool   int          // how many taps are kept ready
	VNet   bool         // taps carry virtio-net headers
	// Firewalld is asked to let the bridge through. nil: nobody is.
	Firewalld *firewalld.Manager
	Log       *slog.Logger // nil: none
	// Faults is a seam for tests; see steps.Runner.
	Faults func(step string, done bool) error
}

// Configured is what the configuration says of the network.
func Configured(c config.Network) Deps {
	return Deps{Bridge: c.Bridge, Prefix: c.Prefix.Std(), MTU: int(c.MTU), Pool: int(c.Pool)}
}

// Service gives VMs their place on the network. The methods that take a VM's id
// must not run twice at once for one VM: the VM's claim sees to that.
type Service struct {
	Deps

	// Claims, not mutexes, because netlink is spoken under them: whoever has put a
	// token in holds it. hostUp is for putting up and taking down what all VMs share.
	// hostBatch is the filler's while it makes taps. hostRules is for changing the
	// firewall together with guests: a whole ruleset that was put together before a
	// guest came would throw it out again.
	hostUp, hostBatch, hostRules chan struct{}

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	tasks  sync.WaitGroup
	wake   chan struct{} // holds one token when the pool may want taps

	// mu guards the fields below. Nothing is called while it is held.
	mu       sync.Mutex
	plan     *plan                // nil: the bridge is not up
	guests   map[string]nat.Guest // attached VMs, by id; changed only by a holder of hostRules
	names    []netip.Addr         // gateways on which names are answered; changed as guests are
	networks map[string]uint32    // numbers of named networks, for as long as we live
	taken    map[int]bool         // numbers of taps that are there or being made
	warm     []string             // taps that wait for a VM
	filling  bool                 // the filler runs
	stalled  bool                 // the last batch failed whole: the filler waits for a success
}

// New returns a service; it touches nothing.
func New(deps Deps) *Service {
	if deps.Log == nil {
		deps.Log = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancel(context.Background())
	return &Service{
		Deps: deps, ctx: ctx, cancel: cancel,
		hostUp: make(chan struct{}, 1), hostBatch: make(chan struct{}, 1), hostRules: make(chan struct{}, 1), wake: make(chan struct{}, 1),
		guests: map[string]nat.Guest{}, networks: map[string]uint32{}, taken: map[int]bool{},
	}
}

// DefaultBridge is the bridge of a daemon that was not told another name.
const DefaultBridge = "bgr0"

// tableFor names the firewall's tables: one name for everybody, and others for
// daemons beside it, which have bridges of other names.
func tableFor(bridge string) nat.Table {
	t := nat.Table{Name: "banger", Bridge: bridge, TapPrefix: tapdev.TapPrefix(bridge)}
	if bridge != DefaultBridge {
		t.Name += "-" + bridge
	}
	return t
}

// claim takes a claim, or gives up with the context.
func claim(ctx context.Context, c chan struct{}) error {
	select {
	case c <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (s *Service) runner() steps.Runner { return steps.Runner{Log: s.Log, Faults: s.Faults} }

// Close stops the pool and waits for it. VMs, taps and rules stay.
func (s *Service) Close() error {
	s.cancel()
	s.mu.Lock()
	s.filling = true // none begins from here on
	s.mu.Unlock()
	s.tasks.Wait()
	return nil
}

// setRules puts a guest in place of the VM's former one, nil for none, into the
// firewall. When the firewall is not as we left it (somebody flushed all rules), it
// is written anew.
func (s *Service) setRules(ctx context.Context, p *plan, vmID string, guest *nat.Guest) error {
	if err := claim(ctx, s.hostRules); err != nil {
		return err
	}
	defer func() { <-s.hostRules }()
	s.mu.Lock()
	after, names := maps.Clone(s.guests), s.names
	s.mu.Unlock()
	var remove, add []nat.Guest
	if old, ok := after[vmID]; ok {
		remove = append(remove, old)
		delete(after, vmID)
	}
	if guest != nil {
		add = append(add, *guest)
		after[vmID] = *guest
	}
	if len(remove)+len(add) == 0 {
		return nil
	}
	table := tableFor(p.Bridge)
	if err := table.Change(remove, add); err != nil {
		s.Log.WarnContext(ctx, "the firewall was not as it was left; it is written anew", logkey.Err, err)
		if err := table.Sync(p.state(after, names)); err != nil {
			return err
		}
	}
	s.mu.Lock()
	s.guests = after
	s.mu.Unlock()
	return nil
}

// syncRules writes the firewall anew, for the guests that are known.
func (s *Service) syncRules(ctx context.Context, p *plan) error {
	if err := claim(ctx, s.hostRules); err != nil {
		return err
	}
	defer func() { <-s.hostRules }()
	s.mu.Lock()
	guests, names := s.guests, s.names
	s.mu.Unlock()
	return tableFor(p.Bridge).Sync(p.state(guests, names))
}

// state is the firewall's for these guests, where names are answered on those gateways.
func (p *plan) state(guests map[string]nat.Guest, names []netip.Addr) nat.State {
	st := nat.State{Gateways: p.gateways(), Services: services(names)}
	for _, id := range slices.Sorted(maps.Keys(guests)) {
		st.Guests = append(st.Guests, guests[id])
	}
	return st
}

// network returns the number of a named network; 0 for no name. Numbers need not
// last: whatever bears one is written anew when a daemon starts.
func (s *Service) network(name string) uint32 {
	if name == "" {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.networks[name] == 0 {
		s.networks[name] = uint32(len(s.networks) + 1)
	}
	return s.networks[name]
}

func (s *Service) current() *plan {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.plan
}

// lease returns the VM's lease; ok is false when it has none.
func (s *Service) lease(ctx context.Context, vmID string) (l Lease, ok bool, err error) {
	all, err := s.Leases.Leases(ctx)
	if err != nil {
		return Lease{}, false, err
	}
	i := slices.IndexFunc(all, func(l Lease) bool { return l.VMID == vmID })
	if i < 0 {
		return Lease{}, false, nil
	}
	return all[i], true, nil
}
