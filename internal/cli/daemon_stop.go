package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"banger/internal/client"
	"banger/internal/errdefs"
)

func newDaemonStopCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "stop",
		Short: "Stop the daemon; VMs run on",
		Long: `Stop ends the daemon and returns when it is gone. VMs run on; the next daemon finds
them. Commands, shells and copies that are open end with it, what it was making or
changing is undone, and VMs of a "vm run --rm" are deleted by the next daemon.`,
		Example:           `  banger daemon stop`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runDaemonStop(cmd.Context(), a) },
	}
}

func runDaemonStop(ctx context.Context, a *app) error {
	l, err := a.layout()
	if err != nil {
		return err
	}
	ctx, stop := interruptible(ctx)
	defer stop()
	// It ends whatever it is busy with: who says stop means it.
	err = client.StopDaemon(ctx, l.Socket, true)
	if err != nil && errdefs.ClassOf(err) == errdefs.ClassBusy {
		a.warn("%v; that ends now", err)
		err = client.StopDaemon(ctx, l.Socket, false)
	}
	switch {
	case err == nil:
		fmt.Fprintln(a.out, "stopped the daemon")
	case errdefs.ClassOf(err) == errdefs.ClassUnavailable:
		fmt.Fprintln(a.out, "the daemon does not run")
	default:
		return interrupted(err)
	}
	return nil
}
