package hostnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"banger/internal/daemon/nat"
	"banger/internal/daemon/tapdev"
	"banger/internal/doctor"
	"banger/internal/errdefs"
)

// loadRules hands a ruleset to nft, as another program's firewall.
func loadRules(t *testing.T, rules string) {
	t.Helper()
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("needs nft, to load another program's rules")
	}
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("nft: %v\n%s", err, out)
	}
}

// Firewalls that leave no room for others are told of, not opened.
func TestObstacles(t *testing.T) {
	w := newWorld(t)
	t.Cleanup(func() { loadRules(t, "delete table inet strict\ndelete table inet firewalld\n") })
	loadRules(t, `
table inet strict {
	chain fence { type filter hook forward priority 0; policy drop;
	}
	chain door { type filter hook input priority 0; policy drop;
	}
}
table inet firewalld {
	chain filter_FORWARD { type filter hook forward priority 10; policy accept;
	}
}
`)
	w.serve(w.uplink, 80)
	w.serve(here{}, 53)
	a := w.boot(VM{ID: "a"})
	a.cannotReach("the world through a fence", at(far4, 80))
	a.cannotReach("the name server through a door", at(a.Gateways[0], 53))
	w.waiting.Wait()
	found, err := tableFor(w.deps.Bridge).Obstacles()
	w.must(err)
	if len(found) != 3 {
		t.Fatalf("found %+v", found)
	}
	// What they are said to need opens them.
	for _, o := range found {
		if strings.HasPrefix(o.Fix, "nft ") {
			loadRules(t, strings.TrimPrefix(o.Fix, "nft ")+"\n")
		}
	}
	a.reaches("the name server", at(a.Gateways[0], 53))
	loadRules(t, "insert rule inet strict fence ct state established accept\n")
	a.reaches("the world", at(far4, 80))
	a.Close()
	w.must(w.s.Release(t.Context(), "a"))
}

func TestRefusalsChangeNothing(t *testing.T) {
	w := newWorld(t)
	before := w.traces()
	refused := func(what string, class error, words ...string) {
		t.Helper()
		_, err := w.s.Attach(t.Context(), VM{ID: "a"})
		for _, err := range []error{err, w.s.Check(t.Context())} {
			if !errors.Is(err, class) || errdefs.HintOf(err) == "" {
				t.Errorf("%s: %v (hint %q)", what, err, errdefs.HintOf(err))
			}
			for _, word := range words {
				if err == nil || !strings.Contains(err.Error(), word) {
					t.Errorf("%s: %v does not say %q", what, err, word)
				}
			}
		}
		if w.mem.record.Up || len(w.mem.leases) > 0 {
			t.Errorf("%s: kept %+v and %v", what, w.mem.record, w.mem.leases)
		}
	}
	w.s.Prefix = netip.MustParsePrefix("192.0.2.0/25")
	refused("an overlapping prefix", errdefs.ErrFailedPrecondition, "192.0.2.0/24", "up0")
	w.s.Prefix = netip.Prefix{}
	if after := w.traces(); after != before {
		t.Errorf("changed:\n%s", after)
	}

	attrs := netlink.NewLinkAttrs()
	attrs.Name = w.deps.Bridge
	foreign := &netlink.Bridge{LinkAttrs: attrs}
	w.must(netlink.LinkAdd(foreign))
	with := w.traces()
	refused("a foreign bridge", errdefs.ErrAlreadyExists, w.deps.Bridge)
	var failed []string
	for _, r := range doctor.Run(t.Context(), New(w.deps).Checks()) {
		if r.Status == doctor.StatusFail {
			failed = append(failed, r.Name)
		}
	}
	if !slices.Equal(failed, []string{"network bridge"}) {
		t.Errorf("doctor fails %v", failed)
	}
	w.mem.record = newRecord()
	w.must(w.s.Uninstall(t.Context())) // which leaves it alone
	if after := w.traces(); after != with {
		t.Errorf("changed:\n%s", after)
	}
	w.must(netlink.LinkDel(foreign))
	for _, r := range doctor.Run(t.Context(), New(w.deps).Checks()) {
		if r.Status != doctor.StatusPass {
			t.Errorf("doctor: %+v", r)
		}
	}
}

// A prefix that somebody is reached in is refused on a host that is set up already, too.
func TestOverlappingPrefixIsRefusedLater(t *testing.T) {
	w := newWorld(t)
	w.attach(VM{ID: "old"})
	w.must(w.s.Release(t.Context(), "old"))
	before := w.addresses()
	w.deps.Prefix = netip.MustParsePrefix("192.0.2.0/25")
	w.must(w.s.Close())
	w.s = New(w.deps)
	_, err := w.s.Attach(t.Context(), VM{ID: "a"})
	for _, err := range []error{err, w.s.Check(t.Context())} {
		if !errors.Is(err, errdefs.ErrFailedPrecondition) || !strings.Contains(err.Error(), "192.0.2.0/24") {
			t.Errorf("an overlapping prefix: %v", err)
		}
	}
	if after := w.addresses(); after != before || w.mem.record.Prefix4 == w.deps.Prefix {
		t.Errorf("the bridge has %s, had %s; kept %+v", after, before, w.mem.record)
	}
}

// Another name for the bridge waits until no VM runs; then nothing of the old one is left.
func TestBridgeIsRenamed(t *testing.T) {
	w := newWorld(t)
	w.serve(w.uplink, 80)
	g := w.boot(VM{ID: "old"})
	was := g.place(t)
	w.deps.Bridge = "other0"
	w.restart(g.vm)
	if now := g.place(t); now.Tap != was.Tap || now.Bridge != DefaultBridge {
		t.Errorf("the running VM is at %+v, was at %+v", now, was)
	}
	g.reaches("the world", at(far4, 80))
	if b := w.attach(VM{ID: "new"}); b.Bridge != DefaultBridge {
		t.Errorf("beside a running VM the next one is at %+v", b)
	}
	g.Close()
	w.must(w.s.Detach(t.Context(), "old"))
	w.must(w.s.Detach(t.Context(), "new"))

	w.restart()
	if there := w.traces(); strings.Contains(there, DefaultBridge) || strings.Contains(there, "banger\n") {
		t.Errorf("of the bridge of before there is left:\n%s", there)
	}
	g = w.boot(VM{ID: "old"})
	if now := g.place(t); now.Bridge != "other0" || !strings.HasPrefix(now.Tap, "other0-") {
		t.Errorf("the next VM is at %+v", now)
	}
	g.reaches("the world", at(far4, 80))
	g.Close()
	w.end()
	w.deps.Bridge = DefaultBridge // by that name all of it is taken away in the end
}

// place is what the service says of where the guest is.
func (g *guest) place(t *testing.T) Attachment {
	t.Helper()
	at, err := g.w.s.Find(t.Context(), g.vm.ID)
	if err != nil {
		t.Error(err)
	}
	return at
}

// A host without IPv6 has guests without it, whichever way it is kept from it.
func TestHostWithoutIPv6(t *testing.T) {
	w := newWorld(t)
	set := func(value string) {
		t.Helper()
		for _, name := range []string{"all", "default"} {
			w.must(os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/disable_ipv6", []byte(value), 0))
		}
	}
	t.Cleanup(func() { set("0") })
	set("1")
	w.serve(w.uplink, 80)
	a := w.boot(VM{ID: "a"})
	if all, err := w.s.Addresses(t.Context()); err != nil || len(a.Addresses) != 1 || len(a.Gateways) != 1 || len(all["a"]) != 1 {
		t.Errorf("attached at %+v, known at %v, %v", a.Attachment, all, err)
	}
	a.reaches("the world", at(far4, 80))
	a.Close()
	w.must(w.s.Release(t.Context(), "a"))
}

// A prefix that was chosen, and that a route leads to by now, is given up for another
// when no VM runs.
func TestAutoPrefixIsChosenAgain(t *testing.T) {
	w := newWorld(t)
	first := w.attach(VM{ID: "old"}).Addresses[0]
	w.must(w.s.Detach(t.Context(), "old"))
	tunnel := netip.PrefixFrom(first.Addr(), 12).Masked()
	w.must(w.route(tunnel))
	for _, how := range []string{"with the bridge there", "with the bridge gone"} {
		w.must(w.s.Close())
		w.s = New(w.deps)
		w.must(w.s.Check(t.Context()))
		for _, r := range doctor.Run(t.Context(), w.s.Checks()) {
			if r.Status != doctor.StatusPass {
				t.Errorf("%s, doctor: %+v", how, r)
			}
		}
		if at := w.attach(VM{ID: "old"}).Addresses[0]; tunnel.Overlaps(at) {
			t.Errorf("%s the next VM is at %s", how, at)
		}
		w.end()
		w.must(w.s.Uninstall(t.Context()))
		w.mem.record.Prefix4 = first.Masked()
	}
}

// route leads to a prefix by the uplink.
func (w *world) route(to netip.Prefix) error {
	_, dst, err := net.ParseCIDR(to.String())
	if err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{Dst: dst, Gw: far4.AsSlice()})
}

// addresses lists those of the host on the bridge.
func (w *world) addresses() string {
	w.t.Helper()
	link, err := netlink.LinkByName(w.deps.Bridge)
	w.must(err)
	list, err := netlink.AddrList(link, netlink.FAMILY_V4)
	w.must(err)
	return fmt.Sprint(list)
}

// Who is not root is told so.
func TestNotRoot(t *testing.T) {
	w := newWorld(t)
	refused := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: nobody else becomes this user
		const nobody = 65534
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, nobody, nobody, nobody); errno != 0 {
			refused <- errno
			return
		}
		refused <- w.s.Check(t.Context())
	}()
	if err := <-refused; !errors.Is(err, errdefs.ErrPermission) || !strings.Contains(errdefs.HintOf(err), "--net user") {
		t.Errorf("%v (hint %q)", err, errdefs.HintOf(err))
	}
}

// When all addresses are in use the next VM is refused before it exists, and one
// address that is given back is enough.
func TestExhaustedPrefix(t *testing.T) {
	w := newWorld(t)
	w.deps.Prefix = netip.MustParsePrefix("10.99.0.0/29") // of which five are for guests
	w.s = New(w.deps)
	for i := range 5 {
		w.must(w.s.Check(t.Context()))
		w.attach(VM{ID: fmt.Sprint(i)})
	}
	w.s.batch() // so that the filler changes nothing meanwhile
	was := w.traces()
	_, err := w.s.Attach(t.Context(), VM{ID: "one more"})
	for _, err := range []error{w.s.Check(t.Context()), w.s.Reserve(t.Context(), "one more"), err} {
		if !errors.Is(err, errdefs.ErrExhausted) || !strings.Contains(err.Error(), "10.99.0.0/29 are in use, by 5 VMs") || !strings.Contains(errdefs.HintOf(err), "network.prefix") {
			t.Errorf("%v (hint %q)", err, errdefs.HintOf(err))
		}
	}
	if now := w.traces(); now != was || len(w.mem.leases) != 5 {
		t.Errorf("with leases %v the host is\n%swas\n%s", w.mem.leases, now, was)
	}
	w.must(w.s.Release(t.Context(), "3"))
	w.must(w.s.Check(t.Context()))
	w.attach(VM{ID: "one more"})
	for _, id := range []string{"0", "1", "2", "4", "one more"} {
		w.must(w.s.Release(t.Context(), id))
	}
}

func TestPool(t *testing.T) {
	w := newWorld(t)
	a := w.attach(VM{ID: "old"})
	w.s.batch()
	w.s.pause()
	if n := len(w.owned()); n != 1+w.deps.Pool {
		t.Errorf("%d taps, want one in use and %d warm", n, w.deps.Pool)
	}
	// A released tap serves the next VM.
	w.must(w.s.Detach(t.Context(), "old"))
	if b := w.attach(VM{ID: "new"}); b.Tap != a.Tap {
		t.Errorf("the next VM has %s, not the released %s", b.Tap, a.Tap)
	}
	w.must(w.s.Detach(t.Context(), "new"))
	// One that a VMM has not let go of serves nobody, and goes.
	b := w.attach(VM{ID: "new"})
	f, err := tapdev.OpenTap(b.Tap, false)
	w.must(err)
	defer func() { _ = f.Close() }()
	w.must(w.s.Detach(t.Context(), "new"))
	if slices.Contains(w.owned(), b.Tap) {
		t.Errorf("tap %s, which is held open, is still there", b.Tap)
	}
	// A name that somebody else has is stepped over.
	attrs := netlink.NewLinkAttrs()
	w.s.pause()
	for n := 0; ; n++ {
		if attrs.Name = tapdev.TapName(w.deps.Bridge, n); !slices.Contains(w.owned(), attrs.Name) {
			break
		}
	}
	w.must(netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}))
	defer func() { w.must(netlink.LinkDel(&netlink.Bridge{LinkAttrs: attrs})) }()
	var wg sync.WaitGroup
	for _, id := range []string{"1", "2", "3", "4", "5", "6", "7", "8"} {
		wg.Go(func() {
			if _, err := w.s.Attach(t.Context(), VM{ID: id, Network: "lab"}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	w.legalTaps()
	for _, id := range []string{"1", "2", "3", "4", "5", "6", "7", "8"} {
		w.must(w.s.Release(t.Context(), id))
	}
	w.legal()

	// Without the bridge no tap can be made: the filler tries once and rests.
	w.s.mu.Lock()
	warm := w.s.warm
	w.s.warm = nil
	w.s.mu.Unlock()
	for _, tap := range warm {
		w.must(w.s.deleteTap(w.s.current(), tap))
	}
	w.must(tapdev.DeleteBridge(w.deps.Bridge, w.s.current().mac))
	w.s.batch()
	if !w.s.stalled {
		t.Error("the filler does not rest although all failed")
	}
	w.s.mu.Lock()
	taken := len(w.s.taken)
	w.s.mu.Unlock()
	if taken > 1 { // the foreign name
		t.Errorf("%d names are reserved for taps that are not there", taken)
	}
	w.end()
}

// legalTaps checks that no two VMs have one tap.
func (w *world) legalTaps() {
	w.t.Helper()
	seen := map[string]string{}
	for id, l := range w.mem.leases {
		if l.Tap == "" {
			continue
		}
		if seen[l.Tap] != "" {
			w.t.Errorf("tap %s is of both %s and %s", l.Tap, id, seen[l.Tap])
		}
		seen[l.Tap] = id
	}
}

// A setting that was as guests need it, or that somebody changed since, is not ours
// to put back.
func TestSettingsArePutBackOnlyIfOurs(t *testing.T) {
	w := newWorld(t)
	const key = "/proc/sys/net/ipv4/ip_forward"
	w.must(os.WriteFile(key, []byte("1"), 0))
	w.attach(VM{ID: "old"})
	w.end()
	w.must(w.s.Uninstall(t.Context()))
	if v, _ := os.ReadFile(key); string(v) != "1\n" {
		t.Errorf("ip_forward is %q; it was on before", v)
	}
	w.careful()
	list, err := nat.MissingSettings()
	w.must(err)
	if !slices.ContainsFunc(list, func(s nat.Setting) bool { return s.Key == "ipv6/conf/up0/accept_ra" && s.Want == "2" }) {
		t.Errorf("%+v lets the host forget its IPv6 router", list)
	}
}
