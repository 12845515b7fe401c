package serve

import (
	"context"
	"io"
	"net"
	"path"
	"time"

	"banger/internal/guest"
	"banger/internal/guest/agent/proc"
	"banger/internal/guest/agent/sftpd"
	"banger/internal/guest/agent/sshd"
)

// ssh turns the stream into a connection to an SSH server.
func (s *Server) ssh(ctx context.Context, conn net.Conn, r *guest.FrameReader, w *guest.FrameWriter, q *guest.SSH) error {
	server, err := sshd.New(q, sshHost{s}, s.Log)
	if err != nil {
		return err
	}
	if err := w.Control(guest.Control{Type: guest.ControlStarted}); err != nil {
		return nil // the host is gone
	}
	server.Serve(ctx, r.Plain(conn))
	return nil
}

// sshHost starts the commands of SSH sessions in the way that exec does.
type sshHost struct{ s *Server }

// User implements sshd.Host.
func (h sshHost) User(login string) (proc.User, error) { return h.s.Users.Lookup(h.spec(login)) }

// spec is how the user of a login is called.
func (h sshHost) spec(login string) string {
	if login != guest.SSHDefaultUser {
		return login
	}
	return h.s.configured().User
}

// Start implements sshd.Host.
func (h sshHost) Start(c sshd.Command) (sshd.Process, error) {
	e := guest.Exec{User: h.spec(c.Login), Env: c.Env, TTY: c.TTY != nil, Stdin: true}
	if c.SFTP {
		e.Args = []string{"/proc/self/exe"}
	}
	user, err := h.s.Users.Lookup(e.User)
	if err != nil {
		return nil, err
	}
	// As with any sshd: clients take relative paths to start there.
	if e.Workdir = user.Home; !isDir(e.Workdir) {
		e.Workdir = "/"
	}
	var tty *proc.Terminal
	if c.TTY != nil {
		if tty, err = proc.OpenTerminal(&user, c.TTY.Rows, c.TTY.Cols); err != nil {
			return nil, err
		}
		setModes(tty.Slave, c.TTY.Modes)
		e.Env = append(e.Env, "SSH_TTY="+tty.Slave.Name())
	}
	ex, err := h.start(c, &e, tty)
	if err != nil {
		return nil, err
	}
	return &sshProcess{ex}, nil
}

// start closes the terminal, if there is one, when it fails.
func (h sshHost) start(c sshd.Command, e *guest.Exec, tty *proc.Terminal) (*execution, error) {
	spec, err := h.s.command(e)
	if err != nil {
		if tty != nil {
			tty.Close()
		}
		return nil, err
	}
	switch {
	case c.SFTP:
		spec.Args = []string{sftpd.Name}
	case c.Line != "":
		spec.Args = []string{path.Base(spec.Path), "-c", c.Line}
	}
	to := sshSink{c.Stdout, c.Stderr}
	if tty != nil {
		return h.s.startOn(tty, spec, e, to)
	}
	return h.s.start(spec, e, to)
}

// sshSink passes a command's output on without frames.
type sshSink struct{ stdout, stderr io.Writer }

func (s sshSink) WriteReserved(channel byte, buf []byte) error {
	to := s.stdout
	if channel == guest.ChanStderr {
		to = s.stderr
	}
	_, err := to.Write(buf[guest.FrameHeader:])
	return err
}

// sshProcess is the command of a session. Its input is held back by the channel's window,
// so it needs none of our own.
type sshProcess struct{ *execution }

func (p *sshProcess) Begin() { p.begin() }

func (p *sshProcess) Stdin() io.WriteCloser { return sshInput{p.execution} }

type sshInput struct{ *execution }

func (i sshInput) Write(b []byte) (int, error) { return i.input.f.Write(b) }

// Close ends the input. On a terminal that is what its user would type.
func (i sshInput) Close() error {
	if i.tty == nil {
		return i.input.f.Close()
	}
	_, err := i.input.f.Write([]byte{endOfInput})
	return err
}

func (p *sshProcess) Resize(rows, cols uint16) {
	_ = p.control(guest.Control{Type: guest.ControlResize, Rows: rows, Cols: cols})
}

func (p *sshProcess) Signal(number int) {
	_ = p.control(guest.Control{Type: guest.ControlSignal, Number: number})
}

// Wait waits for the command, and with a terminal for its output as well. Without one, what
// the command left behind may go on writing, as with any sshd: programs count on that.
func (p *sshProcess) Wait() (proc.Status, error) {
	if p.tty != nil {
		return p.wait()
	}
	return p.process.Wait()
}

func (p *sshProcess) Drain() { p.readers.Wait() }

// Hangup closes the streams and sends no signal, but for the one that the kernel sends to who
// loses a terminal: programs that a session starts to outlive it rely on being left alone.
func (p *sshProcess) Hangup() {
	_ = p.input.f.SetWriteDeadline(time.Unix(1, 0))
	if p.tty != nil {
		_ = p.tty.Master.Close()
		return
	}
	for _, o := range p.outputs {
		_ = o.f.SetReadDeadline(time.Unix(1, 0))
	}
}
