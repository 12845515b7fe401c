package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"banger/internal/api/bangerv1"
)

func newImagePruneCmd(a *app) *cobra.Command {
	req := &bangerv1.PruneImagesRequest{}
	asJSON := false
	c := &cobra.Command{
		Use:   "prune",
		Short: "Remove images that no VM uses",
		Long: `Prune removes images that lost their name to a newer one and that no VM uses any more. With
--all it removes all that no VM uses, but those that are registered: their files are yours.
What was fetched of images, banger image cache prune removes.`,
		Example: `  banger image prune
  banger image prune --all --dry-run`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runImagePrune(cmd.Context(), a, req, asJSON)
		},
	}
	c.Flags().BoolVar(&req.All, "all", false, "remove those with a name as well")
	c.Flags().BoolVar(&req.DryRun, "dry-run", false, "show what would go, and remove nothing")
	jsonFlag(c, &asJSON)
	return c
}

func runImagePrune(ctx context.Context, a *app, req *bangerv1.PruneImagesRequest, asJSON bool) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	gone, err := c.PruneImages(ctx, req)
	if err != nil {
		return err
	}
	if asJSON {
		return printJSON(a.out, prunedView{Images: views(gone.GetImages(), viewImage), Bytes: gone.GetBytes()})
	}
	rows := make([][]string, 0, len(gone.GetImages()))
	for _, i := range gone.GetImages() {
		name := i.GetName()
		if name == "" {
			name = "(replaced)"
		}
		rows = append(rows, []string{name, i.GetId(), humanBytes(i.GetUsedBytes())})
	}
	if len(rows) > 0 {
		if err := printTable(a.out, []string{"NAME", "ID", "ON DISK"}, rows); err != nil {
			return err
		}
	}
	did := "freed"
	if req.DryRun {
		did = "would free"
	}
	fmt.Fprintf(a.out, "%s %s\n", did, humanBytes(gone.GetBytes()))
	return nil
}
