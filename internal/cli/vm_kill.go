package cli

import (
	"context"

	"github.com/spf13/cobra"

	"banger/internal/api/bangerv1"
	"banger/internal/client"
)

func newKillCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "kill VM...",
		Short: "End VMs at once, as if by pulling the plug",
		Long: `Kill ends the VMM without asking the guest; what the guest had not written to its
disk is lost. It also ends a VM whose start hangs.`,
		Example:           `  banger vm kill calm-otter`,
		Args:              needVMs,
		ValidArgsFunction: a.completeVMs("running", "starting", "stopping"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runKill(cmd.Context(), a, args)
		},
	}
}

func runKill(ctx context.Context, a *app, refs []string) error {
	return verb{
		begin: func(ctx context.Context, c *client.Client, ref string) (*bangerv1.Operation, error) {
			return c.KillVM(ctx, ref)
		},
	}.run(ctx, a, refs)
}
