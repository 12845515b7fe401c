package cli

import (
	"context"

	"github.com/spf13/cobra"

	"banger/internal/api/bangerv1"
	"banger/internal/client"
)

type deleteOpts struct {
	refs  []string
	force bool
}

func newDeleteCmd(a *app) *cobra.Command {
	opts := deleteOpts{}
	c := &cobra.Command{
		Use:     "delete VM...",
		Aliases: []string{"rm"},
		Short:   "Delete VMs and their disks",
		Example: `  banger vm delete calm-otter
  banger vm delete --force calm-otter brave-fox
  banger vm delete $(banger vm list -q)`,
		Args:              needVMs,
		ValidArgsFunction: a.completeVMs(),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.refs = args
			return runDelete(cmd.Context(), a, opts)
		},
	}
	c.Flags().BoolVarP(&opts.force, "force", "f", false, "delete running VMs too, and cancel what holds them")
	return c
}

func runDelete(ctx context.Context, a *app, opts deleteOpts) error {
	return verb{
		begin: func(ctx context.Context, c *client.Client, ref string) (*bangerv1.Operation, error) {
			return c.DeleteVM(ctx, ref, opts.force)
		},
		after: func(_ context.Context, _ *client.Client, ref string) error {
			a.forgetHost(ref)
			return nil
		},
	}.run(ctx, a, opts.refs)
}
