package cli

import (
	"context"

	"github.com/spf13/cobra"

	"banger/internal/api/bangerv1"
	"banger/internal/client"
)

func newImagePromoteCmd(a *app) *cobra.Command {
	req := &bangerv1.PromoteRequest{}
	isImage := false
	c := &cobra.Command{
		Use:   "promote VM NAME",
		Short: "Make an image of a stopped VM's disk",
		Long: `Promote makes an image of a copy of a VM's disk, and prints its name. It shares its blocks
with the disk where the file system can. Who runs commands in it, and how, is as in the
image of the VM. Nothing about the VM changes, which is why this is a command for images
and not for VMs. The new image is as large as the disk, and every VM made of it at least
so. All that is on the disk is in the image, keys that the guest has made included.

The VM has to be stopped. The disk of one that was killed is taken as it is: what its kernel
had no time to write to its place is in the file system's journal, and is found there.
With --image a copy is made of a registered image, whose file is then no longer needed.`,
		Example: `  banger vm stop box && banger image promote box golden
  banger image promote --image mine golden`,
		Args: needTwo("a VM and the name of an image"),
		ValidArgsFunction: first(func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
			if isImage {
				return a.completeImages(cmd, args, word)
			}
			return a.completeVMs("stopped")(cmd, args, word)
		}),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Name = args[1]
			if isImage {
				req.Image = args[0]
			} else {
				req.Vm = args[0]
			}
			return a.pull(cmd.Context(), func(ctx context.Context, c *client.Client) (*bangerv1.Operation, error) {
				return c.PromoteImage(ctx, req)
			})
		},
	}
	c.Flags().BoolVar(&isImage, "image", false, "copy a registered image, not the disk of a VM")
	c.Flags().BoolVar(&req.Force, "force", false, "take the name from another image that has it")
	return c
}
