package ports

import (
	"context"
	"encoding/binary"
	"errors"
	"hash/fnv"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
	"banger/internal/model"
)

// listener is where one port of the host is listened on: one socket, or one for each
// kind of loopback.
type listener struct{ sockets []*net.TCPListener }

func (l *listener) close() {
	if l == nil {
		return
	}
	for _, s := range l.sockets {
		_ = s.Close()
	}
}

// bind listens on a port of the host; port 0 takes a free one. Errors say who has it:
// failed_precondition when it is taken, permission, unavailable when the address is not
// this host's.
func bind(p model.Port) (*listener, error) {
	l := &listener{}
	for i, addr := range p.Addrs() {
		network := "tcp4"
		if addr.Is6() {
			network = "tcp6"
		}
		var conf net.ListenConfig
		s, err := conf.Listen(context.Background(), network, netip.AddrPortFrom(addr, p.Host).String())
		switch {
		case err == nil:
			l.sockets = append(l.sockets, s.(*net.TCPListener))
			p.Host = s.Addr().(*net.TCPAddr).AddrPort().Port()
			continue
		case i > 0 && (errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EAFNOSUPPORT)):
			continue // a host without IPv6
		}
		l.close()
		return nil, bindError(netip.AddrPortFrom(addr, p.Host), err)
	}
	return l, nil
}

func (l *listener) port() uint16 { return l.sockets[0].Addr().(*net.TCPAddr).AddrPort().Port() }

func bindError(at netip.AddrPort, err error) error {
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return errdefs.Precondition("port %s of the host is taken%s", at, by(at)).
			WithHint("choose another port, or end what listens there (ss -ltnp 'sport = :%d' tells)", at.Port())
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return errdefs.Permission("port %s of the host is for root", at).
			WithHint("choose one from %d on, or let users have more: sysctl net.ipv4.ip_unprivileged_port_start", lowestPort())
	case errors.Is(err, unix.EADDRNOTAVAIL), errors.Is(err, unix.EAFNOSUPPORT):
		return errdefs.Unavailable("%s is not an address of this host", at.Addr()).WithHint("leave the address out to listen on the loopback")
	}
	return errdefs.Wrap(err, "listen on %s", at)
}

// chooseTries is how often a free port is looked for that is free on every address.
const chooseTries = 32

// bindFree is bind; a port of the host that is left open becomes one that is free, and
// that no other VM has, though it may not run now.
func bindFree(p *model.Port, all []model.Port) (*listener, error) {
	if p.Host != 0 {
		return bind(*p)
	}
	var err error
	for range chooseTries {
		var l *listener
		if l, err = bind(*p); err != nil {
			continue // taken on the second address
		}
		chosen := *p
		chosen.Host = l.port()
		if taken(chosen, all) {
			l.close()
			continue
		}
		p.Host = chosen.Host
		return l, nil
	}
	if err == nil {
		err = errdefs.Exhausted("no port of the host is free").WithHint("name one: HOSTPORT:%d", p.Guest)
	}
	return nil, err
}

func taken(p model.Port, all []model.Port) bool {
	for _, o := range all {
		if p.Overlaps(o) {
			return true
		}
	}
	return false
}

// lowestPort is the lowest port that this process may listen on.
func lowestPort() int {
	if os.Geteuid() == 0 {
		return 1
	}
	b, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start")
	if n, nerr := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && nerr == nil {
		return n
	}
	return 1024
}

// choose derives an address from a VM's id, or takes the next that is free.
func choose(prefix netip.Prefix, vmID string, used map[netip.Addr]bool) (netip.Addr, error) {
	base := prefix.Masked().Addr().As4()
	size := uint32(1) << (32 - prefix.Bits())
	h := fnv.New32a()
	_, _ = h.Write([]byte(vmID)) // never fails
	start := h.Sum32()
	for i := range size {
		offset := (start + i) % size
		if offset == 0 || offset == size-1 {
			continue // what people take for the network and for everybody
		}
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(base[:])+offset)
		if a := netip.AddrFrom4(b); !used[a] {
			return a, nil
		}
	}
	return netip.Addr{}, errdefs.Exhausted("every address of %s belongs to a VM", prefix).
		WithHint("delete some VMs, or set network.loopback to a larger prefix")
}
