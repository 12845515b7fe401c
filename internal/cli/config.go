package cli

import (
	"github.com/spf13/cobra"

	"banger/internal/config"
	"banger/internal/paths"
)

func newConfigCmd(a *app) *cobra.Command {
	c := &cobra.Command{Use: "config", Short: "Look at the configuration"}
	c.AddCommand(newConfigShowCmd(a))
	return groupOnly(c)
}

func newConfigShowCmd(a *app) *cobra.Command {
	asJSON := false
	c := &cobra.Command{
		Use:   "show",
		Short: "Print the configuration in force",
		Long: `Show prints the configuration as YAML, with where each value comes from. A running
daemon has read it when it started.`,
		Example: `  banger config show
  banger config show --json`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(*cobra.Command, []string) error { return runConfigShow(a, asJSON) },
	}
	jsonFlag(c, &asJSON)
	return c
}

// configView is what --json prints of the configuration: the keys as in the file,
// and where the value of each comes from, by its path.
type configView struct {
	File    string                   `json:"file"`
	Exists  bool                     `json:"exists"`
	Config  map[string]any           `json:"config"`
	Sources map[string]config.Source `json:"sources"`
}

func runConfigShow(a *app, asJSON bool) error {
	loaded, err := config.Load(paths.ConfigFile())
	if err != nil {
		return err
	}
	layout, err := a.layout()
	if err != nil {
		return err
	}
	host := config.DetectHost(layout.State)
	if !asJSON {
		return loaded.Show(a.out, host)
	}
	v := configView{File: loaded.File, Exists: loaded.Exists}
	if v.Config, v.Sources, err = loaded.Values(host); err != nil {
		return err
	}
	return printJSON(a.out, v)
}
