package nat

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// senders picks out the connections that one of the addresses began, masqueraded ones
// too, or was to answer.
type senders []netip.Addr

func (s senders) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	return slices.ContainsFunc([]net.IP{f.Forward.SrcIP, f.Reverse.SrcIP}, func(ip net.IP) bool {
		a, ok := netip.AddrFromSlice(ip)
		return ok && slices.Contains(s, a.Unmap())
	})
}

// Forget makes the kernel forget the connections of addresses. Else what answers a
// VM's packets would for minutes be let through to the next VM with its address. It
// fails where the kernel shows nobody its connections (no nf_conntrack_netlink). The
// table is read through once per IP version: its own filter takes the wrong ones for
// IPv6.
func Forget(addrs ...netip.Addr) error {
	var errs []error
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, senders(addrs)); err != nil {
			errs = append(errs, fmt.Errorf("forget connections: %w", err))
		}
	}
	return errors.Join(errs...)
}
