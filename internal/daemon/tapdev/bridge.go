package tapdev

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
)

// BridgeSpec says what a bridge is to be.
type BridgeSpec struct {
	Name string
	// MAC is both its hardware address and what tells it from somebody else's
	// bridge of that name: the kernel sets it in the moment it makes the bridge, so
	// no crash leaves one that is not known. It also keeps the address from changing
	// with every port that comes and goes.
	MAC   net.HardwareAddr
	Alias string
	MTU   int            // bytes
	Addrs []netip.Prefix // the host's own addresses on it
}

// EnsureBridge makes the bridge or completes the one that is there. It errors with
// class already_exists when a device of that name is not ours, and changes nothing.
func EnsureBridge(spec BridgeSpec) error {
	link, err := ownBridge(spec.Name, spec.MAC)
	if err != nil {
		return err
	}
	if link == nil {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.HardwareAddr, attrs.MTU = spec.Name, spec.MAC, spec.MTU
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			return fmt.Errorf("make bridge %s: %w", spec.Name, err)
		}
		if link, err = netlink.LinkByName(spec.Name); err != nil {
			return fmt.Errorf("find bridge %s: %w", spec.Name, err)
		}
	}
	if err := netlink.LinkSetAlias(link, spec.Alias); err != nil {
		return fmt.Errorf("name the owner of bridge %s: %w", spec.Name, err)
	}
	if err := netlink.LinkSetMTU(link, spec.MTU); err != nil {
		return fmt.Errorf("set the MTU of bridge %s: %w", spec.Name, err)
	}
	// A bridge that listens to who wants which multicast can be told by any port that
	// it wants nothing: then neighbours no longer find each other.
	if err := snoop(spec.Name, false); err != nil {
		return fmt.Errorf("let bridge %s carry all multicast: %w", spec.Name, err)
	}
	if err := setAddresses(link, spec.Addrs); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("switch on bridge %s: %w", spec.Name, err)
	}
	return nil
}

// snoop switches that listening. It takes a name because a link that was read, with
// all that was read of it, is refused as a change.
func snoop(bridge string, on bool) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = bridge
	return netlink.BridgeSetMcastSnoop(&netlink.Bridge{LinkAttrs: attrs}, on)
}

// setAddresses makes want the bridge's addresses, apart from its link-local one.
func setAddresses(link netlink.Link, want []netip.Prefix) error {
	name := link.Attrs().Name
	have, err := whole(func() ([]netlink.Addr, error) { return netlink.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("list the addresses of %s: %w", name, err)
	}
	for _, a := range have {
		ip, _ := netip.AddrFromSlice(a.IP)
		ones, _ := a.Mask.Size()
		if p := netip.PrefixFrom(ip.Unmap(), ones); p.Addr().IsLinkLocalUnicast() || slices.Contains(want, p) {
			continue
		}
		if err := netlink.AddrDel(link, &a); err != nil {
			return fmt.Errorf("remove address %s from %s: %w", a.IPNet, name, err)
		}
	}
	for _, p := range want {
		addr := &netlink.Addr{IPNet: ipNet(p)}
		if p.Addr().Is6() {
			// Nobody else can have it, and without a port the check never ends.
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrReplace(link, addr); err != nil {
			return fmt.Errorf("add address %s to %s: %w", p, name, err)
		}
	}
	return nil
}

// ownBridge returns the bridge if it is there and ours; nil when there is none.
func ownBridge(name string, mac net.HardwareAddr) (netlink.Link, error) {
	link, err := netlink.LinkByName(name)
	switch {
	case err != nil && Missing(err):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("find bridge %s: %w", name, err)
	case link.Type() != "bridge":
		return nil, errdefs.AlreadyExists("network device %s is not a bridge but a %s", name, link.Type()).
			WithHint("choose another name with network.bridge in the config, or remove the device")
	case !bytes.Equal(link.Attrs().HardwareAddr, mac):
		return nil, errdefs.AlreadyExists("bridge %s is not this daemon's%s", name, owner(link)).
			WithHint("choose another name with network.bridge in the config, or remove the bridge")
	}
	return link, nil
}

func owner(link netlink.Link) string {
	if alias := link.Attrs().Alias; alias != "" {
		return fmt.Sprintf(" (it says %q)", alias)
	}
	return ""
}

// CheckBridge reports whether a bridge of ours is there; the error is
// EnsureBridge's for a device that is not ours.
func CheckBridge(name string, mac net.HardwareAddr) (bool, error) {
	link, err := ownBridge(name, mac)
	return link != nil, err
}

// DeleteBridge removes the bridge if it is there and ours; one that is not ours is
// left alone.
func DeleteBridge(name string, mac net.HardwareAddr) error {
	link, err := ownBridge(name, mac)
	if err != nil || link == nil {
		return nil
	}
	if err := netlink.LinkDel(link); err != nil && !Missing(err) {
		return fmt.Errorf("delete bridge %s: %w", name, err)
	}
	return nil
}

// Route is a destination of the host's routing tables.
type Route struct {
	To     netip.Prefix
	Device string // empty for a route that leads nowhere, such as blackhole
}

// Routes returns every route but the default ones, of all tables.
func Routes() ([]Route, error) {
	list, err := whole(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	links, err := whole(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list network devices: %w", err)
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	var routes []Route
	for _, r := range list {
		if r.Dst == nil {
			continue
		}
		ip, ok := netip.AddrFromSlice(r.Dst.IP)
		ones, _ := r.Dst.Mask.Size()
		if !ok || ones == 0 {
			continue
		}
		routes = append(routes, Route{To: netip.PrefixFrom(ip.Unmap(), ones).Masked(), Device: names[r.LinkIndex]})
	}
	return routes, nil
}

// maxListings is how often a list is asked for that changes while it is told.
const maxListings = 100

// whole repeats a list that was changed by somebody while the kernel told it: what is
// missing in it may be there.
func whole[T any](list func() ([]T, error)) (all []T, err error) {
	for range maxListings {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
