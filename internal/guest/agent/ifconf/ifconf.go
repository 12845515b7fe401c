package ifconf

import (
	"encoding/hex"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
	"banger/internal/guest"
	"banger/internal/guest/agent/uevent"
)

const sysNet = "/sys/class/net"

// cardTimeout is how long the network card may take to appear.
const cardTimeout = 15 * time.Second

// maxMTU is what an IP packet can be at most.
const maxMTU = 65535

// Plan is a checked network configuration.
type Plan struct {
	Place  Place
	Place6 Place // of IPv6; the zero Place is none
	DNS    []netip.Addr
	Search string // domain; empty: none
	MTU    int
	MAC    []byte
}

// Place is where the machine is in one family of addresses.
type Place struct {
	Address netip.Prefix
	Gateway netip.Addr // the zero Addr is none
}

// Parse checks a configuration. Errors are of class invalid_argument.
func Parse(n *guest.NetConf) (Plan, error) {
	var p Plan
	var err error
	if p.Place, err = parsePlace(n.Address, n.Gateway); err != nil {
		return p, err
	}
	if n.Address6 != "" {
		if p.Place6, err = parsePlace(n.Address6, n.Gateway6); err != nil {
			return p, err
		}
		if p.Place6.Address.Addr().Is4() || !p.Place.Address.Addr().Is4() {
			return p, errdefs.Invalid("addresses %s and %s are not of IPv4 and IPv6", n.Address, n.Address6)
		}
	}
	if len(n.DNS) > 8 {
		return p, errdefs.Invalid("%d DNS servers: at most 8 are allowed", len(n.DNS))
	}
	for _, d := range n.DNS {
		a, err := netip.ParseAddr(d)
		if err != nil {
			return p, errdefs.Invalid("DNS server: %w", err)
		}
		p.DNS = append(p.DNS, a)
	}
	if strings.Trim(n.Search, "abcdefghijklmnopqrstuvwxyz0123456789-.") != "" || len(n.Search) > 253 {
		return p, errdefs.Invalid("search domain %q is not one", n.Search)
	}
	p.Search = n.Search
	if n.MTU != 0 && (n.MTU < 68 || n.MTU > maxMTU) {
		return p, errdefs.Invalid("MTU %d: 68 to %d are allowed", n.MTU, maxMTU)
	}
	p.MTU = n.MTU
	if n.MAC != "" {
		p.MAC, err = hex.DecodeString(strings.ReplaceAll(n.MAC, ":", ""))
		if err != nil || len(p.MAC) != 6 || p.MAC[0]&1 != 0 {
			return p, errdefs.Invalid("MAC address %q: want six bytes in hex, not multicast", n.MAC)
		}
	}
	return p, nil
}

func parsePlace(address, gateway string) (p Place, err error) {
	if p.Address, err = netip.ParsePrefix(address); err != nil {
		return p, errdefs.Invalid("network address: %w", err)
	}
	if gateway == "" {
		return p, nil
	}
	if p.Gateway, err = netip.ParseAddr(gateway); err != nil {
		return p, errdefs.Invalid("gateway: %w", err)
	}
	if p.Gateway.Is4() != p.Address.Addr().Is4() {
		return p, errdefs.Invalid("gateway %s and address %s are of different families", gateway, address)
	}
	return p, nil
}

// Card is the network card.
type Card struct {
	Name  string
	Index int
}

// Loopback brings the loopback device up; the kernel gives it its addresses.
func Loopback() error {
	c, err := dial()
	if err != nil {
		return err
	}
	defer c.close()
	index, err := readInt(filepath.Join(sysNet, "lo", "ifindex"))
	if err != nil {
		return errdefs.Wrap(err, "find the loopback device")
	}
	return errdefs.Wrap(c.link(index, unix.IFF_UP, unix.IFF_UP, nil), "bring the loopback device up")
}

// WaitCard waits for the virtio network card.
func WaitCard() (Card, error) {
	var card Card
	err := uevent.Until("net", cardTimeout, func() bool {
		var ok bool
		card, ok = FindCard()
		return ok
	})
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = errdefs.Unavailable("no virtio network card within %s", cardTimeout)
	}
	return card, err
}

// FindCard looks for the virtio network card; it has whatever name the image's
// rules give it.
func FindCard() (Card, bool) {
	entries, _ := os.ReadDir(sysNet)
	for _, e := range entries {
		driver, err := os.Readlink(filepath.Join(sysNet, e.Name(), "device", "driver"))
		if err != nil || filepath.Base(driver) != "virtio_net" {
			continue
		}
		if index, err := readInt(filepath.Join(sysNet, e.Name(), "ifindex")); err == nil {
			return Card{Name: e.Name(), Index: index}, true
		}
	}
	return Card{}, false
}

func readInt(path string) (int, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(b)))
}

// Down takes the card down.
func (c Card) Down() error {
	nl, err := dial()
	if err != nil {
		return err
	}
	defer nl.close()
	return errdefs.Wrap(nl.link(c.Index, 0, unix.IFF_UP, nil), "take %s down", c.Name)
}

// Apply gives the card its addresses and the machine its default routes. It may be
// repeated, also with other values: what it set is replaced, not added to.
func (c Card) Apply(p Plan) error {
	nl, err := dial()
	if err != nil {
		return err
	}
	defer nl.close()
	return errdefs.Wrap(c.apply(nl, p), "configure %s", c.Name)
}

func (c Card) apply(nl *conn, p Plan) error {
	var attrs []byte
	if p.MAC != nil && !c.has(p.MAC) { // going down loses routes: not without need
		// Many cards, and old kernels, change their address only while down.
		if err := nl.link(c.Index, 0, unix.IFF_UP, nil); err != nil {
			return err
		}
		attrs = attr(attrs, unix.IFLA_ADDRESS, p.MAC)
	}
	if p.MTU != 0 {
		attrs = attr(attrs, unix.IFLA_MTU, u32(uint32(p.MTU)))
	}
	if len(attrs) > 0 {
		if err := nl.link(c.Index, 0, 0, attrs); err != nil {
			return err
		}
	}
	// Nobody answers router solicitations on this network; do not wait for it.
	_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+c.Name+"/accept_ra", []byte("0"), 0)
	if err := nl.link(c.Index, unix.IFF_UP, unix.IFF_UP, nil); err != nil {
		return err
	}
	if err := nl.place(c.Index, p.Place); err != nil {
		return err
	}
	if !p.Place6.Address.IsValid() {
		return nil
	}
	err := nl.place(c.Index, p.Place6)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EACCES) {
		return nil // a kernel without IPv6, or an image that has switched it off
	}
	return err
}

// has reports whether that is the card's address already.
func (c Card) has(mac []byte) bool {
	b, err := os.ReadFile(filepath.Join(sysNet, c.Name, "address"))
	return err == nil && strings.TrimSpace(string(b)) == net.HardwareAddr(mac).String()
}

// place gives the card the address and the machine the route of one family.
func (c *conn) place(index int, p Place) error {
	if err := c.address(index, p); err != nil || !p.Gateway.IsValid() {
		return err
	}
	return c.route(index, p)
}

func family(a netip.Addr) byte {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// address replaces the addresses of the family by one.
func (c *conn) address(index int, p Place) error {
	addr := p.Address.Addr()
	body := []byte{family(addr), byte(p.Address.Bits()), 0, unix.RT_SCOPE_UNIVERSE}
	body = append(body, u32(uint32(index))...)
	// Deleting without naming one takes the first; until there is none left.
	if addr.Is4() {
		for {
			old := append([]byte{unix.AF_INET, 0, 0, 0}, u32(uint32(index))...)
			err := c.do(unix.RTM_DELADDR, 0, old)
			if err == unix.EADDRNOTAVAIL {
				break
			}
			if err != nil {
				return err
			}
		}
	}
	raw := addr.AsSlice()
	if addr.Is4() {
		body = attr(body, unix.IFA_LOCAL, raw)
		if p.Address.Bits() < 31 {
			body = attr(body, unix.IFA_BROADCAST, broadcast(p.Address))
		}
	} else {
		// No other machine can have it: skip the second of duplicate detection.
		body = attr(body, unix.IFA_FLAGS, u32(unix.IFA_F_NODAD))
	}
	body = attr(body, unix.IFA_ADDRESS, raw)
	return c.do(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, body)
}

func broadcast(p netip.Prefix) []byte {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return b
}

// route replaces the default route.
func (c *conn) route(index int, p Place) error {
	body := []byte{
		family(p.Gateway), 0, 0, 0, // family, prefix lengths, service
		unix.RT_TABLE_MAIN, unix.RTPROT_STATIC, unix.RT_SCOPE_UNIVERSE, unix.RTN_UNICAST,
	}
	var flags uint32
	if !p.Address.Contains(p.Gateway) {
		flags = unix.RTNH_F_ONLINK // a gateway beyond the subnet, as with a /32 address
	}
	body = append(body, u32(flags)...)
	body = attr(body, unix.RTA_GATEWAY, p.Gateway.AsSlice())
	body = attr(body, unix.RTA_OIF, u32(uint32(index)))
	return c.do(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, body)
}
