package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

func newNetworkListCmd(a *app) *cobra.Command {
	opts := listOpts{}
	c := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List networks and the VMs on them",
		Example: `  banger network list
  banger network list --json`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runNetworkList(cmd.Context(), a, opts) },
	}
	listFlags(c, &opts)
	c.Flags().Lookup("quiet").Usage = "print names only"
	return c
}

func runNetworkList(ctx context.Context, a *app, opts listOpts) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	networks, err := c.ListNetworks(ctx)
	if err != nil {
		return err
	}
	switch {
	case opts.json:
		return printJSON(a.out, views(networks, viewNetwork))
	case opts.quiet:
		for _, n := range networks {
			fmt.Fprintln(a.out, n.GetName())
		}
		return nil
	}
	rows := make([][]string, 0, len(networks))
	for _, n := range networks {
		rows = append(rows, []string{n.GetName(), strings.Join(n.GetVms(), ", ")})
	}
	return printTable(a.out, []string{"NAME", "VMS"}, rows)
}
