// Package taptest gives tests of the host's network a host that is not this one: the
// test process moves into a network namespace of its own, other machines are
// namespaces too, and a guest is one behind a tap, with the kernel's own network
// stack. All of it ends with the process.
package taptest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"banger/internal/daemon/tapdev"
)

// moved tells the process that it is in its own namespace already.
const moved = "TAPTEST_MOVED"

// Move puts the test process into a network namespace of its own by executing it
// again there: all of its threads must be in it. Call it first in TestMain. Without
// the rights to do so it does nothing, and Require skips.
func Move() error {
	if os.Getenv(moved) != "" || os.Geteuid() != 0 {
		return nil
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil
	}
	return syscall.Exec("/proc/self/exe", os.Args, append(os.Environ(), moved+"=1"))
}

// Require skips the test where there is no namespace to test in, and gives it a
// loopback device.
func Require(t testing.TB) {
	t.Helper()
	if os.Getenv(moved) == "" {
		t.Skip("needs root, and the right to make network namespaces")
	}
	if _, err := os.Stat(tapdev.TunDevice); err != nil {
		t.Skipf("no taps here: %v", err)
	}
	must(t, up("lo"))
}

// NS is a network namespace: another machine.
type NS struct {
	t  testing.TB
	fd int
}

// NewNS makes a namespace with a loopback device.
func NewNS(t testing.TB) *NS {
	t.Helper()
	n := &NS{t: t}
	errs := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			n.fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		}
		errs <- err
	}()
	must(t, <-errs)
	t.Cleanup(func() { _ = unix.Close(n.fd) })
	must(t, n.Do(func() error { return up("lo") }))
	return n
}

// Do runs fn on a thread in the namespace. Sockets that it makes stay there.
func (n *NS) Do(fn func() error) error {
	errs := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := unix.Setns(n.fd, unix.CLONE_NEWNET); err != nil {
			errs <- err
			return
		}
		errs <- fn()
	}()
	return <-errs
}

// Wire joins the process's own namespace to another by a cable. Each end has the
// addresses given for it.
func Wire(t testing.TB, here string, hereAddrs []string, n *NS, there string, thereAddrs []string) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = here
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: there, PeerNamespace: netlink.NsFd(n.fd)}))
	t.Cleanup(func() { _ = netlink.LinkDel(&netlink.Veth{LinkAttrs: attrs}) })
	must(t, configure(here, hereAddrs, nil))
	must(t, n.Do(func() error { return configure(there, thereAddrs, nil) }))
}

func up(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}

func configure(name string, addrs []string, gateways []netip.Addr) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		addr, err := netlink.ParseAddr(a)
		if err != nil {
			return err
		}
		if addr.IP.To4() == nil {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrReplace(link, addr); err != nil {
			return fmt.Errorf("add %s to %s: %w", a, name, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return err
	}
	for _, gw := range gateways {
		if err := netlink.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: gw.AsSlice(), Dst: anywhere(gw)}); err != nil {
			return fmt.Errorf("route by %s: %w", gw, err)
		}
	}
	return nil
}

func anywhere(gw netip.Addr) *net.IPNet {
	return &net.IPNet{IP: make(net.IP, gw.BitLen()/8), Mask: net.CIDRMask(0, gw.BitLen())}
}

// AwaitUp waits until a tap that was opened carries frames: the kernel tells the
// bridge a little later, by a worker of its own.
func AwaitUp(t testing.TB, name string) {
	t.Helper()
	updates, done := make(chan netlink.LinkUpdate, 1024), make(chan struct{})
	defer close(done)
	must(t, netlink.LinkSubscribe(updates, done))
	link, err := netlink.LinkByName(name)
	must(t, err)
	for state := link.Attrs().OperState; state != netlink.OperUp; {
		u, ok := <-updates
		if !ok {
			t.Fatalf("tap %s did not come up", name)
		}
		if u.Attrs().Name == name {
			state = u.Attrs().OperState
		}
	}
}

// Guest is a namespace that stands behind a tap, as a VM's guest would. Close takes
// the VMM's place as well: it lets go of the tap.
type Guest struct {
	*NS
	host, guest *os.File
	pumps       sync.WaitGroup
	once        sync.Once
}

// NewGuest boots a guest on the tap that host is open on.
func NewGuest(t testing.TB, host *os.File, mac net.HardwareAddr, addrs []netip.Prefix, gateways []netip.Addr) *Guest {
	t.Helper()
	g := &Guest{NS: NewNS(t), host: host}
	must(t, g.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "eth0"
		tap := &netlink.Tuntap{LinkAttrs: attrs, Mode: netlink.TUNTAP_MODE_TAP, Flags: netlink.TUNTAP_NO_PI | netlink.TUNTAP_ONE_QUEUE}
		if err := netlink.LinkAdd(tap); err != nil {
			return err
		}
		if err := netlink.LinkSetHardwareAddr(tap, mac); err != nil {
			return err
		}
		var err error
		if g.guest, err = tapdev.OpenTap("eth0", false); err != nil {
			return err
		}
		var list []string
		for _, a := range addrs {
			list = append(list, a.String())
		}
		return configure("eth0", list, gateways)
	}))
	g.pumps.Go(func() { pump(g.host, g.guest) })
	g.pumps.Go(func() { pump(g.guest, g.host) })
	t.Cleanup(g.Close)
	return g
}

// Close ends the guest and lets go of its tap.
func (g *Guest) Close() {
	g.once.Do(func() {
		_ = g.host.Close()
		_ = g.guest.Close()
		g.pumps.Wait()
	})
}

// pump carries frames one way until either side is closed.
func pump(to io.Writer, from io.Reader) {
	frame := make([]byte, 1<<16)
	for {
		n, err := from.Read(frame)
		if err != nil {
			return
		}
		// A device that is down, or full, loses the frame as a wire would.
		if _, err := to.Write(frame[:n]); errors.Is(err, os.ErrClosed) {
			return
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
