package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"banger/internal/client"
)

func newDaemonStartCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "start",
		Short:             "Start the daemon",
		Long:              "Start starts the daemon in the background and returns when it serves. One that runs already is fine.",
		Example:           `  banger daemon start`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runDaemonStart(cmd.Context(), a) },
	}
}

func runDaemonStart(ctx context.Context, a *app) error {
	l, err := a.layout()
	if err != nil {
		return err
	}
	ctx, stop := interruptible(ctx)
	defer stop()
	if peer, err := client.PeerOf(ctx, l.Socket); err == nil {
		fmt.Fprintf(a.out, "the daemon runs already (pid %d)\n", peer.PID)
		return nil
	}
	if err := client.StartDaemon(ctx, l); err != nil {
		return interrupted(err)
	}
	peer, err := client.PeerOf(ctx, l.Socket)
	if err != nil {
		return interrupted(err)
	}
	fmt.Fprintf(a.out, "started the daemon (pid %d)\n", peer.PID)
	return nil
}
