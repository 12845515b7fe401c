package cli

import (
	"github.com/spf13/cobra"

	"banger/internal/version"
)

func newVersionCmd(a *app) *cobra.Command {
	asJSON := false
	c := &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Example: `  banger version
  banger version --json`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(*cobra.Command, []string) error {
			v := version.Get()
			if asJSON {
				return printJSON(a.out, v)
			}
			return printFields(a.out, [][2]string{{"Version", v.Version}, {"Commit", v.Commit}, {"Built", v.Date}})
		},
	}
	jsonFlag(c, &asJSON)
	return c
}
