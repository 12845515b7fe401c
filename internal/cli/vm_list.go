package cli

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"banger/internal/api/bangerv1"
)

type listOpts struct {
	running bool // only those with a VMM
	quiet   bool
	json    bool
}

func newListCmd(a *app) *cobra.Command {
	opts, all := listOpts{}, false
	c := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List all VMs",
		Example: `  banger vm list
  banger vm list --running
  banger vm list --json`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runList(cmd.Context(), a, opts) },
	}
	c.Flags().BoolVarP(&all, "all", "a", false, "all VMs, which is the default here and not with banger ps")
	c.Flags().BoolVar(&opts.running, "running", false, "only VMs that run or are about to")
	c.MarkFlagsMutuallyExclusive("all", "running")
	listFlags(c, &opts)
	return c
}

func newPsCmd(a *app) *cobra.Command {
	opts, all := listOpts{}, false
	c := &cobra.Command{
		Use:   "ps",
		Short: "List running VMs",
		Example: `  banger ps
  banger ps --all`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			opts.running = !all
			return runList(cmd.Context(), a, opts)
		},
	}
	c.Flags().BoolVarP(&all, "all", "a", false, "VMs that do not run too")
	listFlags(c, &opts)
	return c
}

func listFlags(c *cobra.Command, opts *listOpts) {
	c.Flags().BoolVarP(&opts.quiet, "quiet", "q", false, "print ids only")
	jsonFlag(c, &opts.json)
}

func jsonFlag(c *cobra.Command, value *bool) {
	c.Flags().BoolVar(value, "json", false, "print JSON")
}

func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageErr(cmd, "%q takes no arguments, got %q", cmd.CommandPath(), args[0])
	}
	return nil
}

func runList(ctx context.Context, a *app, opts listOpts) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	vms, err := c.ListVMs(ctx)
	if err != nil {
		return err
	}
	if opts.running {
		live := []string{"creating", "starting", "running", "stopping"}
		vms = slices.DeleteFunc(vms, func(v *bangerv1.VM) bool { return !slices.Contains(live, v.GetState()) })
	}
	switch {
	case opts.json:
		return printJSON(a.out, views(vms, viewVM))
	case opts.quiet:
		for _, v := range vms {
			fmt.Fprintln(a.out, v.GetId())
		}
		return nil
	}
	now := time.Now()
	rows := make([][]string, 0, len(vms))
	for _, v := range vms {
		state := v.GetState()
		if v.GetPaused() != "" {
			state += ", paused"
		}
		rows = append(rows, []string{
			v.GetName(), v.GetId(), state, v.GetImage(), fmt.Sprint(v.GetCpus()),
			humanBytes(v.GetMemoryMib() << 20), humanBytes(v.GetDiskBytes()), v.GetNet(), humanAge(v.GetCreatedAt().AsTime(), now),
		})
	}
	return printTable(a.out, []string{"NAME", "ID", "STATE", "IMAGE", "CPUS", "MEMORY", "DISK", "NET", "CREATED"}, rows)
}
