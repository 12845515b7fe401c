package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"banger/internal/api/bangerv1"
)

func newImageTagCmd(a *app) *cobra.Command {
	req := &bangerv1.TagImageRequest{}
	c := &cobra.Command{
		Use:   "tag IMAGE NAME",
		Short: "Give an image a further name",
		Long: `Tag gives an image a further name and prints it. Both names are equal from then on: either
can be removed, or made to lead elsewhere, and the other stays. What is on the disk is
there once.

A name that another image has is refused, unless --force: VMs that use that one keep it.`,
		Example: `  banger image tag debian base
  banger image tag base registry.example.org/me/base:1`,
		Args:              needTwo("an image and its further name"),
		ValidArgsFunction: first(a.completeImages),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Source, req.Name = args[0], args[1]
			return runImageTag(cmd.Context(), a, req)
		},
	}
	c.Flags().BoolVar(&req.Force, "force", false, "take the name from another image that has it")
	return c
}

func runImageTag(ctx context.Context, a *app, req *bangerv1.TagImageRequest) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	image, err := c.TagImage(ctx, req)
	if err != nil {
		return err
	}
	fmt.Fprintln(a.out, image.GetName())
	return nil
}
