package cli

import (
	"github.com/spf13/cobra"

	"banger/internal/config"
	"banger/internal/paths"
)

func newConfigCmd(a *app) *cobra.Command {
	c := &cobra.Command{Use: "config", Short: "Look at the configuration"}
	c.AddCommand(&cobra.Command{
		Use:   "show",
		Short: "Print the configuration in force",
		Long: `Show prints the configuration as YAML, with where each value comes from. A running
daemon has read it when it started.`,
		Example:           `  banger config show`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(*cobra.Command, []string) error {
			loaded, err := config.Load(paths.ConfigFile())
			if err != nil {
				return err
			}
			return loaded.Show(a.out, config.DetectHost())
		},
	})
	return groupOnly(c)
}
