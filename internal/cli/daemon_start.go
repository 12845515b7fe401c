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
	c := client.Open(client.Options{Sockets: []string{l.Socket}, AnyProtocol: true})
	defer c.Close()
	outcome := "the daemon runs already"
	if _, err := client.PeerOf(ctx, l.Socket); err != nil {
		outcome = "started the daemon"
		if err := client.StartDaemon(ctx, l); err != nil {
			return interrupted(err)
		}
	}
	info, err := c.Info(ctx)
	if err != nil {
		return interrupted(err)
	}
	fmt.Fprintf(a.out, "%s (pid %d)\n", outcome, info.GetPid())
	for _, n := range info.GetNotices() {
		a.notice(n)
	}
	return nil
}
