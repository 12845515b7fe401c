package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
)

func newImageListCmd(a *app) *cobra.Command {
	opts := listOpts{}
	c := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List images",
		Example: `  banger image list
  banger image list --json`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runImageList(cmd.Context(), a, opts) },
	}
	listFlags(c, &opts)
	c.Flags().Lookup("quiet").Usage = "print names only"
	return c
}

func runImageList(ctx context.Context, a *app, opts listOpts) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	images, err := c.ListImages(ctx)
	if err != nil {
		return err
	}
	switch {
	case opts.json:
		return printJSON(a.out, views(images, viewImage))
	case opts.quiet:
		for _, i := range images {
			fmt.Fprintln(a.out, i.GetName())
		}
		return nil
	}
	now := time.Now()
	rows := make([][]string, 0, len(images))
	for _, i := range images {
		kind := "registered"
		if i.GetManaged() {
			kind = "managed"
		}
		rows = append(rows, []string{
			i.GetName(), i.GetId(), kind, humanBytes(i.GetSizeBytes()), humanBytes(i.GetUsedBytes()),
			fmt.Sprint(len(i.GetUsedBy())), humanAge(i.GetCreatedAt().AsTime(), now),
		})
	}
	return printTable(a.out, []string{"NAME", "ID", "KIND", "SIZE", "ON DISK", "VMS", "CREATED"}, rows)
}
