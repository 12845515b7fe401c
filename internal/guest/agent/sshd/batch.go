package sshd

import (
	"net"
	"sync"
	"time"
)

// maxBatch is how much waits to be written at most, in bytes; it takes one more write.
const maxBatch = 256 << 10

// closeTimeout is how long the last bytes may take.
const closeTimeout = time.Second

// past is a deadline that has passed.
var past = time.Unix(1, 0)

// batch writes to a connection by a goroutine of its own: what comes while that is busy goes
// in one piece afterwards. SSH writes each of its packets in two or three, and each of those
// would cost a trip to the host.
type batch struct {
	net.Conn
	flushed chan struct{} // closed when the goroutine has ended

	mu      sync.Mutex // guards what follows
	changed sync.Cond
	waiting []byte
	err     error // writing ended with it
	closed  bool
}

func newBatch(conn net.Conn) *batch {
	b := &batch{Conn: conn, flushed: make(chan struct{})}
	b.changed.L = &b.mu
	go b.flush()
	return b
}

// Write takes over a copy of p.
func (b *batch) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.waiting) > 0 && len(b.waiting)+len(p) > maxBatch && b.err == nil && !b.closed {
		b.changed.Wait()
	}
	switch {
	case b.err != nil:
		return 0, b.err
	case b.closed:
		return 0, net.ErrClosed
	}
	b.waiting = append(b.waiting, p...)
	b.changed.Broadcast()
	return len(p), nil
}

func (b *batch) flush() {
	defer close(b.flushed)
	var spare []byte
	b.mu.Lock()
	defer b.mu.Unlock()
	for {
		for len(b.waiting) == 0 && !b.closed {
			b.changed.Wait()
		}
		if len(b.waiting) == 0 {
			return
		}
		out := b.waiting
		b.waiting = spare[:0]
		b.changed.Broadcast()
		b.mu.Unlock()
		_, err := b.Conn.Write(out)
		b.mu.Lock()
		if err != nil {
			b.err, b.waiting = err, nil
			b.changed.Broadcast()
			return
		}
		spare = out
	}
}

// Close writes what waits, if that is quick, and closes the connection.
func (b *batch) Close() error {
	b.mu.Lock()
	was := b.closed
	b.closed = true
	b.changed.Broadcast()
	b.mu.Unlock()
	if was {
		<-b.flushed
		return nil
	}
	_ = b.Conn.SetWriteDeadline(time.Now().Add(closeTimeout))
	<-b.flushed
	err := b.Conn.Close()
	_ = b.Conn.SetReadDeadline(past) // for readers of a closed stream whose peer keeps silent
	return err
}
