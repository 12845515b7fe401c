package nat

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/nftables"

	"banger/internal/nettest"
)

func TestMain(m *testing.M) {
	if err := nettest.Move(); err != nil {
		panic(err)
	}
	m.Run()
}

var table = Table{Name: "banger-test", Bridge: "tt0", TapPrefix: "tt0-"}

func guest(n int) Guest {
	return Guest{
		Tap: fmt.Sprint("tt0-", n), MAC: net.HardwareAddr{2, 0, 0, 0, byte(n >> 8), byte(n)},
		IPv4: netip.AddrFrom4([4]byte{10, 1, byte(n >> 8), byte(n)}), IPv6: netip.AddrFrom16([16]byte{0xfd, 14: byte(n >> 8), 15: byte(n)}),
		Outbound: true, Network: 1, Ports: []uint16{80, 80, 443},
	}
}

// contents is everything in the table's sets.
func contents(t *testing.T) string {
	t.Helper()
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, family := range families {
		sets, err := c.GetSets(&nftables.Table{Name: table.Name, Family: family})
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range sets {
			elements, err := c.GetSetElements(s)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range elements {
				all = append(all, fmt.Sprintf("%s %x %x", s.Name, e.Key, e.Val))
			}
		}
	}
	slices.Sort(all)
	return fmt.Sprint(all)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestChangesAndSyncComeToTheSame(t *testing.T) {
	nettest.Require(t)
	t.Cleanup(func() { must(t, table.Remove()) })
	st := State{Gateways: []netip.Addr{netip.MustParseAddr("10.1.0.1")}}
	must(t, table.Sync(st))
	empty := contents(t)
	must(t, table.Change(nil, []Guest{guest(2)}))
	must(t, table.Change(nil, []Guest{guest(3), guest(4)}))
	other := guest(2)
	other.Ports, other.Network, other.Outbound = nil, 2, false
	must(t, table.Change([]Guest{guest(2), guest(3)}, []Guest{other}))
	changed := contents(t)
	for range 2 {
		st.Guests = []Guest{guest(4), other}
		must(t, table.Sync(st))
		if now := contents(t); now != changed {
			t.Fatalf("changes gave\n%s\nsync\n%s", changed, now)
		}
	}
	// All or nothing: the second guest is not there, the first stays.
	if err := table.Change([]Guest{guest(4), guest(9)}, nil); err == nil {
		t.Error("a guest that is not there was removed")
	}
	if now := contents(t); now != changed {
		t.Errorf("a change that failed left\n%s", now)
	}
	must(t, table.Change([]Guest{guest(4), other}, nil))
	if now := contents(t); now != empty {
		t.Errorf("without guests there is\n%s\nat first\n%s", now, empty)
	}
}

func TestManyGuestsAreOneBatch(t *testing.T) {
	nettest.Require(t)
	t.Cleanup(func() { must(t, table.Remove()) })
	var st State
	for n := range 2000 {
		st.Guests = append(st.Guests, guest(n+2))
	}
	must(t, table.Sync(st))
	c, err := nftables.New()
	must(t, err)
	s, err := c.GetSetByName(&nftables.Table{Name: table.Name, Family: nftables.TableFamilyBridge}, setSource6)
	must(t, err)
	if all, err := c.GetSetElements(s); err != nil || len(all) != 4000 {
		t.Errorf("%d elements, %v", len(all), err)
	}
}

func TestRemoveLeavesOthersAlone(t *testing.T) {
	nettest.Require(t)
	c, err := nftables.New()
	must(t, err)
	foreign := c.AddTable(&nftables.Table{Name: "foreign", Family: nftables.TableFamilyINet})
	must(t, c.Flush())
	t.Cleanup(func() {
		c.DelTable(foreign)
		must(t, c.Flush())
	})
	must(t, table.Sync(State{}))
	if there, err := table.Present(); err != nil || !there {
		t.Errorf("present: %v, %v", there, err)
	}
	for range 2 {
		must(t, table.Remove())
	}
	if there, err := table.Present(); err != nil || there {
		t.Errorf("present: %v, %v", there, err)
	}
	if found, err := table.Obstacles(); err != nil || len(found) > 0 {
		t.Errorf("a table without chains is in the way: %+v, %v", found, err)
	}
	if tables, err := c.ListTables(); err != nil || len(tables) != 1 {
		t.Errorf("%d tables are left, %v", len(tables), err)
	}
}

func TestSettings(t *testing.T) {
	nettest.Require(t)
	must(t, writeSetting(forward4, "0")) // some hosts pass it on to namespaces
	before, err := MissingSettings()
	must(t, err)
	if len(before) < 2 || before[len(before)-1].Key != forward6 {
		t.Fatalf("missing: %+v", before)
	}
	must(t, Apply(before))
	if now, err := MissingSettings(); err != nil || len(now) > 0 {
		t.Errorf("still missing: %+v, %v", now, err)
	}
	if merged := Merge(before, []Setting{{Key: forward4, Was: "1", Want: "1"}}); !slices.Equal(merged, before) {
		t.Errorf("what it was at first is forgotten: %+v", merged)
	}
	// Somebody turned one off: it is theirs now.
	must(t, writeSetting(forward4, "0"))
	must(t, PutBack(before))
	must(t, PutBack(before))
	if now, err := MissingSettings(); err != nil || !slices.Equal(now, before) {
		t.Errorf("put back: %+v, %v, before: %+v", now, err, before)
	}
}

// What the kernel changes along with forwarding is as it was afterwards, also when the
// daemon dies in between.
func TestSettingsThatGoAlong(t *testing.T) {
	nettest.Require(t)
	const redirects, own4, own6 = "ipv4/conf/all/accept_redirects", "ipv4/conf/lo/forwarding", "ipv6/conf/lo/forwarding"
	read := func() string {
		var all []string
		for _, key := range []string{forward4, redirects, own4, "ipv4/conf/default/forwarding", forward6, own6, "ipv6/conf/default/forwarding"} {
			v, err := readSetting(key)
			must(t, err)
			all = append(all, key+"="+v)
		}
		return fmt.Sprint(all)
	}
	t.Cleanup(func() { must(t, errors.Join(writeSetting(forward4, "0"), writeSetting(forward6, "0"))) })
	for _, careful := range []bool{true, false} {
		must(t, errors.Join(writeSetting(forward4, "0"), writeSetting(forward6, "0")))
		if careful {
			must(t, errors.Join(writeSetting(redirects, "0"), writeSetting(own4, "1"), writeSetting(own6, "1")))
		}
		was := read()
		list, err := MissingSettings()
		must(t, err)
		must(t, Apply(list))
		if now := read(); strings.Contains(now, forward4+"=0") {
			t.Fatalf("does not forward: %s", now)
		}
		must(t, PutBack(list))
		if now := read(); now != was {
			t.Errorf("put back:\n%s, was\n%s", now, was)
		}
		must(t, Apply(list))
		must(t, errors.Join(writeSetting(forward6, "0"), writeSetting(forward4, "0"))) // and dies
		must(t, PutBack(list))
		if now := read(); now != was {
			t.Errorf("put back by the next daemon:\n%s, was\n%s", now, was)
		}
	}
	// Somebody believes redirects by now, and has put an end to a device's forwarding.
	must(t, errors.Join(writeSetting(redirects, "0"), writeSetting(own4, "1")))
	list, err := MissingSettings()
	must(t, err)
	must(t, Apply(list))
	must(t, errors.Join(writeSetting(redirects, "1"), writeSetting(own4, "0")))
	must(t, PutBack(list))
	if now := read(); !strings.Contains(now, redirects+"=1 "+own4+"=0") {
		t.Errorf("what somebody changed is not left as it is: %s", now)
	}
}
