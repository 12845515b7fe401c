package cli

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"banger/internal/api/bangerv1"
	"banger/internal/client"
)

func newImageLoadCmd(a *app) *cobra.Command {
	req := &bangerv1.LoadImagesRequest{}
	c := &cobra.Command{
		Use:   "load -i FILE",
		Short: "Make images of those in an archive",
		Long: `Load makes images of all those in FILE, and prints their names. It may be an archive of an
OCI layout or what docker save, podman save and banger image save write, compressed or not:
which, is found out.

Images are called as the archive says. One that has no name there needs --name. A name that
another image has is refused, unless --force.`,
		Example: `  banger image load -i mine.tar
  banger image load --name mine -i layout.tar.gz`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if req.File == "" {
				return usageErr(cmd, "%q needs --input", cmd.CommandPath())
			}
			if req.File, err = absolute(req.File); err != nil {
				return err
			}
			if _, err := os.Stat(req.File); err != nil {
				return fileErr("load", req.File, err)
			}
			op, err := a.operate(cmd.Context(), func(ctx context.Context, c *client.Client) (*bangerv1.Operation, error) {
				return c.LoadImages(ctx, req)
			})
			if err == nil {
				fmt.Fprintln(a.out, op.GetResult())
			}
			return err
		},
	}
	f := c.Flags()
	f.StringVarP(&req.File, "input", "i", "", "the archive, a `file`")
	f.StringVar(&req.As, "name", "", "`name` of the image (default: as the archive says)")
	f.StringVar(&req.Platform, "platform", "", "take images for `OS/ARCHITECTURE`, like linux/amd64 (default: as configured, else this host's)")
	f.BoolVar(&req.Force, "force", false, "take names from other images that have them")
	return c
}
