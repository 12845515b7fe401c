package vmdns

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/miekg/dns"

	"banger/internal/doctor"
	"banger/internal/errdefs"
)

// mailbox stands in the SOA record; nobody else's has it.
const mailbox = "bangerd.invalid."

// probeTimeout is how long whoever has the port may take to say who it is.
const probeTimeout = 2 * time.Second

// Check finds out whether addr can be answered on, or is already: by a daemon, which
// is what doctor is to say while one runs. VMs run without names, so it never fails.
func Check(addr netip.AddrPort) doctor.Check {
	return doctor.Check{Name: "names", Run: func(ctx context.Context) doctor.Result {
		err := tryListen(addr)
		switch {
		case err == nil:
			return doctor.Pass("%s is free for .%s", addr, Domain)
		case errors.Is(err, errdefs.ErrFailedPrecondition) && answersHere(ctx, addr):
			return doctor.Pass("bangerd answers for .%s on %s", Domain, addr)
		}
		return doctor.Warn(errdefs.HintOf(err), "%v", err)
	}}
}

func tryListen(addr netip.AddrPort) error {
	udp, tcp, err := bind(addr)
	if err != nil {
		return err
	}
	return errors.Join(udp.Close(), tcp.Close())
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
