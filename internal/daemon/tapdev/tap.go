// Package tapdev makes the network devices of a host that runs VMs: one bridge
// and, as its ports, taps. Everything goes through ioctl and netlink, and a device
// that is not ours is never touched: a bridge is known by its hardware address, a
// tap by its alias, both of which the caller derives from an identity of its own.
package tapdev

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
)

// TunDevice is the device through which taps are made.
const TunDevice = "/dev/net/tun"

// NameLimit is how many bytes the name of a network device may have.
const NameLimit = unix.IFNAMSIZ - 1

// TapSpec says what a tap is to be.
type TapSpec struct {
	Name   string
	Alias  string // whose it is; see Taps
	Bridge string // the bridge it becomes a port of
	MTU    int    // bytes
	VNet   bool   // frames carry a virtio-net header
}

// ErrTaken is returned for a name that another device has, or a tap that another
// process holds open.
var ErrTaken = errors.New("in use")

// CreateTap makes a persistent tap and plugs it into its bridge: up, isolated from
// all other isolated ports, and without a say in which addresses are reached
// through it: it learns none (some frames are learnt from before any firewall sees
// them) and gets no frame for an unknown one. It is root's, and stays when this
// process ends, until Delete. The tap becomes persistent last: until then the
// kernel removes it with the process that makes it, so a crash leaves no tap that
// does not bear its alias. It errors with ErrTaken when the name is.
func CreateTap(spec TapSpec) error {
	bridge, err := netlink.LinkByName(spec.Bridge)
	if err != nil {
		return fmt.Errorf("find bridge %s: %w", spec.Bridge, err)
	}
	f, err := open(spec.Name, spec.VNet, unix.IFF_TUN_EXCL)
	if err != nil {
		return err
	}
	// The descriptor is closed on every path: without persistence that removes the tap.
	defer func() { _ = f.Close() }()
	link, err := netlink.LinkByName(spec.Name)
	if err != nil {
		return fmt.Errorf("find tap %s: %w", spec.Name, err)
	}
	quiet(spec.Name)
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"name the owner of", func() error { return netlink.LinkSetAlias(link, spec.Alias) }},
		{"set the MTU of", func() error { return netlink.LinkSetMTU(link, spec.MTU) }},
		{"plug in", func() error { return plug(link, bridge) }},
		// A tap without an owner can be opened by everybody.
		{"own", func() error { return unix.IoctlSetInt(int(f.Fd()), unix.TUNSETOWNER, 0) }},
		{"switch on", func() error { return netlink.LinkSetUp(link) }},
		{"keep", func() error { return unix.IoctlSetInt(int(f.Fd()), unix.TUNSETPERSIST, 1) }},
	} {
		if err := step.do(); err != nil {
			return fmt.Errorf("%s tap %s: %w", step.name, spec.Name, err)
		}
	}
	return nil
}

func plug(link, bridge netlink.Link) error {
	if err := netlink.LinkSetMaster(link, bridge); err != nil {
		return err
	}
	return errors.Join(netlink.LinkSetIsolated(link, true), netlink.LinkSetLearning(link, false), netlink.LinkSetFlood(link, false))
}

// Plug makes a tap that somebody has pulled out of the bridge its port again, isolated
// and told of no address; one that is its port stays as it is.
func Plug(name, bridge string) error {
	to, err := netlink.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("find bridge %s: %w", bridge, err)
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find tap %s: %w", name, err)
	}
	if link.Attrs().MasterIndex == to.Attrs().Index {
		return nil
	}
	if err := plug(link, to); err != nil {
		return fmt.Errorf("plug in tap %s: %w", name, err)
	}
	return nil
}

// quiet keeps the host's own IPv6 off the tap: a port of a bridge has no use for an
// address, and would send the guest frames from one.
func quiet(name string) {
	// Where the host has no IPv6 there is nothing to switch off.
	_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/disable_ipv6", []byte("1"), 0)
}

// OpenTap opens an existing tap for a VMM that inherits the descriptor. The caller
// closes the file. It errors with ErrTaken while another process holds the tap.
func OpenTap(name string, vnet bool) (*os.File, error) {
	if _, err := netlink.LinkByName(name); err != nil {
		return nil, fmt.Errorf("find tap %s: %w", name, err)
	}
	return open(name, vnet, 0)
}

func open(name string, vnet bool, flags uint16) (*os.File, error) {
	fd, err := unix.Open(TunDevice, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, errdefs.Unavailable("open %s: %w", TunDevice, err).
			WithHint("load the module: modprobe tun; in a container, pass the device in")
	}
	flags |= unix.IFF_TAP | unix.IFF_NO_PI
	if vnet {
		flags |= unix.IFF_VNET_HDR
	}
	if err := setIff(fd, name, flags); err != nil {
		_ = unix.Close(fd)
		if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EEXIST) {
			err = ErrTaken
		}
		return nil, fmt.Errorf("open tap %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// setIff is by hand because the flags do not fit the sign of the library's setter.
func setIff(fd int, name string, flags uint16) error {
	var req struct {
		name  [unix.IFNAMSIZ]byte
		flags uint16
		_     [22]byte
	}
	if len(name) > NameLimit {
		return unix.ENAMETOOLONG
	}
	copy(req.name[:], name)
	req.flags = flags
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TUNSETIFF, uintptr(unsafe.Pointer(&req))); errno != 0 {
		return errno
	}
	return nil
}

// SetOwner lets the user with that id open the tap by name, for a VMM that does so
// itself, and nobody else but root. It errors with ErrTaken while the tap is open.
func SetOwner(name string, vnet bool, uid int) error {
	f, err := OpenTap(name, vnet)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if err := unix.IoctlSetInt(int(f.Fd()), unix.TUNSETOWNER, uid); err != nil {
		return fmt.Errorf("set the owner of tap %s: %w", name, err)
	}
	return nil
}

// SetIsolated says whether the tap is kept from the bridge's other isolated ports.
func SetIsolated(name string, isolated bool) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find tap %s: %w", name, err)
	}
	if err := netlink.LinkSetIsolated(link, isolated); err != nil {
		return fmt.Errorf("isolate tap %s: %w", name, err)
	}
	return nil
}

// Direct sends frames for mac to the tap, and to no other. Directing it twice
// changes nothing.
func Direct(name string, mac net.HardwareAddr) error {
	n, err := forwarding(name, mac)
	if err == nil {
		err = netlink.NeighSet(n)
	}
	if err != nil {
		return fmt.Errorf("direct %s to tap %s: %w", mac, name, err)
	}
	return nil
}

// Undirect takes that back; an address that was not directed is no error.
func Undirect(name string, mac net.HardwareAddr) error {
	n, err := forwarding(name, mac)
	if err == nil {
		err = netlink.NeighDel(n)
	}
	if err == nil || Missing(err) {
		return nil
	}
	return fmt.Errorf("stop directing %s to tap %s: %w", mac, name, err)
}

func forwarding(name string, mac net.HardwareAddr) (*netlink.Neigh, error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return nil, err
	}
	return &netlink.Neigh{
		LinkIndex: link.Attrs().Index, Family: unix.AF_BRIDGE, HardwareAddr: mac,
		// Static, in the bridge's table: an address of the port itself would be NUD_PERMANENT.
		State: netlink.NUD_NOARP, Flags: netlink.NTF_MASTER,
	}, nil
}

// Delete removes a tap; one that is not there is no error. A VMM that holds it
// open loses its network.
func Delete(name string) error {
	link, err := netlink.LinkByName(name)
	if err == nil {
		if link.Type() != "tuntap" && link.Type() != "tun" {
			return fmt.Errorf("delete tap %s: it is a %s", name, link.Type())
		}
		err = netlink.LinkDel(link)
	}
	if err == nil || Missing(err) {
		return nil
	}
	return fmt.Errorf("delete tap %s: %w", name, err)
}

// Missing reports whether err says that a device or an entry is not there.
func Missing(err error) bool {
	var notFound netlink.LinkNotFoundError
	return errors.As(err, &notFound) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENXIO)
}

// Taps returns the names of all taps with that alias.
func Taps(alias string) ([]string, error) {
	links, err := whole(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list network devices: %w", err)
	}
	var names []string
	for _, l := range links {
		if l.Attrs().Alias == alias && (l.Type() == "tuntap" || l.Type() == "tun") {
			names = append(names, l.Attrs().Name)
		}
	}
	return names, nil
}

// TapName is the name of the n-th tap of a bridge. It has the bridge's name for a
// prefix, by which firewall rules know all of them.
func TapName(bridge string, n int) string { return TapPrefix(bridge) + strconv.Itoa(n) }

// TapPrefix begins the name of every tap of a bridge.
func TapPrefix(bridge string) string { return bridge + "-" }

// TapIndex is the number of a tap of that bridge; ok is false for other names.
func TapIndex(bridge, name string) (n int, ok bool) {
	digits, ok := strings.CutPrefix(name, TapPrefix(bridge))
	if !ok {
		return 0, false
	}
	n, err := strconv.Atoi(digits)
	return n, err == nil && n >= 0 && TapName(bridge, n) == name
}
