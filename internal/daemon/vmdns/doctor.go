package vmdns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"banger/internal/doctor"
	"banger/internal/errdefs"
)

// mailbox stands in the SOA record; nobody else's has it.
const mailbox = "bangerd.invalid."

// probeTimeout is how long whoever has the port may take to say who it is.
const probeTimeout = 2 * time.Second

// checks are what doctor asks for the host's questions and for those of guests.
func (n *Names) checks(ctx context.Context) (list []doctor.Check) {
	if n.Listen.IsValid() {
		list = append(list, Check(n.Listen))
	}
	if n.Wanted == nil {
		return list
	}
	for _, gw := range n.Wanted(ctx) {
		list = append(list, checkGateway(n.door(gw)))
	}
	return list
}

// Check finds out whether addr can be answered on, or is already: by a daemon, which
// is what doctor is to say while one runs. VMs run without names, so it never fails.
func Check(addr netip.AddrPort) doctor.Check {
	return doctor.Check{Name: "names", Run: func(ctx context.Context) doctor.Result {
		return judge(ctx, addr, tryListen(addr, bind))
	}}
}

// checkGateway does the same for an address that this host need not have yet. Who has the
// port of all addresses has that one as well.
func checkGateway(addr netip.AddrPort) doctor.Check {
	return doctor.Check{Name: "names for guests", Run: func(ctx context.Context) doctor.Result {
		err := tryListen(addr, bind)
		if errors.Is(err, unix.EADDRNOTAVAIL) {
			if err = tryListen(addr, bindFree); err == nil {
				return doctor.Pass("%s is free for .%s", addr, Domain)
			}
			// Nobody can be asked there.
			return doctor.Warn(guestsHint(addr), "guests cannot ask for names: %v", err)
		}
		r := judge(ctx, addr, err)
		if r.Status != doctor.StatusPass {
			return doctor.Warn(guestsHint(addr), "guests cannot ask for names: %v", err)
		}
		return r
	}}
}

func guestsHint(addr netip.AddrPort) string {
	return fmt.Sprintf("have what listens on port %d of all addresses (ss -lntup 'sport = :%d') listen on its own ones only; in dnsmasq: bind-interfaces", addr.Port(), addr.Port())
}

func judge(ctx context.Context, addr netip.AddrPort, err error) doctor.Result {
	switch {
	case err == nil:
		return doctor.Pass("%s is free for .%s", addr, Domain)
	case errors.Is(err, errdefs.ErrFailedPrecondition) && answersHere(ctx, addr):
		return doctor.Pass("bangerd answers for .%s on %s", Domain, addr)
	}
	return doctor.Warn(errdefs.HintOf(err), "%v", err)
}

func tryListen(addr netip.AddrPort, how func(netip.AddrPort) (*net.UDPConn, *net.TCPListener, error)) error {
	udp, tcp, err := how(addr)
	if err != nil {
		return err
	}
	return errors.Join(udp.Close(), tcp.Close())
}

// bindFree is bind for addresses that are not there.
func bindFree(addr netip.AddrPort) (*net.UDPConn, *net.TCPListener, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if ctl := c.Control(func(fd uintptr) {
			// For IPv6 as well.
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_FREEBIND, 1)
		}); ctl != nil {
			return ctl
		}
		return err
	}}
	tcp, err := lc.Listen(context.Background(), "tcp", addr.String())
	if err != nil {
		return nil, nil, bindError(addr, err)
	}
	udp, err := lc.ListenPacket(context.Background(), "udp", addr.String())
	if err != nil {
		return nil, nil, errors.Join(bindError(addr, err), tcp.Close())
	}
	return udp.(*net.UDPConn), tcp.(*net.TCPListener), nil
}

// answersHere reports whether a bangerd has the port.
func answersHere(ctx context.Context, addr netip.AddrPort) bool {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	q := new(dns.Msg).SetQuestion(apex, dns.TypeSOA)
	m, err := dns.ExchangeContext(ctx, q, addr.String())
	if err != nil || len(m.Answer) != 1 {
		return false
	}
	soa, ok := m.Answer[0].(*dns.SOA)
	return ok && m.Authoritative && soa.Mbox == mailbox
}
