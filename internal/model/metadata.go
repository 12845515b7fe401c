package model

import "net/netip"

// CloudMetadata is where clouds tell a machine its secrets, to whoever on it asks, and
// take it for the machine: no guest is to ask there. The link-local network is that of
// nearly all; the others are of Azure, Alibaba, Amazon, Google, Oracle and Scaleway. The
// prefixes end at whole bytes.
func CloudMetadata() []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix("169.254.0.0/16"),
		netip.MustParsePrefix("168.63.129.16/32"),
		netip.MustParsePrefix("100.100.100.200/32"),
		netip.MustParsePrefix("fd00:ec2::254/128"),
		netip.MustParsePrefix("fd20:ce::254/128"),
		netip.MustParsePrefix("fd00:c1::a9fe:a9fe/128"),
		netip.MustParsePrefix("fd00:42::42/128"),
	}
}
