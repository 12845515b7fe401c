package cli

import (
	"github.com/spf13/cobra"

	"banger/internal/client"
)

func newNetworkRmCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "rm NETWORK...",
		Aliases:           []string{"delete"},
		Short:             "Remove networks that no VM is on",
		Example:           `  banger network rm lab`,
		Args:              needNames("network"),
		ValidArgsFunction: a.completeNetworks,
		RunE: func(cmd *cobra.Command, args []string) error {
			return removeEach(cmd.Context(), a, args, (*client.Client).RemoveNetwork)
		},
	}
}
