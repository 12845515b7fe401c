package cli

import (
	"context"

	"github.com/spf13/cobra"

	"banger/internal/api/bangerv1"
	"banger/internal/client"
)

func newRestartCmd(a *app) *cobra.Command {
	opts := stopOpts{}
	wait := ""
	c := &cobra.Command{
		Use:   "restart VM...",
		Short: "Stop and start VMs",
		Example: `  banger vm restart calm-otter
  banger vm restart --wait system calm-otter`,
		Args:              needVMs,
		ValidArgsFunction: a.completeVMs(),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.refs = args
			return runRestart(cmd.Context(), a, opts, wait)
		},
	}
	stopTimeoutFlag(c, &opts.timeout)
	waitFlag(c, &wait)
	return c
}

func runRestart(ctx context.Context, a *app, opts stopOpts, wait string) error {
	if err := checkWait(wait); err != nil {
		return err
	}
	v := verb{
		begin: func(ctx context.Context, c *client.Client, ref string) (*bangerv1.Operation, error) {
			req, err := stopRequest(ref, opts.timeout)
			if err != nil {
				return nil, err
			}
			return c.RestartVM(ctx, req)
		},
	}
	if wait == waitSystem {
		v.after = a.waitSystem
	}
	return v.run(ctx, a, opts.refs)
}
