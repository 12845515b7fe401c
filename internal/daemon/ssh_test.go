package daemon

import (
	"context"
	"crypto/ed25519"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"banger/internal/api"
	"banger/internal/api/bangerv1"
	"banger/internal/errdefs"
	"banger/internal/guest"
	"banger/internal/paths"
)

// The host key is the daemon's to give: it is one per VM, nobody else may read it, and what a
// client sends instead does not count.
func TestSSHHostKeys(t *testing.T) {
	h := newHost(t)
	h.artifacts()
	d := h.serve()
	defer d.end(h)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	one := d.create(h, &bangerv1.CreateRequest{Name: "one"})
	defer d.remove(h, "one")
	d.create(h, &bangerv1.CreateRequest{Name: "two"})
	defer d.remove(h, "two")
	info, err := d.client.GetSSH(ctx, "one")
	h.must(err)
	again, err := d.client.GetSSH(ctx, one.GetId())
	h.must(err)
	other, err := d.client.GetSSH(ctx, "two")
	h.must(err)
	if info.GetHostKey() == "" || info.GetHostKey() != again.GetHostKey() || info.GetHostKey() == other.GetHostKey() {
		t.Errorf("keys %q, %q and of another VM %q", info.GetHostKey(), again.GetHostKey(), other.GetHostKey())
	}
	file := filepath.Join(h.opts.Layout.VM(one.GetId()), paths.SSHHostKey)
	if st, err := os.Stat(file); err != nil || st.Mode() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
	for _, ref := range []string{"", "nobody"} {
		if _, err := d.client.GetSSH(ctx, ref); err == nil || errors.Is(err, errdefs.ErrInternal) {
			t.Errorf("ref %q: %v", ref, err)
		}
	}

	_, mine, err := ed25519.GenerateKey(nil)
	h.must(err)
	signer, err := ssh.NewSignerFromSigner(mine)
	h.must(err)
	wanted, _, _, _, err := ssh.ParseAuthorizedKey([]byte(info.GetHostKey()))
	h.must(err)
	conn, err := d.client.OpenStream(ctx, api.StreamPath("one"))
	h.must(err)
	defer conn.Close()
	h.must(guest.OpenSSH(ctx, conn, guest.SSH{
		HostKey: mine.Seed(), ClientKeys: []string{string(ssh.MarshalAuthorizedKey(signer.PublicKey()))},
	}))
	c, channels, requests, err := ssh.NewClientConn(conn, "one.vm", &ssh.ClientConfig{
		User: guest.SSHDefaultUser, Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)}, HostKeyCallback: ssh.FixedHostKey(wanted),
	})
	h.must(err)
	client := ssh.NewClient(c, channels, requests)
	defer client.Close()
	daemonInfo, err := d.client.Info(ctx)
	h.must(err)
	if busy := strings.Join(daemonInfo.GetBusy(), ", "); !strings.Contains(busy, `ssh of vm "one"`) {
		t.Errorf("an SSH connection is not what keeps the daemon busy, but %q", busy)
	}
	s, err := client.NewSession()
	h.must(err)
	if out, err := s.Output("hostname"); string(out) != "one\n" {
		t.Errorf("got %q, %v", out, err)
	}

	// Without a key of the client's nothing is opened.
	conn, err = d.client.OpenStream(ctx, api.StreamPath("one"))
	h.must(err)
	if err := guest.OpenSSH(ctx, conn, guest.SSH{}); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("without keys: %v", err)
	}
}
