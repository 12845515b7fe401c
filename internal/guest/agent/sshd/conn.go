package sshd

import (
	"context"
	"sync"

	"golang.org/x/crypto/ssh"

	"banger/internal/guest/agent/proc"
)

// Bounds of one connection.
const (
	maxChannels  = 512 // open at a time
	maxListeners = 128
)

// connection is a client that has logged in.
type connection struct {
	*Server
	conn  *ssh.ServerConn
	login string
	user  proc.User
	ctx   context.Context // ends with the connection
	wg    sync.WaitGroup  // all that goes on
	slots chan struct{}   // one token per channel

	agent agentSocket

	mu        sync.Mutex // guards what follows
	listeners map[string]*listener
	sealed    bool // the client wants no more sessions
}

func newConnection(s *Server, conn *ssh.ServerConn, user proc.User) *connection {
	return &connection{
		Server: s, conn: conn, login: conn.User(), user: user,
		slots: make(chan struct{}, maxChannels), listeners: make(map[string]*listener),
	}
}

// serve answers the client until it is gone, and waits for the end of all it began.
func (c *connection) serve(channels <-chan ssh.NewChannel, requests <-chan *ssh.Request) {
	ctx, cancel := context.WithCancel(context.Background())
	c.ctx = ctx
	c.wg.Go(func() {
		for r := range requests {
			c.global(r)
		}
	})
	for n := range channels {
		c.open(n)
	}
	cancel()
	_ = c.conn.Close()
	c.closeListeners()
	c.agent.close(c)
	c.wg.Wait()
}

// open answers a request for a channel. It must not wait for anything, as nothing else of the
// connection is heard meanwhile.
func (c *connection) open(n ssh.NewChannel) {
	var serve func(ssh.NewChannel)
	switch n.ChannelType() {
	case "session":
		c.mu.Lock()
		sealed := c.sealed
		c.mu.Unlock()
		if sealed {
			_ = n.Reject(ssh.Prohibited, "no more sessions, as was asked for")
			return
		}
		serve = c.session
	case "direct-tcpip":
		serve = c.directTCP
	case "direct-streamlocal@openssh.com":
		serve = c.directUnix
	default:
		_ = n.Reject(ssh.UnknownChannelType, "channels of this type are not served")
		return
	}
	if !c.take() {
		_ = n.Reject(ssh.ResourceShortage, "too many channels are open")
		return
	}
	c.wg.Go(func() {
		defer c.release()
		serve(n)
	})
}

// take sets a channel aside; release gives it back.
func (c *connection) take() bool {
	select {
	case c.slots <- struct{}{}:
		return true
	default:
		return false
	}
}

func (c *connection) release() { <-c.slots }

// global answers a request that belongs to no channel.
func (c *connection) global(r *ssh.Request) {
	ok, answer := false, []byte(nil)
	switch r.Type {
	case "tcpip-forward":
		ok, answer = c.listenTCP(r.Payload)
	case "cancel-tcpip-forward":
		ok = c.cancelTCP(r.Payload)
	case "streamlocal-forward@openssh.com":
		ok = c.listenUnix(r.Payload)
	case "cancel-streamlocal-forward@openssh.com":
		ok = c.cancelUnix(r.Payload)
	case "no-more-sessions@openssh.com":
		c.mu.Lock()
		c.sealed = true
		c.mu.Unlock()
		ok = true
	case "keepalive@openssh.com":
		ok = true
	}
	if r.WantReply {
		_ = r.Reply(ok, answer)
	}
}
