package usernet

import (
	"errors"
	"net/netip"
	"slices"

	"banger/internal/model"
)

// Reasons of a refusal.
var (
	errOwnHost     = errors.New("address of the host itself")
	errOtherVM     = errors.New("address of another VM")
	errGateway     = errors.New("the gateway serves nothing but names")
	errGuestSubnet = errors.New("no such machine in the guest's network")
	errMetadata    = errors.New("where clouds keep a machine's secrets")
	errSpecial     = errors.New("not a unicast address of another machine")
)

// currentNet is "this network": the kernel takes 0.0.0.0 for the host itself.
var currentNet = netip.MustParsePrefix("0.0.0.0/8")

// reservedNet is 240.0.0.0/4, the limited broadcast address included.
var reservedNet = netip.MustParsePrefix("240.0.0.0/4")

// HostPolicy allows everything but what would reach this host or another VM: the
// addresses of both (inside is asked for those, and says why not), loopback,
// link-local, unspecified, multicast and broadcast addresses, and the guest's own subnet
// except for the resolver in it. Nor does it allow what would reach the metadata service
// of a cloud.
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
		case within(metadata, dst):
			return errMetadata
		}
		return inside(dst)
	}
}

// embedsIPv4 reports whether dst is an IPv6 address that a translator on the way
// may turn into an IPv4 address which the checks above have not seen.
func embedsIPv4(dst netip.Addr) bool {
	return dst.Is6() && within(translated, dst)
}

func within(list []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
}

var metadata = model.CloudMetadata()

var translated = []netip.Prefix{
	netip.MustParsePrefix("::/96"),          // IPv4-compatible
	netip.MustParsePrefix("64:ff9b::/96"),   // NAT64
	netip.MustParsePrefix("64:ff9b:1::/48"), // NAT64, local
	netip.MustParsePrefix("2002::/16"),      // 6to4
}
