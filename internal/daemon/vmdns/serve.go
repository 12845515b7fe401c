package vmdns

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
	"banger/internal/logkey"
)

const (
	// maxReaders is how many questions by UDP one address answers at once.
	maxReaders = 4
	// connIdle is how long a connection may take for one question or answer.
	connIdle = 10 * time.Second
	// errorPause is the time between two tries of what the kernel refuses.
	errorPause = time.Second
)

// server answers on one address.
type server struct {
	Listener
	svc  *Service
	addr netip.AddrPort
	udp  *net.UDPConn
	tcp  *net.TCPListener
	log  *slog.Logger

	ctx    context.Context // ends with the server
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

func newServer(s *Service, l Listener, udp *net.UDPConn, tcp *net.TCPListener) *server {
	addr := udp.LocalAddr().(*net.UDPAddr).AddrPort()
	addr = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
	srv := &server{Listener: l, svc: s, addr: addr, udp: udp, tcp: tcp,
		log: s.Log.With(logkey.DNS, addr)}
	srv.ctx, srv.cancel = context.WithCancel(context.Background())
	return srv
}

func (srv *server) start() {
	for range min(runtime.NumCPU(), maxReaders) {
		srv.wg.Go(srv.serveUDP)
	}
	srv.wg.Go(srv.serveTCP)
}

// close ends everything that start started, and waits for it.
func (srv *server) close() error {
	srv.cancel()
	err := errors.Join(srv.udp.Close(), srv.tcp.Close())
	srv.wg.Wait()
	return err
}

// again waits before what failed with err is tried once more; false when the
// server is closed.
func (srv *server) again(err error) bool {
	if srv.ctx.Err() != nil {
		return false
	}
	srv.log.Warn("take a question", logkey.Err, err)
	pause := time.NewTimer(errorPause)
	defer pause.Stop()
	select {
	case <-pause.C:
		return true
	case <-srv.ctx.Done():
		return false
	}
}

// serveUDP answers one packet after another. There are several of it: so many
// questions are in work at once and no more, the others wait in the kernel, which
// drops them when they are too many.
func (srv *server) serveUDP() {
	in, out := make([]byte, maxQuery+1), make([]byte, maxUDP)
	for {
		n, from, err := srv.udp.ReadFromUDPAddrPort(in)
		if err != nil {
			if srv.again(err) {
				continue
			}
			return
		}
		ip := from.Addr().Unmap()
		guest := srv.svc.zone.Load().counted(ip)
		if !srv.svc.limit.question(guest, time.Now()) {
			continue
		}
		answer, others := srv.respond(ip, byUDP, in[:n], out)
		switch {
		case answer == nil:
		case others:
			if !srv.svc.limit.ask(guest) {
				continue // the asker asks again
			}
			query, refusal := bytes.Clone(in[:n]), bytes.Clone(answer)
			srv.wg.Go(func() {
				defer srv.svc.limit.answered(guest)
				_, _ = srv.udp.WriteToUDPAddrPort(srv.ask("udp", query, refusal), from)
			})
		default:
			// An asker that has gone is no error of ours.
			_, _ = srv.udp.WriteToUDPAddrPort(answer, from)
		}
	}
}

// respond answers a packet as its sender is to see the VMs, or says that others are to be
// asked instead of refusing it. This host sees all VMs; it asks at an address of its own
// from that address. nil: there is no answer.
func (srv *server) respond(from netip.Addr, via transport, packet, out []byte) (answer []byte, others bool) {
	z := srv.svc.zone.Load()
	who, known := asker{view: z.all}, true
	if srv.Guests.IsValid() && from != srv.addr.Addr() {
		who, known = z.askedBy(from)
	}
	answer = z.respond(who.view, via, packet, out)
	if answer == nil || srv.Forward == nil || !srv.Guests.Contains(from) || answer[3]&0xf != dns.RcodeRefused {
		return answer, false
	}
	if !known {
		return nil, false
	}
	return answer, !who.isolated
}

// ask puts a question to others. When they have no answer, the refusal becomes that.
func (srv *server) ask(network string, query, refusal []byte) []byte {
	answer, err := srv.Forward(srv.ctx, network, query)
	if err != nil {
		srv.log.Debug("a question without an answer", logkey.Err, err)
		refusal[3] = refusal[3]&0xf0 | dns.RcodeServerFailure
		return refusal
	}
	return answer
}

func (srv *server) serveTCP() {
	for {
		conn, err := srv.tcp.AcceptTCP()
		if err != nil {
			if srv.again(err) {
				continue
			}
			return
		}
		from := conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
		guest := srv.svc.zone.Load().counted(from)
		if !srv.svc.limit.connect(guest) {
			_ = conn.Close()
			continue
		}
		srv.wg.Go(func() {
			defer srv.svc.limit.disconnect(guest)
			srv.serveConn(conn, from, guest)
		})
	}
}

// serveConn answers the questions of a connection, in their order. guest is the address
// that who asks is counted by.
func (srv *server) serveConn(conn *net.TCPConn, from, guest netip.Addr) {
	stop := context.AfterFunc(srv.ctx, func() { _ = conn.Close() })
	defer func() {
		if stop() {
			_ = conn.Close()
		}
	}()
	var size [2]byte
	in, out := make([]byte, maxQuery), make([]byte, maxUDP)
	for {
		_ = conn.SetDeadline(time.Now().Add(connIdle))
		if _, err := io.ReadFull(conn, size[:]); err != nil {
			return
		}
		n := int(binary.BigEndian.Uint16(size[:]))
		if n > len(in) {
			return
		}
		if _, err := io.ReadFull(conn, in[:n]); err != nil || !srv.svc.limit.question(guest, time.Now()) {
			return
		}
		answer, others := srv.respond(from, byTCP, in[:n], out)
		if answer == nil {
			return
		}
		if others {
			if !srv.svc.limit.ask(guest) {
				return
			}
			answer = srv.ask("tcp", in[:n], answer)
			srv.svc.limit.answered(guest)
			_ = conn.SetDeadline(time.Now().Add(connIdle))
		}
		// In one write: a length that travels alone costs the asker a wait.
		if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...)); err != nil {
			return
		}
	}
}

// bind makes the sockets for an address; nobody is answered yet.
func bind(addr netip.AddrPort) (*net.UDPConn, *net.TCPListener, error) {
	addr = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
	switch ip := addr.Addr(); {
	case !addr.IsValid():
		return nil, nil, errdefs.Invalid("answer for .%s: no address is given", Domain)
	case ip.IsUnspecified() || ip.IsMulticast():
		// From the wildcard address answers could leave by another address than
		// was asked, and whoever reaches the host could ask.
		return nil, nil, errdefs.Invalid("answer for .%s on %s: that is not the address of one interface", Domain, addr).
			WithHint(loopbackHint)
	}
	// With port 0 the kernel knows of a free TCP port, not of one that is free for
	// both; the next one probably is.
	for range 8 {
		tcp, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(addr))
		if err != nil {
			return nil, nil, bindError(addr, err)
		}
		udp, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(tcp.Addr().(*net.TCPAddr).AddrPort()))
		if err == nil {
			return udp, tcp, nil
		}
		_ = tcp.Close()
		if addr.Port() != 0 {
			return nil, nil, bindError(addr, err)
		}
	}
	return nil, nil, errdefs.Unavailable("answer for .%s on %s: no port is free for both UDP and TCP", Domain, addr.Addr())
}

const loopbackHint = "use a loopback address, for example 127.0.0.42:53"

// bindError says what an address lacks that cannot be answered on.
func bindError(addr netip.AddrPort, err error) error {
	const doing = "answer for ." + Domain + " on %s: "
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return errdefs.Precondition(doing+"the port is taken: %w", addr, err).
			WithHint("see who has it: ss -lntup 'sport = :%d'; or choose another address or port: dns.listen in the configuration", addr.Port())
	case errors.Is(err, fs.ErrPermission):
		return errdefs.Permission(doing+"%w", addr, err).
			WithHint("ports below 1024 are root's: choose a higher one, dns.listen in the configuration")
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return errdefs.Unavailable(doing+"this host does not have that address: %w", addr, err).WithHint(loopbackHint)
	}
	return errdefs.Unavailable(doing+"%w", addr, err)
}
