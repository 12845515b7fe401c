package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"banger/internal/model"
)

func newNetworkCreateCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "create NAME",
		Short: "Make a network",
		Example: `  banger network create lab
  banger vm create --network lab --name db
  banger vm run --network lab -- ping -c 1 db`,
		Args:              needName("network"),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runNetworkCreate(cmd.Context(), a, args[0])
		},
	}
}

func runNetworkCreate(ctx context.Context, a *app, name string) error {
	if err := model.CheckNetworkName(name); err != nil {
		return err
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	n, err := c.CreateNetwork(ctx, name)
	if err != nil {
		return err
	}
	fmt.Fprintln(a.out, n.GetName())
	return nil
}
