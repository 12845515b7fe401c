package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"banger/internal/api/bangerv1"
	"banger/internal/client"
)

func newImagePushCmd(a *app) *cobra.Command {
	req := &bangerv1.PushImageRequest{}
	c := &cobra.Command{
		Use:   "push IMAGE [REF]",
		Short: "Send an image to a registry",
		Long: `Push sends an image of any origin to a registry, as an OCI image of one layer with its
config, and prints the digest of its manifest. REF is HOST[:PORT]/NAME[:TAG], or NAME/NAME on
Docker Hub; without one the image's own name says where to, as with docker push.

Credentials are those of the daemon's user, as docker login and podman login keep them. What
the registry has is not sent again; an upload that breaks off is gone on with.`,
		Example: `  banger image push mine registry.example.org/me/mine:1
  banger image tag mine localhost:5000/mine && banger image push localhost:5000/mine
  banger image push --insecure mine registry.lan:5000/mine`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) < 1 || len(args) > 2 || args[0] == "" {
				return usageErr(cmd, "%q needs an image, and may be told where to", cmd.CommandPath())
			}
			return nil
		},
		ValidArgsFunction: first(a.completeImages),
		RunE: func(cmd *cobra.Command, args []string) error {
			if req.Name = args[0]; len(args) > 1 {
				req.To = args[1]
			}
			op, err := a.operate(cmd.Context(), func(ctx context.Context, c *client.Client) (*bangerv1.Operation, error) {
				return c.PushImage(ctx, req)
			})
			if err == nil {
				fmt.Fprintln(a.out, op.GetResult())
			}
			return err
		},
	}
	c.Flags().BoolVar(&req.Insecure, "insecure", false, "allow http, and TLS that cannot be verified, for the registry")
	return c
}
