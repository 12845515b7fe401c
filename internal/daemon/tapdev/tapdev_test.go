package tapdev_test

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"banger/internal/daemon/tapdev"
	"banger/internal/errdefs"
	"banger/internal/nettest"
)

func TestMain(m *testing.M) {
	if err := nettest.Move(); err != nil {
		panic(err)
	}
	m.Run()
}

var mac = net.HardwareAddr{6, 1, 2, 3, 4, 5}

func bridge(t *testing.T) tapdev.BridgeSpec {
	t.Helper()
	nettest.Require(t)
	spec := tapdev.BridgeSpec{Name: "tt0", MAC: mac, Alias: "test", MTU: 1400, Addrs: []netip.Prefix{
		netip.MustParsePrefix("10.1.0.1/16"), netip.MustParsePrefix("fd01::1/64"),
	}}
	if err := tapdev.EnsureBridge(spec); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(tapdev.DeleteBridge("tt0", mac), tapdev.DeleteBridge("tt0", mac)); err != nil {
			t.Error(err)
		}
	})
	return spec
}

func TestBridgeIsAdoptedAndCompleted(t *testing.T) {
	spec := bridge(t)
	link, err := netlink.LinkByName("tt0")
	if err != nil {
		t.Fatal(err)
	}
	// Somebody has meddled with it, and the prefix has changed.
	if err := errors.Join(netlink.LinkSetDown(link), netlink.LinkSetMTU(link, 1500), netlink.BridgeSetMcastSnoop(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "tt0", TxQLen: -1}}, true)); err != nil {
		t.Fatal(err)
	}
	spec.Addrs[0] = netip.MustParsePrefix("10.2.0.1/16")
	if err := tapdev.EnsureBridge(spec); err != nil {
		t.Fatal(err)
	}
	again, err := netlink.LinkByName("tt0")
	if err != nil {
		t.Fatal(err)
	}
	a := again.Attrs()
	if a.Index != link.Attrs().Index || a.MTU != 1400 || a.Flags&net.FlagUp == 0 || a.Alias != "test" {
		t.Errorf("bridge is %+v", a)
	}
	if snoops := again.(*netlink.Bridge).MulticastSnooping; snoops == nil || *snoops {
		t.Error("the bridge believes its ports about who wants which multicast")
	}
	addrs, err := netlink.AddrList(again, netlink.FAMILY_ALL)
	var have []string
	for _, addr := range addrs {
		if !addr.IP.IsLinkLocalUnicast() {
			have = append(have, addr.IPNet.String())
		}
	}
	if err != nil || !slices.Equal(have, []string{"10.2.0.1/16", "fd01::1/64"}) {
		t.Errorf("addresses %v, %v", have, err)
	}
	routes, err := tapdev.Routes()
	if err != nil || !slices.Contains(routes, tapdev.Route{To: netip.MustParsePrefix("10.2.0.0/16"), Device: "tt0"}) {
		t.Errorf("routes %v, %v", routes, err)
	}
}

func TestForeignDevicesAreRefused(t *testing.T) {
	spec := bridge(t)
	spec.MAC = net.HardwareAddr{6, 9, 9, 9, 9, 9}
	if err := tapdev.EnsureBridge(spec); !errors.Is(err, errdefs.ErrAlreadyExists) || errdefs.HintOf(err) == "" {
		t.Errorf("another's bridge: %v", err)
	}
	if err := tapdev.DeleteBridge("tt0", spec.MAC); err != nil {
		t.Error(err)
	}
	if there, err := tapdev.CheckBridge("tt0", mac); !there || err != nil {
		t.Errorf("another's bridge was deleted: %v", err)
	}
	spec.Name = "lo"
	if err := tapdev.EnsureBridge(spec); !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("a device that is no bridge: %v", err)
	}
	if err := tapdev.Delete("tt0"); err == nil {
		t.Error("a bridge was deleted as a tap")
	}
}

func TestTap(t *testing.T) {
	bridge(t)
	spec := tapdev.TapSpec{Name: tapdev.TapName("tt0", 7), Alias: "test", Bridge: "tt0", MTU: 1400, VNet: true}
	if err := tapdev.CreateTap(spec); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(tapdev.Delete(spec.Name), tapdev.Delete(spec.Name)); err != nil {
			t.Error(err)
		}
	})
	if err := tapdev.CreateTap(spec); !errors.Is(err, tapdev.ErrTaken) {
		t.Errorf("made twice: %v", err)
	}
	link, err := netlink.LinkByName(spec.Name)
	if err != nil {
		t.Fatal(err)
	}
	tap, ok := link.(*netlink.Tuntap)
	if !ok || tap.NonPersist || tap.Flags&netlink.TUNTAP_VNET_HDR == 0 || tap.Attrs().MTU != 1400 || tap.Attrs().Flags&net.FlagUp == 0 {
		t.Errorf("tap is %+v", link)
	}
	port, err := netlink.LinkGetProtinfo(link)
	if err != nil || !port.Isolated || port.Learning || port.Flood {
		t.Errorf("port is %+v, %v", port, err)
	}
	if addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL); err != nil || len(addrs) > 0 {
		t.Errorf("the host has addresses on the tap: %v, %v", addrs, err)
	}
	if names, err := tapdev.Taps("test"); err != nil || !slices.Equal(names, []string{spec.Name}) {
		t.Errorf("taps %v, %v", names, err)
	}
	f, err := tapdev.OpenTap(spec.Name, true)
	if err != nil {
		t.Fatal(err)
	}
	if err := tapdev.SetOwner(spec.Name, true, 1000); !errors.Is(err, tapdev.ErrTaken) {
		t.Errorf("a tap that is open: %v", err)
	}
	_ = f.Close()
	if err := tapdev.SetOwner(spec.Name, true, 1000); err != nil {
		t.Error(err)
	}
	if link, err = netlink.LinkByName(spec.Name); err != nil || link.(*netlink.Tuntap).Owner != 1000 {
		t.Errorf("owner of %+v, %v", link, err)
	}
	for range 2 {
		if err := tapdev.Direct(spec.Name, mac); err != nil {
			t.Error(err)
		}
	}
	for range 2 {
		if err := tapdev.Undirect(spec.Name, mac); err != nil {
			t.Error(err)
		}
	}
	if _, err := tapdev.OpenTap("tt0-99", true); err == nil {
		t.Error("opening a tap that is not there made one")
	}
}

// Taps are all found while others come and go: the kernel says so of a list that changed
// under its hands.
func TestTapsAreFoundWhileOthersComeAndGo(t *testing.T) {
	bridge(t)
	spec := tapdev.TapSpec{Name: tapdev.TapName("tt0", 1), Alias: "test", Bridge: "tt0", MTU: 1400}
	if err := tapdev.CreateTap(spec); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	var others sync.WaitGroup
	other := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "other", TxQLen: -1}}
	t.Cleanup(func() {
		close(done)
		others.Wait()
		_ = netlink.LinkDel(other)
		if err := tapdev.Delete(spec.Name); err != nil {
			t.Error(err)
		}
	})
	others.Go(func() {
		for i := 0; ; i = (i + 1) % 2 {
			select {
			case <-done:
				return
			default:
			}
			if err := []func(netlink.Link) error{netlink.LinkAdd, netlink.LinkDel}[i](other); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for range 300 {
		if names, err := tapdev.Taps("test"); err != nil || !slices.Equal(names, []string{spec.Name}) {
			t.Fatalf("taps %v, %v", names, err)
		}
		if _, err := tapdev.Routes(); err != nil {
			t.Fatal(err)
		}
	}
}

// What fails on the way leaves no tap.
func TestTapThatFailsIsNotThere(t *testing.T) {
	bridge(t)
	spec := tapdev.TapSpec{Name: "tt0-1", Alias: "test", Bridge: "tt0", MTU: 1 << 20}
	if err := tapdev.CreateTap(spec); err == nil {
		t.Error("made with an absurd MTU")
	}
	if _, err := netlink.LinkByName(spec.Name); err == nil {
		t.Error("it is there")
	}
	spec.Name, spec.MTU = "a-name-that-is-too-long", 1400
	if err := tapdev.CreateTap(spec); !errors.Is(err, unix.ENAMETOOLONG) {
		t.Errorf("a long name: %v", err)
	}
}

func TestTapNames(t *testing.T) {
	for name, want := range map[string]int{"bgr0-0": 0, "bgr0-12": 12, "bgr0-": -1, "bgr0-x": -1, "bgr0-01": -1, "bgr1-0": -1, "bgr0--1": -1} {
		n, ok := tapdev.TapIndex("bgr0", name)
		if ok != (want >= 0) || ok && n != want {
			t.Errorf("%s is tap %d, %v", name, n, ok)
		}
	}
}
