package vm

import (
	"net"
	"sync"
	"time"
)

// leaseTime is how long a VM that is to vanish with its client may be without one.
// A client that died before it began its command cannot end its VM, and nothing
// else would.
const leaseTime = 2 * time.Minute

// Timer is a *time.Timer, or what a test has in its place.
type Timer interface {
	Stop() bool
	Reset(d time.Duration) bool
}

// lease ends a VM that nobody has had a stream to for a while. The nil lease, of a
// VM that stays, does nothing.
type lease struct {
	mu    sync.Mutex // a leaf; guards the fields below
	users int
	over  bool
	timer Timer
}

func newLease(after func(time.Duration, func()) Timer, expire func()) *lease {
	return &lease{timer: after(leaseTime, expire)}
}

// hold keeps the VM while conn is open.
func (l *lease) hold(conn net.Conn) net.Conn {
	if l == nil {
		return conn
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.users++
	l.timer.Stop()
	return &leased{Conn: conn, lease: l}
}

func (l *lease) release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.users--; l.users == 0 && !l.over {
		l.timer.Reset(leaseTime)
	}
}

// end stops the clock for good.
func (l *lease) end() {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.over = true
	l.timer.Stop()
}

// leased is a stream that keeps its VM.
type leased struct {
	net.Conn
	lease *lease
	once  sync.Once
}

func (c *leased) Close() error {
	c.once.Do(c.lease.release)
	return c.Conn.Close()
}
