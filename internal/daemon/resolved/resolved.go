// Package resolved tells systemd-resolved which name server is to be asked for a
// domain. resolved routes questions by network link: the server and the domain are
// given to a link of ours, and taken from it again by Revert. No file of the host
// is changed, and when the link goes, so does what was said of it.
//
// It speaks to resolved over the system bus. A host without one, or without
// resolved, has nothing to be told, which is no error.
package resolved

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"banger/internal/daemon/sysbus"
	"banger/internal/errdefs"
)

const (
	service = "org.freedesktop.resolve1"
	manager = service + ".Manager."
	object  = dbus.ObjectPath("/org/freedesktop/resolve1")
)

// How long the calls of one change may take together, and how long after that
// there is to undo them.
const (
	callTimeout = 5 * time.Second
	undoTimeout = time.Second
)

// Link is what resolved is told of one network link.
type Link struct {
	Index   int              // of the link
	Servers []netip.AddrPort // asked for the names below Domains, and for no others
	Domains []string         // for example "vm", or "42.10.in-addr.arpa"
}

// Manager is resolved, as seen over a bus.
type Manager struct {
	bus string // socket
}

// New returns the resolved on the bus with that socket. It has touched nothing yet.
func New(bus string) *Manager { return &Manager{bus: bus} }

// The signatures of the calls: a(iayqs) and a(sb).
type (
	server struct {
		Family  int32
		Address []byte
		Port    uint16
		Name    string // for TLS
	}
	domain struct {
		Name      string
		RouteOnly bool // which server is asked, not what is appended to a name
	}
)

// Point tells resolved of l, in the place of what it knew of that link. It reports
// false when there is no resolved on this host. When it fails, resolved knows
// nothing of the link; the names can then still be asked for directly, so callers
// warn and go on. resolved asks the servers while the link has a carrier: a bridge
// has one as long as a VM on it runs.
func (m *Manager) Point(ctx context.Context, l Link) (bool, error) {
	servers := make([]server, 0, len(l.Servers))
	for _, at := range l.Servers {
		s := server{Family: unix.AF_INET6, Address: at.Addr().Unmap().AsSlice(), Port: at.Port()}
		if len(s.Address) == 4 {
			s.Family = unix.AF_INET
		}
		servers = append(servers, s)
	}
	domains := make([]domain, 0, len(l.Domains))
	for _, name := range l.Domains {
		domains = append(domains, domain{Name: name, RouteOnly: true})
	}
	index := int32(l.Index)
	return m.calls(ctx, []call{
		// First, so that the link is at no time the one for all names.
		{"SetLinkDefaultRoute", []any{index, false}},
		// The domain is nobody's on the internet: there is no signature to check it
		// by. And the server has no TLS, whatever the host wants of others.
		{"SetLinkDNSSEC", []any{index, "no"}},
		{"SetLinkDNSOverTLS", []any{index, "no"}},
		// Otherwise the host asks whoever is on the link for names without a dot,
		// and on ours are guests, who would answer what they like.
		{"SetLinkLLMNR", []any{index, "no"}},
		{"SetLinkMulticastDNS", []any{index, "no"}},
		{"SetLinkDomains", []any{index, domains}},
		{"SetLinkDNSEx", []any{index, servers}},
	}, revert(index))
}

// Revert makes resolved forget what it was told of a link, and reports whether
// there is a resolved. A link that is gone is no error: resolved has forgotten it.
func (m *Manager) Revert(ctx context.Context, index int) (bool, error) {
	there, err := m.calls(ctx, []call{revert(int32(index))}, call{})
	var failed dbus.Error
	if errors.As(err, &failed) && failed.Name == service+".NoSuchLink" {
		return there, nil
	}
	return there, err
}

func revert(index int32) call { return call{"RevertLink", []any{index}} }

type call struct {
	method string
	args   []any
}

// calls makes the calls in their order; undo follows when one of them fails.
func (m *Manager) calls(ctx context.Context, list []call, undo call) (bool, error) {
	// The connection outlives ctx by what it takes to undo.
	life, end := context.WithTimeout(context.WithoutCancel(ctx), callTimeout+undoTimeout)
	defer end()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	conn, err := sysbus.Connect(life, m.bus)
	if err != nil {
		return false, errdefs.Unavailable("connect to the system bus: %w", err).WithHint(byHand)
	}
	if conn == nil {
		return false, nil
	}
	defer func() { _ = conn.Close() }()
	resolved := conn.Object(service, object)
	for _, c := range list {
		// Not started for this: where it does not run, nobody asks it anything.
		err := resolved.CallWithContext(ctx, manager+c.method, dbus.FlagNoAutoStart, c.args...).Err
		if err == nil {
			continue
		}
		if sysbus.Absent(err) {
			return false, nil
		}
		if undo.method != "" {
			_ = resolved.CallWithContext(life, manager+undo.method, dbus.FlagNoAutoStart, undo.args...).Err
		}
		return true, explain(c.method, err)
	}
	return true, nil
}

const byHand = "point the host's resolver at bangerd by hand: docs/dns.md"

// explain classifies what resolved said to a call.
func explain(method string, err error) error {
	name := ""
	var failed dbus.Error
	if errors.As(err, &failed) {
		name = failed.Name
	}
	switch strings.TrimPrefix(name, sysbus.ErrorPrefix) {
	case "":
		if errors.Is(err, context.Canceled) {
			return errdefs.Wrap(err, "tell systemd-resolved (%s)", method)
		}
	case "UnknownMethod":
		return errdefs.Unsupported("tell systemd-resolved (%s): %w", method, err).
			WithHint("systemd 246 or newer is needed; or %s", byHand)
	case "AccessDenied", "InteractiveAuthorizationRequired":
		return errdefs.Permission("tell systemd-resolved (%s): %w", method, err).WithHint(byHand)
	}
	return errdefs.Unavailable("tell systemd-resolved (%s): %w", method, err).
		WithHint("see what it says: journalctl -u systemd-resolved; or %s", byHand)
}
