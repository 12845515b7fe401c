package hostnet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"banger/internal/daemon/nat"
	"banger/internal/daemon/tapdev"
	"banger/internal/nettest"
)

func TestMain(m *testing.M) {
	if err := nettest.Move(); err != nil {
		panic(err)
	}
	m.Run()
}

// memory keeps in memory what the store would.
type memory struct {
	mu     sync.Mutex
	record Record
	leases map[string]Lease
}

func (m *memory) HostNet(context.Context) (Record, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.record
	r.Settings = slices.Clone(r.Settings)
	return r, nil
}

func (m *memory) KeepHostNet(_ context.Context, r Record) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	r.Settings = slices.Clone(r.Settings)
	m.record = r
	return nil
}

func (m *memory) Leases(context.Context) ([]Lease, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Collect(maps.Values(m.leases)), nil
}

func (m *memory) UpdateLease(_ context.Context, id string, change func(*Lease, []netip.Addr) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := m.leases[id]
	l.VMID = id
	var used []netip.Addr
	for other, o := range m.leases {
		if other != id {
			used = append(used, o.Addr)
		}
	}
	if err := change(&l, used); err != nil {
		return err
	}
	m.leases[id] = l
	return nil
}

func (m *memory) DropLease(_ context.Context, id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.leases, id)
	return nil
}

// world is a host in a namespace of its own, with another machine on its uplink.
type world struct {
	t      *testing.T
	mem    *memory
	deps   Deps
	s      *Service
	uplink *nettest.NS

	waiting sync.WaitGroup // for connections that must not come about
}

// The addresses on the uplink: the host's, and the other machine's.
var (
	hostUp4, far4 = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	hostUp6, far6 = netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")
)

func newWorld(t *testing.T) *world {
	t.Helper()
	nettest.Require(t)
	w := &world{t: t, mem: &memory{leases: map[string]Lease{}}, uplink: nettest.NewNS(t)}
	nettest.Own(t).Wire("up0", []string{"192.0.2.1/24", "2001:db8::1/64"}, w.uplink, "eth0", []string{"192.0.2.2/24", "2001:db8::2/64"})
	w.careful()
	before := w.traces()
	w.deps = Deps{Memory: w.mem, Leases: w.mem, Bridge: DefaultBridge, MTU: 1400, Pool: 2}
	w.s = New(w.deps)
	t.Cleanup(func() {
		w.must(w.s.Close())
		// The next test finds a host as this one did; and each is a test of Uninstall.
		s := New(w.deps)
		w.must(s.Uninstall(context.Background()))
		w.must(s.Uninstall(context.Background()))
		if after := w.traces(); after != before {
			t.Errorf("left on the host:\n%s\nbefore:\n%s", after, before)
		}
	})
	return w
}

// careful makes the host one that does not forward, though by one device, and believes
// no redirects. Some hosts pass other settings on to namespaces.
func (w *world) careful() {
	w.t.Helper()
	for _, s := range []nat.Setting{
		{Key: "ipv4/ip_forward", Want: "0"}, {Key: "ipv4/conf/all/accept_redirects", Want: "0"},
		{Key: "ipv4/conf/up0/forwarding", Want: "1"}, {Key: "ipv6/conf/up0/forwarding", Want: "1"},
	} {
		w.must(os.WriteFile("/proc/sys/net/"+s.Key, []byte(s.Want), 0))
	}
}

// restart is a daemon that dies and begins anew, with those VMs running.
func (w *world) restart(running ...VM) {
	w.t.Helper()
	w.must(w.s.Close())
	w.s = New(w.deps)
	lost, err := w.s.Restore(w.t.Context(), running)
	w.must(err)
	if len(lost) > 0 {
		w.t.Errorf("lost the networks of %v", lost)
	}
	w.answerNames()
}

// traces is all that hostnet could leave behind.
func (w *world) traces() string {
	w.t.Helper()
	var b strings.Builder
	links, err := netlink.LinkList()
	w.must(err)
	for _, l := range links {
		fmt.Fprintf(&b, "link %s\n", l.Attrs().Name)
	}
	c, err := nftables.New()
	w.must(err)
	tables, err := c.ListTables()
	w.must(err)
	for _, table := range tables {
		fmt.Fprintf(&b, "table %d %s\n", table.Family, table.Name)
	}
	for _, key := range []string{"ipv4/ip_forward", "ipv4/conf/all/accept_redirects", "ipv4/conf/default/forwarding", "ipv4/conf/lo/forwarding", "ipv4/conf/up0/forwarding",
		"ipv6/conf/all/forwarding", "ipv6/conf/lo/forwarding", "ipv6/conf/up0/forwarding", "ipv6/conf/up0/accept_ra", "ipv6/conf/default/accept_ra"} {
		v, err := os.ReadFile("/proc/sys/net/" + key)
		w.must(err)
		fmt.Fprintf(&b, "net/%s=%s", key, v)
	}
	return b.String()
}

// owned lists the taps that are ours.
func (w *world) owned() []string {
	w.t.Helper()
	taps, err := tapdev.Taps("banger " + w.mem.record.ID)
	w.must(err)
	slices.Sort(taps)
	return taps
}

// elements returns what stands in a set of the firewall, by table.
func (w *world) elements(family nftables.TableFamily, set string) int {
	w.t.Helper()
	c, err := nftables.New()
	w.must(err)
	s, err := c.GetSetByName(&nftables.Table{Name: "banger", Family: family}, set)
	w.must(err)
	all, err := c.GetSetElements(s)
	w.must(err)
	return len(all)
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) attach(vm VM) Attachment {
	w.t.Helper()
	a, err := w.s.Attach(w.t.Context(), vm)
	w.must(err)
	w.answerNames()
	return a
}

// answerNames is what the daemon says once it has the name server's port.
func (w *world) answerNames() {
	w.t.Helper()
	if p := w.s.current(); p != nil {
		w.must(w.s.AnswerNames(w.t.Context(), p.gateways(), true))
	}
}

// boot attaches the VM and boots a guest there.
func (w *world) boot(vm VM) *guest {
	w.t.Helper()
	a := w.attach(vm)
	f, err := tapdev.OpenTap(a.Tap, false)
	w.must(err)
	return &guest{Guest: nettest.NewGuest(w.t, f, a.MAC, a.Addresses, a.Gateways), w: w, vm: vm, Attachment: a}
}

type guest struct {
	*nettest.Guest
	Attachment
	w  *world
	vm VM
}

func (g *guest) ip4() netip.Addr { return g.Addresses[0].Addr() }
func (g *guest) ip6() netip.Addr { return g.Addresses[1].Addr() }

func (g *guest) all() []netip.Addr { return []netip.Addr{g.ip4(), g.ip6()} }

// patience is how long a connection that must not come about is waited for: most
// are refused, and those that are dropped take this long.
const patience = 500 * time.Millisecond

// dial connects from the guest and returns what the other side greets it with.
func (g *guest) dial(to netip.AddrPort, wait time.Duration) (greeting string, err error) {
	err = g.Do(func() error {
		conn, err := net.DialTimeout("tcp", to.String(), wait)
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		b, err := io.ReadAll(conn)
		greeting = string(b)
		return err
	})
	return greeting, err
}

// reaches and the following say who must get through to whom.
func (g *guest) reaches(what string, to netip.AddrPort) (seenAs string) {
	g.w.t.Helper()
	greeting, err := g.dial(to, 5*time.Second)
	if err != nil {
		g.w.t.Errorf("%s does not reach %s: %v", g.vm.ID, what, err)
	}
	return greeting
}

// cannotReach tries in the background: w.waiting tells when all have tried.
func (g *guest) cannotReach(what string, to netip.AddrPort) {
	g.w.waiting.Go(func() {
		if greeting, err := g.dial(to, patience); err == nil {
			g.w.t.Errorf("%s reaches %s at %s (%q)", g.vm.ID, what, to, greeting)
		}
	})
}

type doer interface{ Do(func() error) error }

// here runs things on the host itself.
type here struct{}

func (here) Do(fn func() error) error { return fn() }

// serve greets every connection to the port, on all addresses, with the address it
// came from.
func (w *world) serve(on doer, port uint16) {
	w.t.Helper()
	var l net.Listener
	w.must(on.Do(func() (err error) {
		l, err = net.Listen("tcp", fmt.Sprintf(":%d", port))
		return err
	}))
	var tasks sync.WaitGroup
	tasks.Go(func() {
		for {
			conn, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				continue
			}
			from, _ := netip.ParseAddrPort(conn.RemoteAddr().String())
			_, _ = io.WriteString(conn, from.Addr().Unmap().String())
			_ = conn.Close()
		}
	})
	w.t.Cleanup(func() {
		_ = l.Close()
		tasks.Wait()
	})
}

// address adds an address to a device of the namespace it runs in.
func address(device, cidr string) error {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return err
	}
	a, err := netlink.ParseAddr(cidr)
	if err != nil {
		return err
	}
	return netlink.AddrReplace(link, a)
}

func at(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }
