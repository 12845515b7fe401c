package cli

import (
	"github.com/spf13/cobra"

	"banger/internal/client"
)

func newKernelRmCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "rm KERNEL...",
		Aliases:           []string{"delete"},
		Short:             "Remove kernels that no VM uses",
		Example:           `  banger kernel rm debian`,
		Args:              needNames("kernel"),
		ValidArgsFunction: a.completeKernels,
		RunE: func(cmd *cobra.Command, args []string) error {
			return removeEach(cmd.Context(), a, args, (*client.Client).RemoveKernel)
		},
	}
}
