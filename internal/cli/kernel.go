package cli

import (
	"github.com/spf13/cobra"
)

func newKernelCmd(a *app) *cobra.Command {
	c := &cobra.Command{Use: "kernel", Aliases: []string{"kernels"}, Short: "Manage the kernels of VMs"}
	c.AddCommand(newKernelListCmd(a), newKernelShowCmd(a), newKernelPullCmd(a), newKernelImportCmd(a), newKernelBuildCmd(a), newKernelRmCmd(a), newKernelCatalogCmd(a))
	return groupOnly(c)
}
