package cli

import (
	"context"
	"os"

	"github.com/spf13/cobra"

	"banger/internal/api/bangerv1"
	"banger/internal/client"
	"banger/internal/errdefs"
	"banger/internal/model"
)

func newKernelImportCmd(a *app) *cobra.Command {
	from := ""
	c := &cobra.Command{
		Use:   "import KERNEL --from DIR",
		Short: "Take a kernel from a directory",
		Long: `Import copies a kernel from a directory that holds vmlinux or bzImage and, unless
everything the boot needs is built in, modules/ (the tree of /lib/modules/RELEASE).`,
		Example:           `  banger kernel import mine --from ./build`,
		Args:              needName("kernel"),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			if from == "" {
				return usageErr(cmd, "%q needs --from", cmd.CommandPath())
			}
			return runKernelImport(cmd.Context(), a, args[0], from)
		},
	}
	c.Flags().StringVar(&from, "from", "", "`directory` with the kernel")
	complete(c, "from", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return nil, cobra.ShellCompDirectiveFilterDirs
	})
	return c
}

func runKernelImport(ctx context.Context, a *app, name, from string) error {
	if err := model.CheckArtifactName("kernel", name); err != nil {
		return err
	}
	dir, err := absolute(from)
	if err != nil {
		return err
	}
	switch info, err := os.Stat(dir); {
	case err != nil:
		return fileErr("import", dir, err)
	case !info.IsDir():
		return errdefs.Invalid("import: %s is not a directory", dir).WithHint("give the directory that holds vmlinux or bzImage")
	}
	return a.pull(ctx, func(ctx context.Context, c *client.Client) (*bangerv1.Operation, error) {
		return c.ImportKernel(ctx, name, dir)
	})
}
