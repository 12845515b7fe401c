package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
)

func newKernelListCmd(a *app) *cobra.Command {
	opts := listOpts{}
	c := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List kernels",
		Example: `  banger kernel list
  banger kernel list --json`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runKernelList(cmd.Context(), a, opts) },
	}
	listFlags(c, &opts)
	c.Flags().Lookup("quiet").Usage = "print names only"
	return c
}

func runKernelList(ctx context.Context, a *app, opts listOpts) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	kernels, err := c.ListKernels(ctx)
	if err != nil {
		return err
	}
	switch {
	case opts.json:
		return printJSON(a.out, views(kernels, viewKernel))
	case opts.quiet:
		for _, k := range kernels {
			fmt.Fprintln(a.out, k.GetName())
		}
		return nil
	}
	now := time.Now()
	rows := make([][]string, 0, len(kernels))
	for _, k := range kernels {
		rows = append(rows, []string{
			k.GetName(), k.GetId(), k.GetRelease(), humanBytes(k.GetUsedBytes()),
			fmt.Sprint(len(k.GetUsedBy())), humanAge(k.GetCreatedAt().AsTime(), now),
		})
	}
	return printTable(a.out, []string{"NAME", "ID", "RELEASE", "ON DISK", "VMS", "CREATED"}, rows)
}
