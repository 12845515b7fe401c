package ports

import (
	"context"
	"errors"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"banger/internal/guest"
	"banger/internal/logkey"
	"banger/internal/model"
)

// dialTimeout bounds how long a guest may take to say whether somebody listens.
const dialTimeout = 15 * time.Second

// acceptRetry is the pause after an accept failed: there are no descriptors left, and
// nothing tells when there are.
const acceptRetry = 100 * time.Millisecond

// forwarding is what is forwarded to one VM while it runs. Connections that come
// before the guest is ready wait until it is.
type forwarding struct {
	s     *Service
	vm    string
	slots chan struct{} // one token per connection under way
	ready chan struct{} // closed when the guest answers
	wg    sync.WaitGroup

	mu     sync.Mutex // a leaf (rank 40); guards the fields below
	open   map[model.Port]*forward
	own    map[model.Port]*forward // on the VM's own address
	told   bool                    // ready is closed
	closed bool
}

// forward is one port of it.
type forward struct {
	listener *listener          // nil: it is not listened on
	problem  string             // why
	end      context.CancelFunc // of its connections
}

func newForwarding(s *Service, vmID string) *forwarding {
	return &forwarding{
		s: s, vm: vmID, slots: make(chan struct{}, maxConns), ready: make(chan struct{}),
		open: make(map[model.Port]*forward), own: make(map[model.Port]*forward),
	}
}

// add takes over the listener of a port; nil, with why, for one that is not had.
func (f *forwarding) add(p model.Port, l *listener, why error) { f.enter(f.open, p, l, why) }

func (f *forwarding) addOwn(p model.Port, l *listener) { f.enter(f.own, p, l, nil) }

func (f *forwarding) enter(into map[model.Port]*forward, p model.Port, l *listener, why error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		l.close()
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	fw := &forward{listener: l, end: cancel}
	if why != nil {
		fw.problem = why.Error()
	}
	into[p] = fw
	if l == nil {
		return
	}
	for _, socket := range l.sockets {
		f.wg.Go(func() { f.accept(ctx, socket, p.Guest) })
	}
}

// remove ends the forwarding of a port and its connections.
func (f *forwarding) remove(p model.Port) {
	f.mu.Lock()
	fw, ok := f.open[p]
	if !ok {
		fw = f.own[p]
	}
	delete(f.open, p)
	delete(f.own, p)
	f.mu.Unlock()
	if fw != nil {
		fw.close()
	}
}

func (fw *forward) close() {
	fw.listener.close()
	fw.end()
}

// serve lets connections through to the guest.
func (f *forwarding) serve() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.told {
		f.told = true
		close(f.ready)
	}
}

// close ends all of it and waits until nothing is left.
func (f *forwarding) close() {
	f.mu.Lock()
	f.closed = true
	all := slices.AppendSeq(slices.Collect(maps.Values(f.open)), maps.Values(f.own))
	clear(f.open)
	clear(f.own)
	f.mu.Unlock()
	for _, fw := range all {
		fw.close()
	}
	f.wg.Wait()
}

// ports are those that are forwarded, or should be.
func (f *forwarding) ports() []model.Port {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Collect(maps.Keys(f.open))
}

// ownPorts are those listened on at the VM's own address.
func (f *forwarding) ownPorts() []model.Port {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Collect(maps.Keys(f.own))
}

// problem is why a port is not listened on; empty: it is.
func (f *forwarding) problem(p model.Port) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fw := f.open[p]; fw != nil {
		return fw.problem
	}
	return ""
}

// accept takes connections of one socket, when the guest is ready for them. One more
// than the VM may have waits here, and the others in the kernel's queue.
func (f *forwarding) accept(ctx context.Context, l *net.TCPListener, port uint16) {
	select {
	case <-f.ready:
	case <-ctx.Done():
		return
	}
	for {
		conn, err := l.AcceptTCP()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			f.s.Log.WarnContext(ctx, "accept for a vm", logkey.VM, f.vm, logkey.Err, err)
			select {
			case <-time.After(acceptRetry):
			case <-ctx.Done():
				return
			}
			continue
		}
		select {
		case f.slots <- struct{}{}:
		case <-ctx.Done():
			_ = conn.Close()
			return
		}
		f.wg.Go(func() {
			defer func() { <-f.slots }()
			f.forward(ctx, conn, port)
		})
	}
}

// forward joins a connection to a port of the guest. One that the guest does not take
// is reset, which is what a port without a listener does.
func (f *forwarding) forward(ctx context.Context, conn *net.TCPConn, port uint16) {
	err := f.join(ctx, conn, port)
	_ = conn.SetLinger(0)
	_ = conn.Close()
	if err != nil {
		f.s.Log.DebugContext(ctx, "a forwarded connection ended", logkey.VM, f.vm, logkey.Addr, conn.LocalAddr(), logkey.Err, err)
	}
}

func (f *forwarding) join(ctx context.Context, conn *net.TCPConn, port uint16) error {
	dial, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	agent, err := f.s.Open(dial, f.vm, guest.Request{Kind: guest.KindDial, Dial: &guest.Dial{Port: port}})
	if err != nil {
		return err
	}
	tunnel, err := guest.OpenTunnel(dial, agent)
	if err != nil {
		return err
	}
	return tunnel.Join(ctx, conn)
}
