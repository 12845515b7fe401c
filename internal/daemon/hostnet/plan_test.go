package hostnet

import (
	"errors"
	"net/netip"
	"testing"

	"banger/internal/daemon/nat"
	"banger/internal/daemon/tapdev"
	"banger/internal/errdefs"
)

func TestAllocate(t *testing.T) {
	prefix := netip.MustParsePrefix("10.9.8.0/29")
	var used []netip.Addr
	for _, want := range []string{"10.9.8.2", "10.9.8.3", "10.9.8.4", "10.9.8.5", "10.9.8.6"} {
		a, err := allocate(prefix, used)
		if err != nil || a.String() != want {
			t.Fatalf("got %s, %v, want %s", a, err, want)
		}
		used = append(used, a)
	}
	if _, err := allocate(prefix, used); !errors.Is(err, errdefs.ErrExhausted) || errdefs.HintOf(err) == "" {
		t.Errorf("a full prefix gives %v", err)
	}
	if a, err := allocate(prefix, append(used[:1:1], used[2:]...)); err != nil || a != used[1] {
		t.Errorf("a free address in the middle: %s, %v", a, err)
	}
}

func TestAddressesFollowFromOne(t *testing.T) {
	r := newRecord()
	r.Prefix4 = netip.MustParsePrefix("10.200.0.0/16")
	p := planOf(r, "bgr0")
	if !netip.MustParsePrefix("fd00::/8").Contains(r.Prefix6.Addr()) || r.Prefix6.Bits() != 64 || r.Prefix6.Masked() != r.Prefix6 {
		t.Errorf("prefix %s is not a local /64", r.Prefix6)
	}
	if other := newRecord(); other.Prefix6 == r.Prefix6 || other.ID == r.ID {
		t.Error("two hosts have one identity")
	}
	a := netip.MustParseAddr("10.200.1.2")
	if six := p.ip6(a); !r.Prefix6.Contains(six) || six.As16()[15] != 2 {
		t.Errorf("IPv6 address %s", six)
	}
	if gw := p.gateways(); gw[0].String() != "10.200.0.1" || !r.Prefix6.Contains(gw[1]) {
		t.Errorf("gateways %v", gw)
	}
	mac := guestMAC(a)
	if mac.String() != "02:62:0a:c8:01:02" {
		t.Errorf("MAC %s", mac)
	}
	if ll := nat.LinkLocal(mac).String(); ll != "fe80::62:aff:fec8:102" {
		t.Errorf("link-local %s", ll)
	}
	if same, other := planOf(r, "bgr0"), planOf(r, "bgr1"); same.mac.String() != p.mac.String() || other.mac.String() == p.mac.String() {
		t.Error("the bridge's MAC is not its own")
	}
}

func TestAutoPrefixAvoidsRoutes(t *testing.T) {
	route := func(to, dev string) tapdev.Route { return tapdev.Route{To: netip.MustParsePrefix(to), Device: dev} }
	first, err := autoPrefix("id", nil, "bgr0")
	if err != nil || !netip.MustParsePrefix("10.0.0.0/8").Contains(first.Addr()) {
		t.Fatalf("%s, %v", first, err)
	}
	if again, _ := autoPrefix("id", []tapdev.Route{route(first.String(), "bgr0")}, "bgr0"); again != first {
		t.Errorf("its own route drives it to %s", again)
	}
	second, err := autoPrefix("id", []tapdev.Route{route(netip.PrefixFrom(first.Addr(), 24).String(), "eth0")}, "bgr0")
	if err != nil || second.Overlaps(first) {
		t.Errorf("%s, %v", second, err)
	}
	tunnel := route("10.0.0.0/8", "tun0")
	if p, err := autoPrefix("id", []tapdev.Route{tunnel}, "bgr0"); err != nil || p.Overlaps(tunnel.To) {
		t.Errorf("behind a tunnel: %s, %v", p, err)
	}
	if p, err := autoPrefix("id", []tapdev.Route{tunnel, route("172.16.0.0/12", "tun0")}, "bgr0"); err == nil || errdefs.HintOf(err) == "" {
		t.Errorf("with no place left: %s, %v", p, err)
	}
}
