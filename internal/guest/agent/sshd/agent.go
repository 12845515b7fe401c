package sshd

import (
	"net"
	"os"
	"path/filepath"
	"sync"

	"banger/internal/guest/agent/proc"
)

// agentSocket is where programs of the guest reach the client's agent: one per connection,
// made when the first session wants it.
type agentSocket struct {
	mu       sync.Mutex // guards what follows
	dir      string
	listener *listener
	closed   bool // the connection ends
}

// open returns the path of the socket. It lies in a directory that nobody but the user may
// enter.
func (a *agentSocket) open(c *connection) (string, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	name := func() string { return filepath.Join(a.dir, "agent") }
	switch {
	case a.closed:
		return "", net.ErrClosed
	case a.listener != nil:
		return name(), nil
	}
	err := proc.As(&c.user, func() error {
		var err error
		for _, place := range []string{"/tmp", c.user.Home} { // not every image has the first
			if a.dir, err = os.MkdirTemp(place, "ssh-"); err == nil {
				break
			}
		}
		if err != nil {
			return err
		}
		l, err := listenSocket(name())
		if err != nil {
			_ = os.Remove(a.dir)
			return err
		}
		a.listener = &listener{all: []net.Listener{l}, owner: &c.user}
		return nil
	})
	if err != nil {
		return "", err
	}
	l := a.listener.all[0]
	c.wg.Go(func() {
		c.accept(l, func(net.Addr) (string, []byte) { return "auth-agent@openssh.com", nil })
	})
	return name(), nil
}

// close ends listening and removes what open made, with the user's rights.
func (a *agentSocket) close(c *connection) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closed = true
	if a.listener == nil {
		return
	}
	a.listener.close()
	_ = proc.As(&c.user, func() error { return os.Remove(a.dir) })
}
