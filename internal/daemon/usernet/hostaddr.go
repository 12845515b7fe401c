package usernet

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"banger/internal/logkey"
	"banger/internal/model"
)

// hostAddrs knows which addresses the kernel would deliver to this host: those
// of all interfaces, and the local and broadcast entries of the routing table
// (which hold whole prefixes where somebody routed them to this host). And it knows
// where the VMs with addresses are, whichever daemon's: on the networks of the devices
// that daemons have made. The host reaches all of them, and flows are the host's.
//
// It is current at the moment of the question: the kernel announces an address
// before it delivers to it, and every question looks for announcements first.
type hostAddrs struct {
	log    *slog.Logger
	events syscall.RawConn
	file   *os.File

	// mu guards what was read; it is held while announcements are taken in, so
	// that nobody answers from what is known to be old.
	mu       sync.Mutex
	buf      []byte
	stale    bool // what was read is known to be old
	addrs    map[netip.Addr]struct{}
	prefixes []netip.Prefix  // shorter than one address
	bridges  map[uint32]bool // devices with VMs behind them, by index
	guests   []netip.Prefix  // on-link there
}

// openHostAddrs subscribes and takes the first reading.
func openHostAddrs(log *slog.Logger) (*hostAddrs, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	groups := uint32(1<<(unix.RTNLGRP_LINK-1) | 1<<(unix.RTNLGRP_IPV4_IFADDR-1) | 1<<(unix.RTNLGRP_IPV6_IFADDR-1) |
		1<<(unix.RTNLGRP_IPV4_ROUTE-1) | 1<<(unix.RTNLGRP_IPV6_ROUTE-1))
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("subscribe to address changes: %w", err)
	}
	h := &hostAddrs{log: log, file: os.NewFile(uintptr(fd), "netlink"), buf: make([]byte, 16<<10)}
	// Subscribed first, read second: no change falls between the two.
	if h.events, err = h.file.SyscallConn(); err == nil {
		err = h.refreshLocked()
	}
	if err != nil {
		_ = h.file.Close()
		return nil, err
	}
	return h, nil
}

// Close gives up the subscription.
func (h *hostAddrs) Close() { _ = h.file.Close() }

// Inside is errOwnHost when the kernel would deliver addr to this host now, and
// errOtherVM when VMs are there. When that cannot be found out, it is the former: better
// no flow than one into the host.
func (h *hostAddrs) Inside(addr netip.Addr) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.changedLocked() {
		h.stale = true
	}
	if h.stale {
		if err := h.refreshLocked(); err != nil {
			h.log.Warn("reading the host's addresses", logkey.Err, err)
			return errOwnHost
		}
		h.stale = false
	}
	contains := func(p netip.Prefix) bool { return p.Contains(addr) }
	_, own := h.addrs[addr]
	switch {
	case own || slices.ContainsFunc(h.prefixes, contains):
		return errOwnHost
	case slices.ContainsFunc(h.guests, contains):
		return errOtherVM
	}
	return nil
}

// changedLocked takes in what the kernel announced, without waiting.
func (h *hostAddrs) changedLocked() bool {
	changed := false
	err := h.events.Read(func(fd uintptr) bool {
		for {
			n, _, err := unix.Recvfrom(int(fd), h.buf, unix.MSG_TRUNC)
			switch {
			case errors.Is(err, unix.EINTR):
			case errors.Is(err, unix.EAGAIN):
				return true
			case err != nil:
				// Most likely announcements were lost. Were it something else, it
				// would be there again at the next question.
				changed = true
				if !errors.Is(err, unix.ENOBUFS) {
					return true
				}
			case n > len(h.buf), h.concernsLocked(h.buf[:n]):
				changed = true
			}
		}
	})
	return changed || err != nil
}

// concernsLocked leaves out route changes that have nothing to do with addresses
// of this host, and devices that have nothing to do with VMs: a router has many.
func (h *hostAddrs) concernsLocked(b []byte) bool {
	msgs, err := syscall.ParseNetlinkMessage(b)
	if err != nil {
		return true
	}
	for _, m := range msgs {
		switch m.Header.Type {
		case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
			if _, ok := localRoute(m); ok {
				return true
			}
		case unix.RTM_NEWLINK, unix.RTM_DELLINK:
			if index, ours, err := bridgeOf(m); err != nil || ours || h.bridges[index] {
				return true
			}
		default:
			return true
		}
	}
	return false
}

func (h *hostAddrs) refreshLocked() error {
	addrs := make(map[netip.Addr]struct{})
	var prefixes, guests []netip.Prefix
	add := func(p netip.Prefix) {
		if p.IsSingleIP() {
			addrs[p.Addr().Unmap()] = struct{}{}
		} else {
			prefixes = append(prefixes, p)
		}
	}
	bridges, err := listBridges()
	if err != nil {
		return err
	}
	msgs, err := dump(unix.RTM_GETADDR, make([]byte, unix.SizeofIfAddrmsg))
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	for _, m := range msgs {
		if m.Header.Type != unix.RTM_NEWADDR || len(m.Data) < unix.SizeofIfAddrmsg {
			continue
		}
		bits, index := int(m.Data[1]), binary.NativeEndian.Uint32(m.Data[4:])
		attrs, err := syscall.ParseNetlinkRouteAttr(&m)
		if err != nil {
			return fmt.Errorf("parse address: %w", err)
		}
		for _, a := range attrs {
			switch a.Attr.Type {
			case unix.IFA_LOCAL, unix.IFA_BROADCAST:
			case unix.IFA_ADDRESS:
				// On a point-to-point link this is the other end, and IFA_LOCAL
				// is ours; only where there is none of that, it is ours.
				if hasAttr(attrs, unix.IFA_LOCAL) {
					continue
				}
			default:
				continue
			}
			if ip, ok := netip.AddrFromSlice(a.Value); ok {
				add(netip.PrefixFrom(ip, ip.BitLen()))
				if p, err := ip.Prefix(bits); err == nil && bridges[index] {
					guests = append(guests, p)
				}
			}
		}
	}
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		req := make([]byte, unix.SizeofRtMsg)
		req[0], req[4] = family, unix.RT_TABLE_LOCAL
		msgs, err := dump(unix.RTM_GETROUTE, req)
		// A namespace without addresses has no local table; a kernel without
		// IPv6 has no routes of it.
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT) {
			continue
		}
		if err != nil {
			return fmt.Errorf("list local routes: %w", err)
		}
		for _, m := range msgs {
			if p, ok := localRoute(m); ok {
				add(p)
			}
		}
	}
	h.addrs, h.prefixes, h.bridges, h.guests = addrs, prefixes, bridges, guests
	return nil
}

// listBridges returns the devices that some daemon has made, by index. They are named as
// such before they have an address.
func listBridges() (map[uint32]bool, error) {
	msgs, err := dump(unix.RTM_GETLINK, make([]byte, unix.SizeofIfInfomsg))
	if err != nil {
		return nil, fmt.Errorf("list network devices: %w", err)
	}
	all := make(map[uint32]bool)
	for _, m := range msgs {
		index, ours, err := bridgeOf(m)
		if err != nil {
			return nil, fmt.Errorf("parse network device: %w", err)
		}
		if ours {
			all[index] = true
		}
	}
	return all, nil
}

// bridgeOf returns the index of the device that a message is about, and whether a
// daemon has made it.
func bridgeOf(m syscall.NetlinkMessage) (index uint32, ours bool, err error) {
	if t := m.Header.Type; t != unix.RTM_NEWLINK && t != unix.RTM_DELLINK || len(m.Data) < unix.SizeofIfInfomsg {
		return 0, false, nil
	}
	attrs, err := syscall.ParseNetlinkRouteAttr(&m)
	for _, a := range attrs {
		ours = ours || a.Attr.Type == unix.IFLA_IFALIAS && bytes.HasPrefix(a.Value, []byte(model.LinkOwner))
	}
	return binary.NativeEndian.Uint32(m.Data[4:]), ours, err
}

func hasAttr(attrs []syscall.NetlinkRouteAttr, typ uint16) bool {
	for _, a := range attrs {
		if a.Attr.Type == typ {
			return true
		}
	}
	return false
}

// localRoute returns the destination of a route that ends at this host.
func localRoute(m syscall.NetlinkMessage) (netip.Prefix, bool) {
	if t := m.Header.Type; t != unix.RTM_NEWROUTE && t != unix.RTM_DELROUTE || len(m.Data) < unix.SizeofRtMsg {
		return netip.Prefix{}, false
	}
	family, bits, typ := m.Data[0], int(m.Data[1]), m.Data[7]
	switch typ {
	case unix.RTN_LOCAL, unix.RTN_BROADCAST, unix.RTN_ANYCAST:
	default:
		return netip.Prefix{}, false
	}
	attrs, err := syscall.ParseNetlinkRouteAttr(&m)
	if err != nil {
		return netip.Prefix{}, false
	}
	ip := netip.IPv4Unspecified()
	if family == unix.AF_INET6 {
		ip = netip.IPv6Unspecified()
	}
	for _, a := range attrs {
		if a.Attr.Type == unix.RTA_DST {
			if got, ok := netip.AddrFromSlice(a.Value); ok {
				ip = got
			}
		}
	}
	p := netip.PrefixFrom(ip, bits)
	return p, p.IsValid()
}

// dump asks the kernel for a list. body is the fixed header of the request; with
// strict checking the kernel honours the filters in it, without (before 4.20) it
// sends more, which the callers sort out.
func dump(typ uint16, body []byte) ([]syscall.NetlinkMessage, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(fd) }()
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1)
	req := make([]byte, unix.SizeofNlMsghdr, unix.SizeofNlMsghdr+len(body))
	binary.NativeEndian.PutUint32(req[0:], uint32(unix.SizeofNlMsghdr+len(body)))
	binary.NativeEndian.PutUint16(req[4:], typ)
	binary.NativeEndian.PutUint16(req[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	binary.NativeEndian.PutUint32(req[8:], 1)
	if err := unix.Sendto(fd, append(req, body...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, err
	}
	var all []syscall.NetlinkMessage
	for {
		buf := make([]byte, 32<<10)
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		msgs, err := syscall.ParseNetlinkMessage(buf[:n])
		if err != nil {
			return nil, err
		}
		for _, m := range msgs {
			switch m.Header.Type {
			case unix.NLMSG_DONE:
				return all, nil
			case unix.NLMSG_ERROR:
				if len(m.Data) >= 4 {
					if code := int32(binary.NativeEndian.Uint32(m.Data)); code != 0 {
						return nil, syscall.Errno(-code)
					}
				}
				return nil, errors.New("netlink error without a code")
			}
			all = append(all, m)
		}
	}
}
