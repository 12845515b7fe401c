// Package nettest gives tests of networks hosts that are not this one: network
// namespaces, cables between them, and guests behind taps with the kernel's own network
// stack. Where the code under test works on the host's own network, the test process
// itself moves into a namespace. All of it ends with the process.
package nettest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"banger/internal/sysexec"
)

// tunDevice makes taps.
const tunDevice = "/dev/net/tun"

// moved tells the process that it is in its own namespace already.
const moved = "NETTEST_MOVED"

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
	requireTaps(t)
	must(t, up("lo"))
}

func requireTaps(t testing.TB) {
	t.Helper()
	if _, err := os.Stat(tunDevice); err != nil {
		t.Skipf("no taps here: %v", err)
	}
}

// NS is a network namespace: a machine. It ends with the last process and descriptor
// in it.
type NS struct {
	t  testing.TB
	fd int
}

// ofThread is the calling thread's own namespace. The process's is that of its first
// thread, which may have been one of those that Do and NewNS moved.
const ofThread = "/proc/thread-self/ns/net"

// Own is the namespace the process is in.
func Own(t testing.TB) *NS {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	return &NS{t: t, fd: open(t, ofThread)}
}

// NewNS makes a namespace with a loopback device. The test is skipped where that is
// not allowed.
func NewNS(t testing.TB) *NS {
	t.Helper()
	n, err := &NS{t: t, fd: -1}, error(nil)
	done := make(chan struct{})
	go func() {
		defer close(done)      // also where opening it ends the test
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err = unix.Unshare(unix.CLONE_NEWNET); err == nil {
			n.fd = open(t, ofThread)
		}
	}()
	<-done
	if errors.Is(err, unix.EPERM) {
		t.Skip("needs the right to make network namespaces")
	}
	must(t, err)
	n.Must(func() error { return up("lo") })
	return n
}

func open(t testing.TB, path string) int {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	must(t, err)
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

// Do runs fn on a thread in the namespace. Sockets that it makes and processes that it
// starts stay there.
func (n *NS) Do(fn func() error) error {
	errs := make(chan error, 1)
	go func() {
		defer close(errs) // also when fn ends the test
		runtime.LockOSThread()
		if err := unix.Setns(n.fd, unix.CLONE_NEWNET); err != nil {
			errs <- err
			return
		}
		errs <- fn()
	}()
	return <-errs
}

// Must is Do where an error ends the test.
func (n *NS) Must(fn func() error) {
	n.t.Helper()
	must(n.t, n.Do(fn))
}

// IP runs "ip" in the namespace with each of these argument lists. The test is
// skipped where there is no such program.
func (n *NS) IP(commands ...string) {
	n.t.Helper()
	ip, err := sysexec.Look("ip")
	if err != nil {
		n.t.Skip("needs iproute2")
	}
	n.Must(func() error {
		for _, c := range commands {
			if err := sysexec.Run(context.Background(), sysexec.Cmd{Path: ip, Args: strings.Fields(c)}); err != nil {
				return fmt.Errorf("ip %s: %w", c, err)
			}
		}
		return nil
	})
}

// Sysctl sets one of the namespace's settings, as in "net.ipv4.ip_forward".
func (n *NS) Sysctl(name, value string) {
	n.t.Helper()
	n.Must(func() error {
		return os.WriteFile("/proc/sys/"+strings.ReplaceAll(name, ".", "/"), []byte(value), 0)
	})
}

// Wire joins two namespaces by a cable. Each end has the addresses given for it.
func (n *NS) Wire(here string, hereAddrs []string, peer *NS, there string, thereAddrs []string) {
	n.t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = here
	n.Must(func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: there, PeerNamespace: netlink.NsFd(peer.fd)})
	})
	n.t.Cleanup(func() { _ = n.Do(func() error { return netlink.LinkDel(&netlink.Veth{LinkAttrs: attrs}) }) })
	n.Must(func() error { return configure(here, hereAddrs, nil) })
	peer.Must(func() error { return configure(there, thereAddrs, nil) })
}

// Tap makes a tap in the namespace and opens it; vnet: with the header that says where
// a packet may be cut. Both go when the test ends, the tap when the file is closed.
func (n *NS) Tap(name string, vnet bool) *os.File {
	n.t.Helper()
	requireTaps(n.t)
	var tap *os.File
	n.Must(func() error {
		fd, err := unix.Open(tunDevice, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		flags := uint16(unix.IFF_TAP | unix.IFF_NO_PI)
		if vnet {
			flags |= unix.IFF_VNET_HDR
		}
		request, err := unix.NewIfreq(name)
		if err == nil {
			request.SetUint16(flags)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
		}
		// Only now: before, there is no tap whose frames it could wait for.
		tap = os.NewFile(uintptr(fd), name)
		return err
	})
	n.t.Cleanup(func() { _ = tap.Close() })
	return tap
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
	g.guest = g.Tap("eth0", false)
	g.Must(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetHardwareAddr(link, mac); err != nil {
			return err
		}
		var list []string
		for _, a := range addrs {
			list = append(list, a.String())
		}
		return configure("eth0", list, gateways)
	})
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
