package cli

import (
	"context"
	"errors"
	"strings"

	"github.com/spf13/cobra"

	"banger/internal/errdefs"
	"banger/internal/sshconf"
	"banger/internal/sysexec"
)

type sshOpts struct {
	ref                    string
	command                []string
	user                   string
	local, remote, dynamic []string
	agent, tty, noCommand  bool
}

func newSSHCmd(a *app) *cobra.Command {
	opts := sshOpts{}
	c := &cobra.Command{
		Use:   "ssh VM [-- CMD [ARG...]]",
		Short: "Log in to a running VM with the ssh of this host",
		Long: `Ssh runs OpenSSH's client for a VM, with the configuration that banger ssh-config writes;
nothing need be installed for it. Like with any ssh, CMD is a line for the user's shell,
its exit code is ours, and 255 says that ssh itself failed.

Where OpenSSH is not installed a shell or CMD is run as with banger exec; forwarding
needs OpenSSH.`,
		Example: `  banger vm ssh calm-otter
  banger vm ssh -L 8080:localhost:80 calm-otter
  banger vm ssh -A calm-otter -- git push`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 || cmd.ArgsLenAtDash() == 0 {
				return usageErr(cmd, "%q needs the name of one VM", cmd.CommandPath())
			}
			return checkRefs(cmd, args[:1])
		},
		ValidArgsFunction: first(a.completeVMs("running")),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.ref = args[0]
			opts.command, _ = execCommand(args)
			return runSSH(cmd.Context(), a, opts)
		},
	}
	f := c.Flags()
	f.StringVarP(&opts.user, "user", "u", "", "`user` to log in as (default: the VM's)")
	f.StringArrayVarP(&opts.local, "local", "L", nil, "forward `port:host:port` of this host to what the VM sees there")
	f.StringArrayVarP(&opts.remote, "remote", "R", nil, "forward `port:host:port` of the VM to what this host sees there")
	f.StringArrayVarP(&opts.dynamic, "dynamic", "D", nil, "listen for SOCKS on a `port` of this host")
	f.BoolVarP(&opts.agent, "agent", "A", false, "let programs in the VM use your ssh-agent")
	f.BoolVarP(&opts.tty, "tty", "t", false, "give CMD a terminal")
	f.BoolVarP(&opts.noCommand, "no-command", "N", false, "only forward")
	f.SetInterspersed(false)
	return c
}

func runSSH(ctx context.Context, a *app, opts sshOpts) error {
	if _, err := sysexec.Look("ssh"); err != nil {
		return a.withoutSSH(ctx, opts, err)
	}
	dir, proxy, err := a.ensureSSHConfig()
	if err != nil {
		return ownFailure(err)
	}
	// It is OpenSSH for certain: it can have the connection itself, without us in between.
	hand := []string{"-o", "ProxyUseFdpass=yes", "-o", sshconf.ProxyCommand(append(proxy, "--pass-fd"))}
	return ownFailure(sysexec.Replace("ssh", append(hand, opts.args(dir)...)))
}

// args are the arguments of ssh.
func (o *sshOpts) args(dir sshconf.Dir) []string {
	args := []string{"-F", dir.Config()}
	for _, f := range []struct {
		flag   string
		values []string
	}{{"-L", o.local}, {"-R", o.remote}, {"-D", o.dynamic}} {
		for _, v := range f.values {
			args = append(args, f.flag, v)
		}
	}
	for _, f := range []struct {
		flag string
		on   bool
	}{{"-A", o.agent}, {"-t", o.tty}, {"-N", o.noCommand}} {
		if f.on {
			args = append(args, f.flag)
		}
	}
	if o.user != "" {
		args = append(args, "-l", o.user)
	}
	args = append(args, "--", vmOfHost(o.ref)+sshconf.Domain)
	return append(args, o.command...)
}

// withoutSSH does what can be done without OpenSSH.
func (a *app) withoutSSH(ctx context.Context, opts sshOpts, missing error) error {
	if !errors.Is(missing, errdefs.ErrUnsupported) {
		return ownFailure(missing)
	}
	if len(opts.local)+len(opts.remote)+len(opts.dynamic) > 0 || opts.agent || opts.noCommand {
		return ownFailure(errdefs.Unsupported("forwarding needs OpenSSH, which is not installed").
			WithHint("install the package openssh-client; ports are also forwarded by: banger port add %s PORT", vmOfHost(opts.ref)))
	}
	a.warn("OpenSSH is not installed: this is banger exec")
	exec := execOpts{ref: vmOfHost(opts.ref), user: opts.user}
	exec.session.tty = opts.tty && a.terminal()
	if len(opts.command) > 0 {
		exec.command = []string{"/bin/sh", "-c", strings.Join(opts.command, " ")}
	} else {
		exec.session.tty = a.terminal()
	}
	return runExec(ctx, a, exec)
}
