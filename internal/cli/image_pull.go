package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"banger/internal/api/bangerv1"
	"banger/internal/client"
)

func newImagePullCmd(a *app) *cobra.Command {
	req := &bangerv1.PullRequest{}
	c := &cobra.Command{
		Use:   "pull IMAGE",
		Short: "Make an image from where its name says",
		Long: `Pull makes an image and prints its name. "debian" is Debian stable with systemd and
the usual tools, made from Debian's packages. What is there already is kept,
unless --force. Two pulls of one image share the work. With --include it has more
packages, and needs a name of its own.`,
		Example: `  banger image pull debian
  banger image pull --force debian
  banger image pull debian --name go --include golang-go,golang-golang-x-tools`,
		Args:              needName("image"),
		ValidArgsFunction: pullable(),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Name = args[0]
			name := req.Name
			if req.As != "" {
				name = req.As
			}
			return a.pull(cmd.Context(), name, func(ctx context.Context, c *client.Client) (*bangerv1.Operation, error) {
				return c.PullImage(ctx, req)
			})
		},
	}
	c.Flags().BoolVar(&req.Force, "force", false, "make it again although it is there")
	c.Flags().StringVar(&req.As, "name", "", "`name` of the image (default: IMAGE)")
	c.Flags().StringSliceVar(&req.Include, "include", nil, "Debian `packages` to install besides, separated by commas")
	return c
}

// pull follows an operation that makes an image or a kernel and prints the name.
func (a *app) pull(ctx context.Context, name string, begin func(context.Context, *client.Client) (*bangerv1.Operation, error)) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	ctx, stop := interruptible(ctx)
	defer stop()
	op, err := begin(context.WithoutCancel(ctx), c)
	if err != nil {
		return err
	}
	if _, err := waitOrCancel(ctx, c, op, a.follow()); err != nil {
		return interrupted(err)
	}
	fmt.Fprintln(a.out, name)
	return nil
}
