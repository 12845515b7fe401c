// Package nat keeps the firewall of VMs on a bridge: two nftables tables of one
// name, changed in atomic batches and never by a program.
//
// The inet table masquerades what guests send out, lets nothing in that they did
// not ask for, and keeps them from the host's own services and from each other.
// The bridge table binds every tap to the addresses of its VM and keeps apart the
// ports of different networks. It has to be of the bridge family: for inet all
// guests arrive on one interface, the bridge, ARP is not seen at all, and frames
// from port to port need not pass through it.
//
// Rules never change; what changes with VMs is elements of sets and maps, keyed by
// tap in the bridge table and by address in the inet table. An address may stand
// for a VM there because the bridge table let it through only from that VM's tap.
package nat

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
)

// Guest is a VM with a tap.
type Guest struct {
	Tap      string
	MAC      net.HardwareAddr
	IPv4     netip.Addr
	IPv6     netip.Addr
	Outbound bool     // may reach what lies beyond the host, masqueraded
	Network  uint32   // VMs of one network see each other; 0: it sees none
	Ports    []uint16 // of the host, TCP and UDP, that it may reach at the gateway
}

// Service is something of the host's that every guest may reach.
type Service struct {
	Addr netip.AddrPort
	UDP  bool
}

// State is all that the rules depend on.
type State struct {
	Gateways []netip.Addr // the host's addresses on the bridge
	Services []Service
	Guests   []Guest
}

// Table is the firewall of one bridge. It keeps nothing but names.
type Table struct {
	Name      string // of both tables
	Bridge    string
	TapPrefix string // begins the name of every tap, and of no other device
}

// Mark is set on forwarded packets that were judged and let through, and taken off
// before they leave the host. It is for other firewalls, whose verdict comes later
// and which cannot look into our sets; see AllowInDocker.
const Mark = 0x1000

// maxElements is how many elements go into one message: an attribute holds 64 KiB.
const maxElements = 256

// bufferBytes is the size of the socket's buffers: a batch is one message to the
// kernel, and each of its parts is acknowledged.
const bufferBytes = 32 << 20

// connect returns a connection for one batch.
func connect() (*nftables.Conn, error) {
	c, err := nftables.New(nftables.WithSockOptions(bigBuffers))
	if err != nil {
		return nil, fmt.Errorf("connect to nftables: %w", err)
	}
	return c, nil
}

// flush sends the batch; what says that there is no nftables gets a hint.
func flush(c *nftables.Conn, what string) error {
	err := c.Flush()
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EPERM):
		return errdefs.Permission("%s: %w", what, err).WithHint("run the daemon as root")
	case errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EAFNOSUPPORT), errors.Is(err, unix.EOPNOTSUPP):
		return errdefs.Unsupported("%s: the kernel has no nftables, or not all of it: %w", what, err).
			WithHint("load the modules: modprobe -a nf_tables nft_ct nft_connlimit nft_limit nft_masq nft_reject_inet")
	}
	return fmt.Errorf("%s: %w", what, err)
}

// Sync makes the tables what st says, whatever was there, in one batch. Connections
// under way do not notice.
func (t Table) Sync(st State) error {
	c, err := connect()
	if err != nil {
		return err
	}
	for _, family := range families {
		t.drop(c, family)
	}
	r := t.declare(c)
	if err := r.rules(); err != nil {
		return err
	}
	add := elements{}
	add.state(st)
	for _, g := range st.Guests {
		add.guest(g)
	}
	if err := r.change(c.SetAddElements, add); err != nil {
		return err
	}
	return flush(c, "write firewall rules")
}

// Change takes guests out and puts others in, in one batch: all of it happens or
// nothing. It fails when a guest to remove is not there just so, or one to add is
// there otherwise, or somebody has removed the tables: then Sync.
func (t Table) Change(remove, add []Guest) error {
	c, err := connect()
	if err != nil {
		return err
	}
	r := t.refer()
	gone, come := elements{}, elements{}
	for _, g := range remove {
		gone.guest(g)
	}
	for _, g := range add {
		come.guest(g)
	}
	if err := errors.Join(r.change(c.SetDeleteElements, gone), r.change(c.SetAddElements, come)); err != nil {
		return err
	}
	return flush(c, "change firewall rules")
}

var families = []nftables.TableFamily{nftables.TableFamilyINet, nftables.TableFamilyBridge}

// drop removes a table, be it there or not: to add one that is there changes nothing.
func (t Table) drop(c *nftables.Conn, family nftables.TableFamily) {
	c.AddTable(&nftables.Table{Name: t.Name, Family: family})
	c.DelTable(&nftables.Table{Name: t.Name, Family: family})
}

// Remove takes the tables away with all that is in them.
func (t Table) Remove() error {
	c, err := connect()
	if err != nil {
		return err
	}
	for _, family := range families {
		t.drop(c, family)
	}
	return flush(c, "remove firewall rules")
}

// Present reports whether both tables are there.
func (t Table) Present() (bool, error) {
	c, err := connect()
	if err != nil {
		return false, err
	}
	for _, family := range families {
		tables, err := c.ListTablesOfFamily(family)
		if err != nil {
			return false, fmt.Errorf("list nftables tables: %w", err)
		}
		found := false
		for _, have := range tables {
			found = found || have.Name == t.Name
		}
		if !found {
			return false, nil
		}
	}
	return true, nil
}
