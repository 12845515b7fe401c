package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"banger/internal/api/bangerv1"
	"banger/internal/client"
	"banger/internal/errdefs"
	"banger/internal/install"
	"banger/internal/paths"
	"banger/internal/sysexec"
	"banger/internal/systemd"
)

type systemUninstallOpts struct{ force, purge bool }

func newSystemUninstallCmd(a *app) *cobra.Command {
	opts := systemUninstallOpts{}
	c := &cobra.Command{
		Use:   "uninstall",
		Short: "Remove what install has installed",
		Long: `Uninstall stops the daemon and removes its unit and the programs. What the daemon has
changed of the host (bridge, rules, settings) is gone then. It refuses while VMs exist,
unless --force deletes them.

The state in ` + paths.SystemStateDir + ` stays, with images and kernels, unless --purge removes it.
` + paths.SystemConfig + ` is yours and stays in any case, as does what the journal holds.`,
		Example: `  sudo banger system uninstall
  sudo banger system uninstall --force --purge`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runSystemUninstall(cmd.Context(), a, opts) },
	}
	c.Flags().BoolVarP(&opts.force, "force", "f", false, "delete VMs, running ones too")
	c.Flags().BoolVar(&opts.purge, "purge", false, "remove images, kernels and all other state as well")
	return c
}

func runSystemUninstall(ctx context.Context, a *app, opts systemUninstallOpts) error {
	if err := needSystemd("uninstall"); err != nil {
		return err
	}
	s, err := install.Find(paths.SystemUnit)
	installed := err == nil
	if err != nil && !errors.Is(err, errdefs.ErrNotFound) {
		return err
	}
	l := paths.System()
	ctx, stop := interruptible(ctx)
	defer stop()
	if installed || opts.purge {
		if err := withoutVMs(ctx, a, l, opts.force); err != nil {
			return interrupted(err)
		}
	}
	if installed {
		if err := systemd.Disable(ctx, systemd.Daemon); err != nil {
			return interrupted(errdefs.Wrap(err, "stop the daemon"))
		}
	}
	if installed || opts.purge {
		if err := endDaemon(ctx, l); err != nil {
			return interrupted(err)
		}
		if err := install.Tidy(); err != nil {
			return err
		}
	}
	if opts.purge {
		left, err := install.Purge(l)
		if err != nil {
			return err
		}
		if len(left) > 0 {
			a.warn("kept in %s, as it is not banger's: %s", l.State, strings.Join(left, ", "))
		}
	}
	if !installed {
		fmt.Fprintln(a.out, "banger is not installed as a service")
		return nil
	}
	if err := s.Remove(); err != nil {
		return err
	}
	if err := systemd.Reload(ctx); err != nil {
		return interrupted(err)
	}
	fmt.Fprintf(a.out, "removed the programs from %s\n", s.Bin())
	if _, err := os.Stat(l.State); err == nil && !opts.purge {
		a.note("its state is kept in %s; to remove that as well: banger system uninstall --purge", l.State)
	}
	return nil
}

// withoutVMs makes sure that there are no VMs. It needs the daemon for that, which
// also puts back what one before it may have left of the host's changed.
func withoutVMs(ctx context.Context, a *app, l paths.Layout, force bool) error {
	if _, err := os.Stat(l.Database()); errors.Is(err, os.ErrNotExist) {
		return nil // no daemon ever ran
	}
	c := client.Open(client.Options{Sockets: []string{l.Socket}, AnyProtocol: true, Missing: func(ctx context.Context) error {
		return client.StartDaemon(ctx, l)
	}})
	defer c.Close()
	vms, err := c.ListVMs(ctx)
	if err != nil {
		return errdefs.Wrap(err, "look for VMs")
	}
	var names []string
	for _, v := range vms {
		names = append(names, v.GetName())
	}
	if len(names) > 0 && !force {
		return errdefs.Precondition("uninstall: there are VMs: %s", strings.Join(names, ", ")).
			WithHint("delete them: banger vm delete; or with all that is in them: banger system uninstall --force")
	}
	return a.forEach(ctx, c, names, func(ctx context.Context, name string) error {
		op, err := c.DeleteVM(context.WithoutCancel(ctx), name, true)
		if err == nil {
			_, err = c.WaitOperation(ctx, op, func(*bangerv1.Operation) {})
		}
		return err
	}, func(name string) { fmt.Fprintf(a.out, "deleted %s\n", name) })
}

// endDaemon ends a daemon that is not systemd's, and the network helper, which would
// stay a little longer.
func endDaemon(ctx context.Context, l paths.Layout) error {
	if err := client.StopDaemon(ctx, l.Socket, false); err != nil && !errors.Is(err, errdefs.ErrUnavailable) {
		return errdefs.Wrap(err, "stop the daemon")
	}
	peer, err := client.PeerOf(ctx, l.Usernet())
	if err != nil {
		return nil // there is none
	}
	start, err := sysexec.StartTime(peer.PID)
	if err != nil {
		return nil // it has just ended
	}
	helper, err := sysexec.Find(peer.PID, start)
	if err != nil {
		return nil
	}
	if err := helper.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, sysexec.ErrGone) {
		return errdefs.Wrap(err, "end the network helper")
	}
	select {
	case <-helper.Done():
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
