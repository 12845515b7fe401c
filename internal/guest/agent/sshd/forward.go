package sshd

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"banger/internal/guest/agent/proc"
)

// dialTimeout bounds one attempt to connect for the client.
const dialTimeout = 30 * time.Second

// privileged is the first port that anybody may listen on.
const privileged = 1024

// directTCP connects to an address as the guest sees it.
func (c *connection) directTCP(n ssh.NewChannel) {
	var v struct {
		Host     string
		Port     uint32
		FromHost string
		FromPort uint32
	}
	if ssh.Unmarshal(n.ExtraData(), &v) != nil || v.Port == 0 || v.Port > 65535 {
		_ = n.Reject(ssh.ConnectionFailed, "no such port")
		return
	}
	d := net.Dialer{Timeout: dialTimeout}
	conn, err := d.DialContext(c.ctx, "tcp", net.JoinHostPort(v.Host, strconv.Itoa(int(v.Port))))
	c.direct(n, conn, err)
}

// directUnix connects to a unix socket with the user's rights.
func (c *connection) directUnix(n ssh.NewChannel) {
	var v struct {
		Path     string
		Reserved string
		Zero     uint32
	}
	if ssh.Unmarshal(n.ExtraData(), &v) != nil || v.Path == "" {
		_ = n.Reject(ssh.ConnectionFailed, "no such socket")
		return
	}
	var conn net.Conn
	err := proc.As(&c.user, func() (err error) {
		d := net.Dialer{Timeout: dialTimeout}
		conn, err = d.DialContext(c.ctx, "unix", c.absolute(v.Path))
		return err
	})
	c.direct(n, conn, err)
}

// absolute resolves a path of the client's as a session would.
func (c *connection) absolute(p string) string {
	if path.IsAbs(p) {
		return p
	}
	return path.Join(c.user.Home, p)
}

func (c *connection) direct(n ssh.NewChannel, conn net.Conn, err error) {
	if err != nil {
		_ = n.Reject(ssh.ConnectionFailed, reason(err))
		return
	}
	ch, requests, err := n.Accept()
	if err != nil {
		_ = conn.Close()
		return
	}
	c.join(ch, requests, conn)
}

// reason is why a connection was not made, without what the client knows already.
func reason(err error) string {
	var op *net.OpError
	if errors.As(err, &op) {
		err = op.Err
	}
	var call *os.SyscallError
	if errors.As(err, &call) {
		err = call.Err
	}
	return err.Error()
}

// join copies both ways between a channel and a connection until both directions have ended,
// and closes both.
func (c *connection) join(ch ssh.Channel, requests <-chan *ssh.Request, conn net.Conn) {
	defer context.AfterFunc(c.ctx, func() { _ = conn.Close() })()
	var both sync.WaitGroup
	sent := make(chan struct{})
	both.Go(func() {
		defer close(sent)
		_, err := copyBytes(conn, ch)
		if w, ok := conn.(interface{ CloseWrite() error }); ok {
			_ = w.CloseWrite()
		}
		if err != nil {
			_, _ = copyBytes(io.Discard, ch) // the other direction may go on
		}
	})
	both.Go(func() {
		_, _ = copyBytes(ch, conn)
		_ = ch.CloseWrite()
	})
	c.wg.Go(func() {
		for r := range requests {
			if r.WantReply {
				_ = r.Reply(false, nil)
			}
		}
		// The client has closed the channel, and takes nothing more.
		<-sent
		_ = conn.Close()
	})
	both.Wait()
	_ = ch.Close()
	_ = conn.Close()
}

var copyBuffers = sync.Pool{New: func() any { b := make([]byte, 64<<10); return &b }}

// copyBytes is io.Copy with a buffer that is used again, and none that either end brings.
func copyBytes(dst io.Writer, src io.Reader) (int64, error) {
	b := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(b)
	return io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, *b)
}

// listener is an address or a socket of the guest that the client listens on.
type listener struct {
	all   []net.Listener
	owner *proc.User // who the socket's file belongs to; nil: there is none
}

func (l *listener) close() {
	shut := func() error {
		for _, one := range l.all {
			_ = one.Close()
		}
		return nil
	}
	if l.owner == nil {
		_ = shut()
		return
	}
	_ = proc.As(l.owner, shut) // which removes the file
}

// listenTCP listens on an address of the guest for the client. Its answer is the port, where
// the client left that open.
func (c *connection) listenTCP(payload []byte) (ok bool, answer []byte) {
	var v struct {
		Addr string
		Port uint32
	}
	if ssh.Unmarshal(payload, &v) != nil || v.Port > 65535 || c.full() {
		return false, nil
	}
	if v.Port > 0 && v.Port < privileged && c.user.UID != 0 {
		return false, nil
	}
	all, port, err := listenAddr(v.Addr, int(v.Port))
	if err != nil {
		c.log.Debug("listen for an SSH client", "addr", v.Addr, "port", v.Port, "err", err)
		return false, nil
	}
	kept := c.keep(tcpKey(v.Addr, uint32(port)), &listener{all: all}, func(from net.Addr) (string, []byte) {
		host, service, _ := net.SplitHostPort(from.String())
		n, _ := strconv.Atoi(service)
		return "forwarded-tcpip", ssh.Marshal(struct {
			Addr     string
			Port     uint32
			FromHost string
			FromPort uint32
		}{v.Addr, uint32(port), host, uint32(n)})
	})
	if !kept {
		return false, nil
	}
	if v.Port == 0 {
		answer = ssh.Marshal(struct{ Port uint32 }{uint32(port)})
	}
	return true, answer
}

// listenAddr listens as RFC 4254 has it: "" is everywhere, "localhost" both loopback
// addresses, of which one may be missing. Port 0 is one that is free on all of them.
func listenAddr(addr string, port int) (all []net.Listener, got int, err error) {
	hosts := []string{addr}
	switch addr {
	case "", "*":
		hosts = []string{""}
	case "localhost":
		hosts = []string{"127.0.0.1", "::1"}
	}
	const tries = 20 // of a port that another program has on one of two addresses
	for range tries {
		if all, got, err = listenAll(hosts, port); port != 0 || !errors.Is(err, unix.EADDRINUSE) {
			break
		}
	}
	return all, got, err
}

// listenAll listens on those of several addresses that there are. Of one that another program
// has it fails: half of all connections would go there.
func listenAll(hosts []string, port int) (all []net.Listener, got int, err error) {
	for _, host := range hosts {
		l, lerr := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(port)))
		if lerr != nil {
			err = errors.Join(err, lerr)
			continue
		}
		all = append(all, l)
		port = l.Addr().(*net.TCPAddr).Port
	}
	if len(all) > 0 && !errors.Is(err, unix.EADDRINUSE) {
		return all, port, nil
	}
	for _, l := range all {
		_ = l.Close()
	}
	return nil, 0, err
}

func tcpKey(addr string, port uint32) string {
	return "tcp " + addr + " " + strconv.Itoa(int(port))
}

func (c *connection) cancelTCP(payload []byte) bool {
	var v struct {
		Addr string
		Port uint32
	}
	return ssh.Unmarshal(payload, &v) == nil && c.drop(tcpKey(v.Addr, v.Port))
}

// listenUnix listens on a unix socket with the user's rights; the socket is the user's.
func (c *connection) listenUnix(payload []byte) bool {
	var v struct{ Path string }
	if ssh.Unmarshal(payload, &v) != nil || v.Path == "" || c.full() {
		return false
	}
	var l net.Listener
	err := proc.As(&c.user, func() (err error) {
		l, err = listenSocket(c.absolute(v.Path))
		return err
	})
	if err != nil {
		c.log.Debug("listen for an SSH client", "socket", v.Path, "err", err)
		return false
	}
	return c.keep("unix "+v.Path, &listener{all: []net.Listener{l}, owner: &c.user}, func(net.Addr) (string, []byte) {
		return "forwarded-streamlocal@openssh.com", ssh.Marshal(struct{ Path, Reserved string }{v.Path, ""})
	})
}

// listenSocket listens on a socket that only its user may connect to. One that nobody listens
// on any more, as a client that was cut off leaves it, is replaced.
func listenSocket(name string) (net.Listener, error) {
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var mode error
		// Before it has a name: the file begins with this mode.
		err := raw.Control(func(fd uintptr) { mode = unix.Fchmod(int(fd), 0o600) })
		return errors.Join(err, mode)
	}}
	l, err := config.Listen(context.Background(), "unix", name)
	if !errors.Is(err, unix.EADDRINUSE) {
		return l, err
	}
	conn, derr := net.DialTimeout("unix", name, dialTimeout)
	if derr == nil {
		_ = conn.Close()
	}
	if !errors.Is(derr, unix.ECONNREFUSED) {
		return nil, err
	}
	if info, serr := os.Lstat(name); serr != nil || info.Mode()&os.ModeSocket == 0 || os.Remove(name) != nil {
		return nil, err
	}
	return config.Listen(context.Background(), "unix", name)
}

func (c *connection) cancelUnix(payload []byte) bool {
	var v struct{ Path string }
	return ssh.Unmarshal(payload, &v) == nil && c.drop("unix "+v.Path)
}

// full reports whether the client listens on as much as it may.
func (c *connection) full() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.listeners) >= maxListeners
}

// keep serves a listener until it is dropped: of each connection to it the client is told
// with the channel that describe names.
func (c *connection) keep(key string, l *listener, describe func(from net.Addr) (kind string, payload []byte)) bool {
	c.mu.Lock()
	_, taken := c.listeners[key]
	gone := c.ctx.Err() != nil
	if !taken && !gone {
		c.listeners[key] = l
	}
	c.mu.Unlock()
	if taken || gone {
		l.close()
		return false
	}
	for _, one := range l.all {
		c.wg.Go(func() { c.accept(one, describe) })
	}
	return true
}

func (c *connection) accept(l net.Listener, describe func(net.Addr) (string, []byte)) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		if !c.take() {
			_ = conn.Close()
			continue
		}
		c.wg.Go(func() {
			defer c.release()
			kind, payload := describe(conn.RemoteAddr())
			ch, requests, err := c.conn.OpenChannel(kind, payload)
			if err != nil {
				_ = conn.Close()
				return
			}
			c.join(ch, requests, conn)
		})
	}
}

func (c *connection) drop(key string) bool {
	c.mu.Lock()
	l := c.listeners[key]
	delete(c.listeners, key)
	c.mu.Unlock()
	if l == nil {
		return false
	}
	l.close()
	return true
}

func (c *connection) closeListeners() {
	c.mu.Lock()
	all := c.listeners
	c.listeners = nil
	c.mu.Unlock()
	for _, l := range all {
		l.close()
	}
}
