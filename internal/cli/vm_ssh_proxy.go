package cli

import (
	"context"
	"io"
	"net"
	"os"
	"slices"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"banger/internal/api"
	"banger/internal/api/bangerv1"
	"banger/internal/client"
	"banger/internal/errdefs"
	"banger/internal/guest"
	"banger/internal/sshconf"
)

type sshProxyOpts struct {
	host          string
	start, passFD bool
}

func newSSHProxyCmd(a *app) *cobra.Command {
	opts := sshProxyOpts{}
	c := &cobra.Command{
		Use:   "ssh-proxy NAME[.vm]",
		Short: "Connect stdin and stdout to a VM's SSH server (for ssh's ProxyCommand)",
		Long: `Ssh-proxy is what ssh calls to reach a VM; see banger ssh-config. Before the first byte
passes it asks the daemon for the VM's host key and makes it the one that ssh accepts.

It starts no VM unless it is told to.`,
		Example:           `  ssh -F ~/.config/banger/ssh/config -o ProxyCommand='banger vm ssh-proxy %h' calm-otter.vm`,
		Args:              needVM,
		ValidArgsFunction: first(a.completeVMs("running")),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.host = args[0]
			return runSSHProxy(cmd.Context(), a, opts)
		},
	}
	c.Flags().BoolVar(&opts.start, "start", false, "start the VM if it is stopped")
	c.Flags().BoolVar(&opts.passFD, "pass-fd", false, "hand the connection to ssh and end, as ProxyUseFdpass wants it")
	return c
}

func runSSHProxy(ctx context.Context, a *app, opts sshProxyOpts) error {
	if a.inTTY || a.outTTY {
		return usageTry("banger vm ssh "+vmOfHost(opts.host), "ssh-proxy is for ssh to call: stdin and stdout are a terminal")
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	conn, err := dialSSH(ctx, c, opts.host, opts.start)
	if err != nil {
		return err
	}
	defer conn.Close()
	if opts.passFD && isSocket(a.out) {
		return passFD(a.out, conn)
	}
	return copySSH(a, conn)
}

// dialSSH opens a connection to the SSH server of the VM that host means, and pins its key.
func dialSSH(ctx context.Context, c *client.Client, host string, start bool) (net.Conn, error) {
	ref := vmOfHost(host)
	info, err := c.GetSSH(ctx, ref)
	if err != nil {
		return nil, err
	}
	if info.GetState() != stateRunning {
		if !start {
			return nil, errdefs.Precondition("vm %q is %s", info.GetName(), info.GetState()).
				WithHint("banger vm start %s; to have ssh do that: banger ssh-config --start", info.GetName())
		}
		op, err := c.StartVM(ctx, info.GetId())
		if err == nil {
			_, err = c.WaitOperation(ctx, op, nil)
		}
		if err != nil {
			return nil, err
		}
	}
	dir, err := sshconf.Open()
	if err != nil {
		return nil, err
	}
	key, err := dir.ClientKey()
	if err != nil {
		return nil, err
	}
	if err := dir.Pin(ref+sshconf.Domain, info.GetHostKey(), knownVMs(ctx, c)); err != nil {
		return nil, err
	}
	conn, err := c.OpenStream(ctx, api.StreamPath(info.GetId()))
	if err != nil {
		return nil, err
	}
	return conn, guest.OpenSSH(ctx, conn, guest.SSH{ClientKeys: []string{key}})
}

// stateRunning is the state of a VM that can be talked to.
const stateRunning = "running"

// knownVMs says of hosts whether there is such a VM. Where that cannot be found out, there is.
func knownVMs(ctx context.Context, c *client.Client) func(host string) bool {
	return func(host string) bool {
		vms, err := c.ListVMs(ctx)
		if err != nil {
			return true
		}
		ref := vmOfHost(host)
		id := resolve(vms, ref)
		return slices.ContainsFunc(vms, func(v *bangerv1.VM) bool { return v.GetId() == id })
	}
}

// copySSH copies both ways, up to the end of what comes from the VM.
func copySSH(a *app, conn net.Conn) error {
	const chunk = 128 << 10
	go func() {
		_, _ = io.CopyBuffer(struct{ io.Writer }{conn}, struct{ io.Reader }{a.in}, make([]byte, chunk))
		if w, ok := conn.(interface{ CloseWrite() error }); ok {
			_ = w.CloseWrite()
		}
	}()
	_, err := io.CopyBuffer(struct{ io.Writer }{a.out}, struct{ io.Reader }{conn}, make([]byte, chunk))
	if err != nil {
		return errdefs.Unavailable("the connection to the VM was lost: %w", err).WithHint("see whether it runs: banger ps")
	}
	return nil
}

func isSocket(f *os.File) bool {
	var st unix.Stat_t
	return unix.Fstat(int(f.Fd()), &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFSOCK
}

// passFD hands conn to who is at the other end of to. Nothing may have been read ahead of it.
func passFD(to *os.File, conn net.Conn) error {
	u, ok := conn.(*net.UnixConn)
	if !ok {
		return errdefs.Internal("the connection cannot be handed on")
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return errdefs.Wrap(err, "hand on the connection")
	}
	var sent error
	err = raw.Control(func(fd uintptr) {
		sent = unix.Sendmsg(int(to.Fd()), []byte{0}, unix.UnixRights(int(fd)), nil, 0)
	})
	if err == nil {
		err = sent
	}
	return errdefs.Wrap(err, "hand on the connection")
}
