package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"banger/internal/model"
)

func newRenameCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "rename VM NAME",
		Short:   "Give a VM another name",
		Example: `  banger vm rename calm-otter build-box`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return usageErr(cmd, "%q needs a VM and its new name", cmd.CommandPath())
			}
			return checkRefs(cmd, args)
		},
		ValidArgsFunction: first(a.completeVMs()),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runRename(cmd.Context(), a, args[0], args[1])
		},
	}
}

func runRename(ctx context.Context, a *app, ref, name string) error {
	if err := model.CheckName(name); err != nil {
		return err
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	v, err := c.RenameVM(ctx, ref, name)
	if err != nil {
		return err
	}
	fmt.Fprintln(a.out, v.GetName())
	return nil
}
