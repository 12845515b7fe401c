package model

import (
	"net/netip"
	"strconv"
	"strings"

	"banger/internal/errdefs"
)

// Port is a TCP port of the host that leads to one of a VM's own.
type Port struct {
	VMID  string
	Addr  netip.Addr // of the host; invalid: 127.0.0.1 and ::1
	Host  uint16     // 0: one that is free, to be chosen
	Guest uint16
}

const portHint = "write HOSTPORT:GUESTPORT, GUESTPORT, or ADDRESS:HOSTPORT:GUESTPORT, e.g. 8080:80"

// ParsePort reads HOSTPORT:GUESTPORT, GUESTPORT or ADDRESS:HOSTPORT:GUESTPORT, with
// an IPv6 address in brackets, and perhaps /tcp at the end.
func ParsePort(text string) (Port, error) {
	rest, proto, given := strings.Cut(text, "/")
	switch {
	case given && strings.EqualFold(proto, "udp"):
		return Port{}, errdefs.Unsupported("port %q: UDP is not forwarded", text).
			WithHint("only TCP goes through; a VM with --net bridge has an address at which all its ports are reached")
	case given && !strings.EqualFold(proto, "tcp"):
		return Port{}, errdefs.Invalid("port %q: %q is no protocol that is forwarded", text, proto).WithHint("%s", portHint)
	}
	addr, ports, err := cutAddr(rest)
	if err != nil {
		return Port{}, errdefs.Invalid("port %q: %w", text, err).WithHint("%s", portHint)
	}
	host, guest, both := strings.Cut(ports, ":")
	if !both {
		guest, host = host, "0"
	}
	p := Port{Addr: addr}
	if p.Guest, err = portNumber(guest); err == nil && both {
		p.Host, err = portNumber(host)
	}
	if err != nil {
		return Port{}, errdefs.Invalid("port %q: %w", text, err).WithHint("%s", portHint)
	}
	return p, p.Check()
}

// ParseHostPort reads which port of the host is meant: HOSTPORT or ADDRESS:HOSTPORT,
// or as ParsePort reads it, of which the port of the guest is then not looked at.
func ParseHostPort(text string) (Port, error) {
	addr, ports, err := cutAddr(strings.TrimSuffix(text, "/tcp"))
	if literal, rest, ok := strings.Cut(ports, ":"); ok && err == nil && !addr.IsValid() {
		if a, aerr := netip.ParseAddr(literal); aerr == nil {
			addr, ports = a, rest
		}
	}
	p := Port{Addr: addr}
	host, _, _ := strings.Cut(ports, ":")
	if err == nil {
		p.Host, err = portNumber(host)
	}
	if err != nil {
		return Port{}, errdefs.Invalid("port %q: %w", text, err).WithHint("write HOSTPORT or ADDRESS:HOSTPORT, e.g. 8080")
	}
	return p, nil
}

// cutAddr separates the address, if there is one, from what follows.
func cutAddr(text string) (netip.Addr, string, error) {
	if inner, ok := strings.CutPrefix(text, "["); ok {
		literal, ports, closed := strings.Cut(inner, "]:")
		if !closed {
			return netip.Addr{}, "", errdefs.Invalid("there is no port after the address")
		}
		addr, err := netip.ParseAddr(literal)
		return addr, ports, err
	}
	if strings.Count(text, ":") < 2 {
		return netip.Addr{}, text, nil
	}
	literal, ports, _ := strings.Cut(text, ":")
	addr, err := netip.ParseAddr(literal)
	return addr, ports, err
}

func portNumber(text string) (uint16, error) {
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 {
		return 0, errdefs.Invalid("%q is not a number from 1 to 65535", text)
	}
	return uint16(n), nil
}

// Check reports, with class invalid_argument, a port that no VM can have.
func (p Port) Check() error {
	if p.Guest == 0 {
		return errdefs.Invalid("the port of the VM is missing").WithHint("%s", portHint)
	}
	if a := p.Addr; a.IsValid() && (a.IsMulticast() || a.Zone() != "" || a.Is4In6()) {
		return errdefs.Invalid("nobody can listen on %s", a).WithHint("name an address of this host, or none for its loopback")
	}
	return nil
}

// Addrs are the addresses of the host on which p is to be listened on.
func (p Port) Addrs() []netip.Addr {
	if p.Addr.IsValid() {
		return []netip.Addr{p.Addr}
	}
	return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}
}

// Overlaps reports whether a connection could be meant for both.
func (p Port) Overlaps(o Port) bool {
	if p.Host != o.Host || p.Host == 0 {
		return false
	}
	for _, a := range p.Addrs() {
		for _, b := range o.Addrs() {
			if a == b || a.Is4() == b.Is4() && (a.IsUnspecified() || b.IsUnspecified()) {
				return true
			}
		}
	}
	return false
}

// At is where the host listens: an address with a port, or only a port for the
// loopback.
func (p Port) At() string {
	if !p.Addr.IsValid() {
		return strconv.Itoa(int(p.Host))
	}
	return netip.AddrPortFrom(p.Addr, p.Host).String()
}

// String is as ParsePort reads it.
func (p Port) String() string { return p.At() + ":" + strconv.Itoa(int(p.Guest)) }
