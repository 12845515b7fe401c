package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"banger/internal/errdefs"
	"banger/internal/paths"
	"banger/internal/sshconf"
)

type sshConfigOpts struct {
	install, uninstall, start bool
}

func newSSHConfigCmd(a *app) *cobra.Command {
	opts := sshConfigOpts{}
	c := &cobra.Command{
		Use:   "ssh-config",
		Short: "Let ssh, scp, rsync, git and editors reach VMs by NAME.vm",
		Long: `Ssh-config writes a configuration for OpenSSH, by which NAME.vm is the VM of that name,
and prints where it lies and the line that includes it. It concerns no other host.

With --install that line goes into a marked block at the top of ~/.ssh/config; nothing
else in it is touched. With --uninstall the block goes again.

A VM needs neither an SSH server nor a network for that. Host keys come from the daemon,
so no question is ever asked about them. docs/ssh.md tells what works.`,
		Example: `  banger ssh-config --install
  ssh calm-otter.vm
  rsync -a src/ root@calm-otter.vm:/srv/
  banger ssh-config --uninstall`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if opts.install && opts.uninstall {
				return usageErr(cmd, "--install and --uninstall exclude each other")
			}
			if opts.uninstall && opts.start {
				return usageErr(cmd, "--start is for a configuration that is written")
			}
			return runSSHConfig(a, opts)
		},
	}
	c.Flags().BoolVar(&opts.install, "install", false, "include it in ~/.ssh/config")
	c.Flags().BoolVar(&opts.uninstall, "uninstall", false, "take it out of ~/.ssh/config")
	c.Flags().BoolVar(&opts.start, "start", false, "have a stopped VM started by who connects to it")
	return c
}

func runSSHConfig(a *app, opts sshConfigOpts) error {
	config, err := sshconf.UserConfig()
	if err != nil {
		return err
	}
	if opts.uninstall {
		changed, err := sshconf.Uninstall(config)
		if err != nil {
			return err
		}
		if changed {
			fmt.Fprintf(a.out, "removed from %s\n", config)
		} else {
			fmt.Fprintf(a.out, "%s does not include it\n", config)
		}
		return nil
	}
	dir, err := a.writeSSHConfig(opts.start)
	if err != nil {
		return err
	}
	if !opts.install {
		include, err := dir.Include()
		if err != nil {
			return err
		}
		fmt.Fprintf(a.out, "%s\n\nTo use it, have ~/.ssh/config begin with this line, or run banger ssh-config --install:\n\n%s\n", dir.Config(), include)
		return nil
	}
	changed, err := dir.Install(config)
	if err != nil {
		return err
	}
	if changed {
		fmt.Fprintf(a.out, "%s includes %s now\n", config, dir.Config())
	} else {
		fmt.Fprintf(a.out, "%s includes %s already\n", config, dir.Config())
	}
	return nil
}

// startFlag has ssh-proxy start the VM.
const startFlag = "--start"

// writeSSHConfig writes this user's configuration for OpenSSH.
func (a *app) writeSSHConfig(start bool) (sshconf.Dir, error) {
	dir, err := sshconf.Open()
	if err != nil {
		return "", err
	}
	command, err := a.proxyCommand(start)
	if err != nil {
		return "", err
	}
	return dir, dir.Write(command)
}

// ensureSSHConfig is writeSSHConfig, as the configuration was asked for when it was written
// last. It also returns how OpenSSH is to call this program.
func (a *app) ensureSSHConfig() (dir sshconf.Dir, proxy []string, err error) {
	if dir, err = sshconf.Open(); err != nil {
		return "", nil, err
	}
	text, err := os.ReadFile(dir.Config())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", nil, errdefs.Wrap(err, "read the configuration for ssh")
	}
	start := strings.Contains(string(text), " "+startFlag+" ")
	if proxy, err = a.proxyCommand(start); err != nil {
		return "", nil, err
	}
	return dir, proxy, dir.Write(proxy)
}

// proxyCommand is how OpenSSH is to call this program.
func (a *app) proxyCommand(start bool) ([]string, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, errdefs.Wrap(err, "find this program")
	}
	command := []string{self}
	if a.socket != "" && a.socket != os.Getenv(paths.EnvSocket) { // ssh hands the environment on
		socket, err := filepath.Abs(a.socket)
		if err != nil {
			return nil, errdefs.Wrap(err, "find the socket")
		}
		command = append(command, "--socket", socket)
	}
	command = append(command, "vm", "ssh-proxy")
	if start {
		command = append(command, startFlag)
	}
	return command, nil
}

// forgetHost removes the host key of a VM that was deleted. One that stays does no harm: it
// is replaced when a VM of that name is connected to.
func (a *app) forgetHost(ref string) {
	dir, err := paths.SSHDir()
	if err != nil {
		return
	}
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err := sshconf.Dir(dir).Forget(func(host string) bool { return host == ref+sshconf.Domain }); err != nil {
		a.note("the host key of %s stays in %s: %v", ref, dir, err)
	}
}

// vmOfHost is the VM that an SSH client means by a host.
func vmOfHost(host string) string { return strings.TrimSuffix(host, sshconf.Domain) }
