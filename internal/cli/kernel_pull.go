package cli

import (
	"context"

	"github.com/spf13/cobra"

	"banger/internal/api/bangerv1"
	"banger/internal/client"
)

func newKernelPullCmd(a *app) *cobra.Command {
	force := false
	c := &cobra.Command{
		Use:   "pull KERNEL",
		Short: "Make a kernel from where its name says",
		Long: `Pull makes a kernel and prints its name. "debian" is the kernel of Debian stable,
made from Debian's packages; other names are those of the catalogs that the
configuration names, whose signatures are checked. What is there already is kept,
unless --force.`,
		Example: `  banger kernel pull debian
  banger kernel pull --force debian`,
		Args:              needName("kernel"),
		ValidArgsFunction: pullable(),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.pull(cmd.Context(), func(ctx context.Context, c *client.Client) (*bangerv1.Operation, error) {
				return c.PullKernel(ctx, args[0], force)
			})
		},
	}
	c.Flags().BoolVar(&force, "force", false, "make it again although it is there")
	return c
}
