package cli

import (
	"context"
	"fmt"
	"os"
	"os/user"
	"path/filepath"

	"github.com/spf13/cobra"

	"banger/internal/client"
	"banger/internal/errdefs"
	"banger/internal/install"
	"banger/internal/paths"
	"banger/internal/systemd"
)

type systemInstallOpts struct {
	prefix, group *string // nil: as it is installed
	noStart       bool
}

func newSystemInstallCmd(a *app) *cobra.Command {
	opts := systemInstallOpts{}
	prefix, group := "", ""
	c := &cobra.Command{
		Use:   "install",
		Short: "Install the programs, and the daemon as a service of systemd",
		Long: `Install copies the programs banger, bangerd and banger-agent to /usr/local/bin, from the
directory of the one that is running, writes the unit ` + paths.SystemUnit + `, and starts
the daemon now and whenever the host boots. Its state is that of a daemon root has
started before, whose VMs go on running.

To upgrade, run the new banger's install. What has changed is replaced and the daemon
restarted: VMs run on, open commands, shells and copies end.

With --group the members of a group may use the daemon. That makes them as powerful as
root on this host, as it does with other programs that run machines.`,
		Example: `  sudo bin/banger system install
  sudo bin/banger system install --group sudo
  sudo bin/banger system install --prefix /opt/banger --no-start`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("prefix") {
				opts.prefix = &prefix
			}
			if cmd.Flags().Changed("group") {
				opts.group = &group
			}
			return runSystemInstall(cmd.Context(), a, opts)
		},
	}
	c.Flags().StringVar(&prefix, "prefix", "", "put the programs into bin/ of this `directory` (default: where they are installed, else "+install.DefaultPrefix+")")
	c.Flags().StringVar(&group, "group", "", "`group` whose members may use the daemon (default: as it is installed, else none; \"\" is none)")
	c.Flags().BoolVar(&opts.noStart, "no-start", false, "neither start the daemon nor have it started at boot")
	return c
}

func runSystemInstall(ctx context.Context, a *app, opts systemInstallOpts) error {
	if err := needSystemd("install"); err != nil {
		return err
	}
	s := install.Service{Unit: paths.SystemUnit, Prefix: install.DefaultPrefix}
	if old, err := install.Find(s.Unit); err == nil {
		s = old
	}
	if opts.prefix != nil {
		s.Prefix = *opts.prefix
	}
	if opts.group != nil {
		s.Group = *opts.group
	}
	if s.Group != "" {
		if _, err := user.LookupGroup(s.Group); err != nil {
			return errdefs.NotFound("install: %w", err).WithHint("groupadd --system %s", s.Group)
		}
	}
	self, err := os.Executable()
	if err == nil {
		self, err = filepath.EvalSymlinks(self)
	}
	if err != nil {
		return errdefs.Wrap(err, "find this program")
	}
	ctx, stop := interruptible(ctx)
	defer stop()
	changed, err := s.Install(filepath.Dir(self))
	if err != nil {
		return err
	}
	if err := systemd.Reload(ctx); err != nil {
		return interrupted(err)
	}
	fmt.Fprintf(a.out, "installed the programs in %s\n", s.Bin())
	if opts.noStart {
		a.note("to start the daemon: systemctl enable --now bangerd")
		return nil
	}
	if err := systemd.Enable(ctx, systemd.Daemon); err != nil {
		return interrupted(err)
	}
	return interrupted(startService(ctx, a, changed))
}

// startService has systemd's daemon run, as it is now installed.
func startService(ctx context.Context, a *app, changed bool) error {
	a.note("starting the daemon")
	l := paths.System()
	pid, err := systemd.MainPID(ctx, systemd.Daemon)
	if err != nil {
		return err
	}
	if peer, err := client.PeerOf(ctx, l.Socket); err == nil && peer.PID != pid {
		// One that a command has started; its VMs are the next one's.
		if err := client.StopDaemon(ctx, l.Socket, false); err != nil {
			return errdefs.Wrap(err, "end the daemon that runs")
		}
	}
	start := systemd.Start
	if changed {
		start = systemd.Restart
	}
	if err := start(ctx, systemd.Daemon); err != nil {
		return errdefs.Wrap(err, "banger is installed, but its daemon does not run")
	}
	c := client.Open(client.Options{Sockets: []string{l.Socket}})
	defer c.Close()
	info, err := c.Info(ctx)
	if err != nil {
		return errdefs.Wrap(err, "banger is installed, but its daemon does not answer")
	}
	fmt.Fprintf(a.out, "the daemon runs (pid %d)\n", info.GetPid())
	for _, n := range info.GetNotices() {
		a.notice(n)
	}
	return nil
}
