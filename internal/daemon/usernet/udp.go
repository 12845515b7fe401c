package usernet

import (
	"errors"
	"net"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"

	"banger/internal/logkey"
)

// acceptUDP handles the first datagram between two ports, on the goroutine that
// reads the link. False makes the stack answer "port unreachable".
func (n *network) acceptUDP(r *udp.ForwarderRequest) bool {
	f := n.flow(UDP, r.ID())
	if !n.admit(f) || f.Dst.Addr() == gatewayIP || !n.udpFlows.take() {
		return false
	}
	g := &udpFlow{net: n, flow: f}
	ep, err := r.CreateEndpoint(&g.wq)
	if err != nil {
		n.udpFlows.give()
		return false
	}
	g.ep = ep
	started := n.start(func() {
		defer n.udpFlows.give()
		defer ep.Close()
		g.run()
	})
	if !started {
		ep.Close()
		n.udpFlows.give()
	}
	return true
}

// udpFlow carries datagrams between one port of the guest and one of the outside.
type udpFlow struct {
	net  *network
	flow Flow
	wq   waiter.Queue
	ep   tcpip.Endpoint
	last atomic.Int64 // when the last datagram passed, in Unix nanoseconds
}

func (u *udpFlow) run() {
	c, err := u.net.dial(u.flow)
	if err != nil {
		u.net.log.Debug("no UDP flow", logkey.Dst, u.flow.Dst, logkey.Err, err)
		return
	}
	defer u.net.files.give()
	conn := c.(*net.UDPConn)
	defer func() { _ = conn.Close() }()
	u.last.Store(time.Now().UnixNano())
	done := make(chan struct{})
	u.net.flows.Go(func() {
		defer close(done)
		u.toGuest(conn)
	})
	u.toHost(conn, done)
	_ = conn.Close()
	<-done
}

// toHost sends the guest's datagrams until the flow is idle or the network closes.
func (u *udpFlow) toHost(conn *net.UDPConn, done <-chan struct{}) {
	entry, readable := waiter.NewChannelEntry(waiter.ReadableEvents)
	u.wq.EventRegister(&entry)
	defer u.wq.EventUnregister(&entry)
	for {
		buf := copyBuffers.Get().(*[]byte)
		w := tcpip.SliceWriter(*buf)
		res, err := u.ep.Read(&w, tcpip.ReadOptions{})
		if err == nil {
			u.last.Store(time.Now().UnixNano())
			// What cannot be sent is lost, as on any network; an error that an
			// earlier datagram met says nothing about this one.
			_, _ = conn.Write((*buf)[:res.Count])
		}
		copyBuffers.Put(buf)
		switch err.(type) {
		case nil:
			continue
		case *tcpip.ErrWouldBlock:
		default:
			return
		}
		select {
		case <-readable:
		case <-done:
			return
		case <-u.net.ctx.Done():
			return
		}
	}
}

// toGuest delivers answers, and watches over the idle time.
func (u *udpFlow) toGuest(conn *net.UDPConn) {
	in, err := newWaitingReader(conn)
	if err != nil {
		return
	}
	in.packet = true
	idle := u.net.limits.UDPIdle
	_ = conn.SetReadDeadline(time.Now().Add(idle))
	for {
		buf, size, err := in.read()
		if err == nil {
			u.last.Store(time.Now().UnixNano())
			_, _ = u.ep.Write(&payload{b: (*buf)[:size]}, tcpip.WriteOptions{})
		}
		if buf != nil {
			copyBuffers.Put(buf)
		}
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			last := time.Unix(0, u.last.Load())
			if time.Since(last) >= idle {
				return
			}
			_ = conn.SetReadDeadline(last.Add(idle))
		case errors.Is(err, net.ErrClosed):
			return
		case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ENETUNREACH):
			// An earlier datagram was turned away; the flow may still come to life.
		case err != nil:
			return
		}
	}
}
