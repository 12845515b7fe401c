// Package sshd serves the SSH protocol over a stream of the guest channel: sessions, SFTP,
// and forwarding of TCP ports, unix sockets and the client's agent.
//
// Nothing in the guest or on a network reaches it. Who opened the stream may do anything in
// the VM already; a key is asked for all the same, so that a stream which somebody passes on
// is not open to everybody.
package sshd

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"io"
	"log/slog"
	"net"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/cpu"

	"banger/internal/errdefs"
	"banger/internal/guest"
	"banger/internal/guest/agent/proc"
)

// handshakeTimeout is how long a client may take to log in.
const handshakeTimeout = 2 * time.Minute

// Host is what the server needs of who serves the requests of a host.
type Host interface {
	// User resolves the name that a client logs in by.
	User(login string) (proc.User, error)
	// Start starts a command of a session. Its errors are those of proc, and what is wrong
	// with the user or the image.
	Start(c Command) (Process, error)
}

// Command is what a session is to run.
type Command struct {
	Login  string   // name the client logged in by
	Line   string   // for the user's shell; empty: that itself, as a login shell
	SFTP   bool     // serve SFTP instead
	Env    []string // KEY=VALUE, added to the VM's own
	TTY    *TTY     // nil: without a terminal
	Stdout io.Writer
	Stderr io.Writer // not used with a terminal
}

// TTY is the terminal that a client asks for.
type TTY struct {
	Rows, Cols uint16
	Modes      []byte // as RFC 4254 encodes them
}

// Process is a command under way. What it writes comes once Begin was called.
type Process interface {
	Begin()
	// Stdin takes the command's input; Close is its end.
	Stdin() io.WriteCloser
	Resize(rows, cols uint16)
	// Signal sends a signal to what runs in the terminal's foreground, or to the command and
	// its children.
	Signal(number int)
	// Wait waits for the command's end. It is called once.
	Wait() (proc.Status, error)
	// Drain returns when all of its output was written, by whoever has it still open.
	Drain()
	// Hangup closes the command's streams.
	Hangup()
}

// Server serves one connection.
type Server struct {
	host   Host
	log    *slog.Logger
	config *ssh.ServerConfig
}

// New makes a server with the keys of a request. Its error is of class invalid_argument.
func New(q *guest.SSH, host Host, log *slog.Logger) (*Server, error) {
	if len(q.HostKey) != ed25519.SeedSize {
		return nil, errdefs.Invalid("an SSH request without a host key")
	}
	signer, err := ssh.NewSignerFromSigner(ed25519.NewKeyFromSeed(q.HostKey))
	if err != nil {
		return nil, errdefs.Invalid("use the host key: %w", err)
	}
	var allowed [][]byte
	for _, line := range q.ClientKeys {
		key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
		if err != nil {
			return nil, errdefs.Invalid("read a client's key: %w", err).
				WithHint("write it as ssh-keygen does: TYPE BASE64 COMMENT")
		}
		allowed = append(allowed, key.Marshal())
	}
	s := &Server{host: host, log: log}
	s.config = &ssh.ServerConfig{
		Config:        ssh.Config{Ciphers: ciphers()},
		ServerVersion: "SSH-2.0-banger",
		PublicKeyCallback: func(meta ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
			return s.admit(meta.User(), key.Marshal(), allowed)
		},
	}
	s.config.AddHostKey(signer)
	return s, nil
}

// ciphers are those that a processor which knows AES is quickest at. The client's order
// counts, and most put one first that is slow here.
func ciphers() []string {
	fast := []string{ssh.CipherAES128GCM, ssh.CipherAES256GCM, ssh.CipherAES128CTR, ssh.CipherAES256CTR}
	if cpu.X86.HasAES && cpu.X86.HasPCLMULQDQ {
		return fast
	}
	return append([]string{ssh.CipherChaCha20Poly1305}, fast...)
}

// userKey is where the permissions of a client keep who it is.
type userKey struct{}

// admit says whether a key may log in as login, and tells the client why not where that is
// no secret.
func (s *Server) admit(login string, key []byte, allowed [][]byte) (*ssh.Permissions, error) {
	known := false
	for _, k := range allowed {
		known = known || bytes.Equal(k, key)
	}
	if !known {
		return nil, errors.New("unknown key")
	}
	user, err := s.host.User(login)
	if err != nil {
		return nil, &ssh.BannerError{Err: err, Message: message(err, "\r\n")}
	}
	return &ssh.Permissions{ExtraData: map[any]any{userKey{}: user}}, nil
}

// message is an error for the person at the client.
func message(err error, newline string) string {
	text := "banger: " + err.Error() + newline
	if hint := errdefs.HintOf(err); hint != "" {
		text += "try: " + hint + newline
	}
	return text
}

// Serve serves the client on stream until it leaves or ctx ends, and closes stream. All that
// the client has started is let go of by then.
func (s *Server) Serve(ctx context.Context, stream net.Conn) {
	out := newBatch(stream)
	defer out.Close()
	defer context.AfterFunc(ctx, func() { _ = out.Close() })()
	_ = stream.SetDeadline(time.Now().Add(handshakeTimeout))
	conn, channels, requests, err := ssh.NewServerConn(out, s.config)
	if err != nil {
		s.log.Debug("an SSH client was not let in", "err", err)
		return
	}
	_ = stream.SetDeadline(time.Time{})
	user, _ := conn.Permissions.ExtraData[userKey{}].(proc.User)
	newConnection(s, conn, user).serve(channels, requests)
}
