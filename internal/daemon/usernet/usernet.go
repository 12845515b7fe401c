// Package usernet gives virtual machines a network without privileges.
//
// A detached helper process, one per state directory, runs one user-space
// network stack per VM. QEMU listens on a stream socket in the VM's directory
// (-netdev stream,server=on) and the helper connects to it, so that QEMU, the
// helper and the daemon can each end and come back on their own. All stacks have
// the same addresses and know nothing of each other: a guest sees a gateway, a
// resolver on the gateway's address, and whatever the host can reach and the
// Policy allows, but never the host's own services and never another guest.
//
// Every TCP connection a guest opens ends in its stack and is carried on by an
// ordinary socket of the helper; every UDP flow and every ping likewise.
//
// # Parts
//
//	Client   the daemon's side: starts the helper, attaches VMs, keeps watch
//	Serve    the helper process: control socket, attachments, its own end
//	network  one VM's stack: link (frames), tcp, udp, icmp, dns
//	Policy   asked before each new flow
//
// # Control protocol
//
// JSON objects, one a line, over a unix socket of mode 0600 whose peer must be
// the same user. A request carries an id and is answered once under that id; the
// helper sends lines without an id on its own account (see event). Lines are
// bounded by maxLine.
package usernet

import (
	"net/netip"
)

// What every guest is configured with. The addresses are the same for all VMs.
const (
	GuestAddress = "192.168.127.2/24"
	GuestIP      = "192.168.127.2"
	GatewayIP    = "192.168.127.1"
	DNSIP        = GatewayIP
	DNSPort      = 53

	// GuestMAC is the card's address. The helper answers to whatever address the
	// guest really uses, since it is alone on its wire.
	GuestMAC   = "02:62:67:72:00:02"
	GatewayMAC = "02:62:67:72:00:01"

	// MTU is large because no frame leaves the machine: what costs is the number
	// of frames. It is not larger because without offloads the guest's kernel
	// copies each segment into one block, and 32 KiB, headers and bookkeeping
	// included, is the largest it can rely on getting.
	MTU = 32000
)

var (
	guestIP     = netip.MustParseAddr(GuestIP)
	gatewayIP   = netip.MustParseAddr(GatewayIP)
	guestSubnet = netip.MustParsePrefix(GuestAddress).Masked()
	gatewayMAC  = [6]byte{0x02, 0x62, 0x67, 0x72, 0x00, 0x01}
)

// Proto is the protocol of a flow.
type Proto string

// The protocols. The ports of an ICMP flow are zero.
const (
	TCP  Proto = "tcp"
	UDP  Proto = "udp"
	ICMP Proto = "icmp" // echo requests
)

// Flow is a TCP connection, a pair of UDP ports, or a series of echo requests,
// opened by a guest. A question to the resolver is a flow to the gateway's DNS
// port.
type Flow struct {
	VM    string
	Proto Proto
	Src   netip.AddrPort
	Dst   netip.AddrPort
}

// Policy decides on a new flow; an error refuses it. It is called for every new
// flow, and again when the host's side of it has been opened, for addresses can
// change hands. Calls come concurrently and on the path of the guest's packets:
// it must not block.
type Policy func(Flow) error
