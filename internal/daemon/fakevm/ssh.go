package fakevm

import (
	"context"
	"crypto/ed25519"
	"errors"
	"io"
	"net"
	"strings"

	"golang.org/x/crypto/ssh"

	"banger/internal/errdefs"
	"banger/internal/guest"
)

// serveSSH serves commands without a terminal to SSH clients, and nothing else that an agent
// does.
func (v *vm) serveSSH(q *guest.SSH, stream net.Conn, r *guest.FrameReader, w *guest.FrameWriter) {
	config, err := sshConfig(q)
	if err != nil {
		_ = w.Control(guest.ErrorControl(err))
		return
	}
	if w.Control(guest.Control{Type: guest.ControlStarted}) != nil {
		return
	}
	conn, channels, requests, err := ssh.NewServerConn(r.Plain(stream), config)
	if err != nil {
		return
	}
	defer conn.Close()
	go ssh.DiscardRequests(requests)
	for n := range channels {
		if n.ChannelType() != "session" {
			_ = n.Reject(ssh.UnknownChannelType, "a fake VM has no such channels")
			continue
		}
		if ch, requests, err := n.Accept(); err == nil {
			go v.sshSession(conn.User(), ch, requests)
		}
	}
}

func sshConfig(q *guest.SSH) (*ssh.ServerConfig, error) {
	if len(q.HostKey) != ed25519.SeedSize {
		return nil, errdefs.Invalid("an SSH request without a host key")
	}
	signer, err := ssh.NewSignerFromSigner(ed25519.NewKeyFromSeed(q.HostKey))
	if err != nil {
		return nil, errdefs.Invalid("use the host key: %w", err)
	}
	allowed := make(map[string]bool)
	for _, line := range q.ClientKeys {
		key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
		if err != nil {
			return nil, errdefs.Invalid("read a client's key: %w", err)
		}
		allowed[string(key.Marshal())] = true
	}
	config := &ssh.ServerConfig{PublicKeyCallback: func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		if !allowed[string(key.Marshal())] {
			return nil, errors.New("unknown key")
		}
		return &ssh.Permissions{}, nil
	}}
	config.AddHostKey(signer)
	return config, nil
}

// sshSession runs the first command that a session asks for.
func (v *vm) sshSession(user string, ch ssh.Channel, requests <-chan *ssh.Request) {
	defer ch.Close()
	e := guest.Exec{User: user}
	if user == guest.SSHDefaultUser {
		e.User = ""
	}
	for r := range requests {
		var value struct{ Name, Value string }
		var line struct{ Text string }
		run := false
		switch {
		case r.Type == "env" && ssh.Unmarshal(r.Payload, &value) == nil:
			e.Env = append(e.Env, value.Name+"="+value.Value)
		case r.Type == "exec" && ssh.Unmarshal(r.Payload, &line) == nil:
			e.Args, run = []string{"sh", "-c", line.Text}, true
		case r.Type == "shell":
			e.Args, run = []string{"sh"}, true
		default:
			_ = r.Reply(false, nil)
			continue
		}
		_ = r.Reply(true, nil)
		if run {
			go ssh.DiscardRequests(requests)
			v.sshRun(e, ch)
			return
		}
	}
}

func (v *vm) sshRun(e guest.Exec, ch ssh.Channel) {
	if len(e.Args) == 1 { // the fake shell has no prompt: it takes all of its input as a script
		script, err := io.ReadAll(io.LimitReader(ch, guest.MaxFrame))
		if err != nil {
			return
		}
		e.Args = []string{"sh", "-c", strings.TrimSuffix(string(script), "\n")}
	}
	p := v.newProcess(e, ch, ch, ch.Stderr())
	code, err := 0, p.check()
	if err == nil {
		code, err = p.run(context.Background())
	}
	if err != nil {
		_, _ = io.WriteString(ch.Stderr(), err.Error()+"\n")
		code = guest.ExitNotFound
	}
	_, _ = ch.SendRequest("exit-status", false, ssh.Marshal(struct{ Code uint32 }{uint32(code & 0xff)}))
}
