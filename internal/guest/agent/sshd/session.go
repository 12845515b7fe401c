package sshd

import (
	"errors"
	"io"
	"math"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"banger/internal/errdefs"
	"banger/internal/guest"
)

// maxEnv bounds what a session is told of its environment: variables, and bytes of each.
const (
	maxEnv      = 1024
	maxEnvEntry = 128 << 10
)

// exitFailed is the status of a command that could not be started for reasons that a shell
// has no number for; ssh itself ends with it, too.
const exitFailed = 255

// session is a channel in which a command runs.
type session struct {
	*connection
	ch      ssh.Channel
	env     []string
	term    string
	tty     *TTY
	agent   bool
	process Process // nil until it is started
	ended   atomic.Bool
	over    sync.WaitGroup
}

// session serves a channel of type session to its end.
func (c *connection) session(n ssh.NewChannel) {
	ch, requests, err := n.Accept()
	if err != nil {
		return
	}
	s := &session{connection: c, ch: ch}
	for r := range requests {
		ok, then := s.request(r)
		if r.WantReply {
			_ = r.Reply(ok, nil)
		}
		if then != nil {
			then()
		}
	}
	// The client has closed the channel, or is gone.
	if s.process != nil {
		s.process.Hangup()
	}
	s.over.Wait()
	_ = ch.Close()
}

// request obeys one request; then is what follows the answer to it.
func (s *session) request(r *ssh.Request) (ok bool, then func()) {
	switch r.Type {
	case "env":
		var v struct{ Name, Value string }
		if ssh.Unmarshal(r.Payload, &v) != nil || s.process != nil {
			return false, nil
		}
		return s.setenv(v.Name, v.Value), nil
	case "pty-req":
		return s.terminal(r.Payload), nil
	case "auth-agent-req@openssh.com":
		s.agent = true
		return true, nil
	case "shell":
		return s.start(Command{})
	case "exec":
		var v struct{ Line string }
		if ssh.Unmarshal(r.Payload, &v) != nil || strings.IndexByte(v.Line, 0) >= 0 {
			return false, nil
		}
		return s.start(Command{Line: v.Line})
	case "subsystem":
		var v struct{ Name string }
		if ssh.Unmarshal(r.Payload, &v) != nil || v.Name != "sftp" {
			return false, nil
		}
		return s.start(Command{SFTP: true})
	case "window-change":
		var v struct{ Cols, Rows, Width, Height uint32 }
		if ssh.Unmarshal(r.Payload, &v) != nil || s.process == nil || s.tty == nil {
			return false, nil
		}
		s.process.Resize(size(v.Rows), size(v.Cols))
		return true, nil
	case "signal":
		var v struct{ Name string }
		if ssh.Unmarshal(r.Payload, &v) != nil || s.process == nil || s.ended.Load() {
			return false, nil
		}
		number, err := guest.ParseSignal(v.Name)
		if err != nil {
			return false, nil
		}
		s.process.Signal(number)
		return true, nil
	}
	return false, nil
}

// size is a number of rows or columns, as far as the kernel has room for it.
func size(n uint32) uint16 { return uint16(min(n, math.MaxUint16)) }

func (s *session) setenv(name, value string) bool {
	if name == "" || strings.ContainsAny(name, "=\x00") || strings.IndexByte(value, 0) >= 0 ||
		len(s.env) >= maxEnv || len(name)+len(value) > maxEnvEntry {
		return false
	}
	s.env = append(s.env, name+"="+value)
	return true
}

func (s *session) terminal(payload []byte) bool {
	var v struct {
		Term                      string
		Cols, Rows, Width, Height uint32
		Modes                     []byte
	}
	if ssh.Unmarshal(payload, &v) != nil || s.process != nil || strings.IndexByte(v.Term, 0) >= 0 {
		return false
	}
	s.tty = &TTY{Rows: size(v.Rows), Cols: size(v.Cols), Modes: v.Modes}
	s.term = v.Term
	return true
}

// start starts the one command of a session. A command that cannot be started is one that
// says so and ends: the client shows no reason for a request that was refused.
func (s *session) start(c Command) (ok bool, then func()) {
	if s.process != nil {
		return false, nil
	}
	// Programs look for these to know that they are used from afar. The addresses are those
	// that OpenSSH gives where there are none.
	c.Env = append([]string{"SSH_CONNECTION=UNKNOWN 65535 UNKNOWN 65535", "SSH_CLIENT=UNKNOWN 65535 65535"}, s.env...)
	c.Login, c.TTY, c.Stdout, c.Stderr = s.login, s.tty, s.ch, s.ch.Stderr()
	if s.term != "" && s.tty != nil {
		c.Env = append(c.Env, "TERM="+s.term)
	}
	if s.agent {
		path, err := s.connection.agent.open(s.connection)
		if err != nil {
			s.log.Warn("the client's agent is not forwarded", "err", err)
		} else {
			c.Env = append(c.Env, "SSH_AUTH_SOCK="+path)
		}
	}
	p, err := s.host.Start(c)
	if err != nil {
		return true, func() { s.fail(err) }
	}
	s.process = p
	return true, func() {
		p.Begin()
		s.over.Go(s.feed)
		s.over.Go(s.follow)
	}
}

// fail ends a session whose command was not started.
func (s *session) fail(err error) {
	newline := "\n"
	if s.tty != nil {
		newline = "\r\n"
	}
	_, _ = io.WriteString(s.ch.Stderr(), message(err, newline))
	code := uint32(exitFailed)
	switch {
	case errors.Is(err, errdefs.ErrNotFound):
		code = guest.ExitNotFound
	case errors.Is(err, errdefs.ErrPermission):
		code = guest.ExitNotExecutable
	}
	s.exit(code)
	_ = s.ch.Close()
}

func (s *session) exit(code uint32) {
	_, _ = s.ch.SendRequest("exit-status", false, ssh.Marshal(struct{ Code uint32 }{code}))
}

// feed hands the client's input to the command.
func (s *session) feed() {
	in := s.process.Stdin()
	_, err := copyBytes(in, s.ch)
	_ = in.Close()
	if err != nil {
		// The command reads no more; what else comes must not hold up the connection.
		_, _ = copyBytes(io.Discard, s.ch)
	}
}

// follow tells the client how the command ended, and closes the channel when all of its
// output was sent.
func (s *session) follow() {
	status, err := s.process.Wait()
	s.ended.Store(true)
	if err != nil {
		_, _ = io.WriteString(s.ch.Stderr(), message(err, "\n"))
		s.exit(exitFailed)
	} else if name, ok := strings.CutPrefix(unix.SignalName(unix.Signal(status.Signal)), "SIG"); ok {
		_, _ = s.ch.SendRequest("exit-signal", false, ssh.Marshal(struct {
			Name          string
			Core          bool
			Message, Lang string
		}{Name: name}))
	} else {
		s.exit(uint32(status.Code))
	}
	s.process.Drain()
	_ = s.ch.CloseWrite()
	_ = s.ch.Close()
}
