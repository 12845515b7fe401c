package usernet

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"banger/internal/logkey"
)

// dnsConnIdle is how long a guest's connection to the resolver may say nothing.
const dnsConnIdle = 15 * time.Second

// serveDNS answers the datagrams to the gateway's DNS port; connections to it
// come by acceptTCP. Questions beyond the limit are dropped: the guest asks again.
func (n *network) serveDNS(gateway tcpip.Address) error {
	conn, err := gonet.DialUDP(n.stack, &tcpip.FullAddress{NIC: nicID, Addr: gateway, Port: DNSPort}, nil,
		header.IPv4ProtocolNumber)
	if err != nil {
		return fmt.Errorf("listen for questions: %w", err)
	}
	n.start(func() {
		<-n.ctx.Done()
		// A closed endpoint does not wake its reader; a deadline in the past does.
		_ = conn.SetReadDeadline(time.Unix(1, 0))
	})
	n.start(func() {
		defer func() { _ = conn.Close() }()
		buf := make([]byte, maxDNSQuery+1)
		for {
			size, from, err := conn.ReadFrom(buf)
			if n.ctx.Err() != nil {
				return
			}
			if err != nil || !isQuery(buf[:size]) {
				continue
			}
			src := from.(*net.UDPAddr).AddrPort()
			if !n.admitQuery(UDP, src) {
				continue
			}
			select {
			case n.queries <- struct{}{}:
			default:
				continue
			}
			query := bytes.Clone(buf[:size])
			started := n.start(func() {
				defer func() { <-n.queries }()
				_, _ = conn.WriteTo(n.answer("udp", query), from)
			})
			if !started {
				return
			}
		}
	})
	return nil
}

// serveDNSConn answers the questions of one connection, one after another.
func (n *network) serveDNSConn(g *guestConn) {
	conn := gonet.NewTCPConn(&g.wq, g.ep)
	defer func() { _ = conn.Close() }()
	done := make(chan struct{})
	defer close(done)
	go func() {
		select {
		case <-n.ctx.Done():
			_ = conn.SetDeadline(time.Unix(1, 0))
		case <-done:
		}
	}()
	for n.ctx.Err() == nil {
		_ = conn.SetDeadline(time.Now().Add(dnsConnIdle))
		query, err := readDNS(conn, maxDNSQuery)
		if err != nil || !isQuery(query) {
			return
		}
		select {
		case n.queries <- struct{}{}: // who asks by a connection can wait
		case <-n.ctx.Done():
			return
		}
		answer := n.answer("tcp", query)
		<-n.queries
		_ = conn.SetDeadline(time.Now().Add(dnsConnIdle))
		if writeDNS(conn, answer) != nil {
			return
		}
	}
}

func (n *network) admitQuery(proto Proto, src netip.AddrPort) bool {
	src = netip.AddrPortFrom(src.Addr().Unmap(), src.Port())
	return n.admit(Flow{VM: n.vm, Proto: proto, Src: src, Dst: netip.AddrPortFrom(gatewayIP, DNSPort)})
}

// answer asks the host's resolvers.
func (n *network) answer(network string, query []byte) []byte {
	if !n.files.take() {
		return serverFailure(query)
	}
	defer n.files.give()
	a, err := n.names.Resolve(n.ctx, network, query)
	if err != nil {
		n.log.Debug("a question without an answer", logkey.Err, err)
		return serverFailure(query)
	}
	return a
}
