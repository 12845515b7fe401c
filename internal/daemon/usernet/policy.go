package usernet

import (
	"errors"
	"net/netip"
)

// Reasons of a refusal.
var (
	errOwnHost     = errors.New("address of the host itself")
	errOtherVM     = errors.New("address of another VM")
	errGateway     = errors.New("the gateway serves nothing but names")
	errGuestSubnet = errors.New("no such machine in the guest's network")
	errSpecial     = errors.New("not a unicast address of another machine")
)

// currentNet is "this network": the kernel takes 0.0.0.0 for the host itself.
var currentNet = netip.MustParsePrefix("0.0.0.0/8")

// reservedNet is 240.0.0.0/4, the limited broadcast address included.
var reservedNet = netip.MustParsePrefix("240.0.0.0/4")

// HostPolicy allows everything but what would reach this host or another VM: the
// addresses of both (inside is asked for those, and says why not), loopback,
// link-local (which clouds use for their metadata services), unspecified, multicast
// and broadcast addresses, and the guest's own subnet except for the resolver in it.
func HostPolicy(inside func(netip.Addr) error) Policy {
	return func(f Flow) error {
		// An IPv4 address in IPv6 clothing is that IPv4 address; a zone only says
		// through which interface.
		dst := f.Dst.Addr().Unmap().WithZone("")
		switch {
		case dst == gatewayIP:
			if f.Dst.Port() == DNSPort && f.Proto != ICMP {
				return nil
			}
			return errGateway
		case guestSubnet.Contains(dst):
			return errGuestSubnet
		case !dst.IsValid(), dst.IsUnspecified(), dst.IsLoopback(), dst.IsMulticast(),
			dst.IsLinkLocalUnicast(), currentNet.Contains(dst), reservedNet.Contains(dst):
			return errSpecial
		case embedsIPv4(dst):
			return errSpecial
		}
		return inside(dst)
	}
}

// embedsIPv4 reports whether dst is an IPv6 address that a translator on the way
// may turn into an IPv4 address which the checks above have not seen.
func embedsIPv4(dst netip.Addr) bool {
	if !dst.Is6() {
		return false
	}
	for _, p := range translated {
		if p.Contains(dst) {
			return true
		}
	}
	return false
}

var translated = []netip.Prefix{
	netip.MustParsePrefix("::/96"),          // IPv4-compatible
	netip.MustParsePrefix("64:ff9b::/96"),   // NAT64
	netip.MustParsePrefix("64:ff9b:1::/48"), // NAT64, local
	netip.MustParsePrefix("2002::/16"),      // 6to4
}
