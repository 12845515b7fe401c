package cli

import (
	"context"

	"github.com/spf13/cobra"

	"banger/internal/api/bangerv1"
	"banger/internal/client"
)

func newImageCatalogCmd(a *app) *cobra.Command {
	return newCatalogCmd(a, "image", "catalog:NAME", (*client.Client).OfferedImages)
}

func newKernelCatalogCmd(a *app) *cobra.Command {
	return newCatalogCmd(a, "kernel", "NAME", (*client.Client).OfferedKernels)
}

// newCatalogCmd is for images and for kernels; pulled is how one of them is named to be.
func newCatalogCmd(a *app, thing, pulled string, list func(*client.Client, context.Context) ([]*bangerv1.CatalogOffer, error)) *cobra.Command {
	c := &cobra.Command{Use: "catalog", Short: "See which " + thing + "s the catalogs have"}
	asJSON := false
	l := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the " + thing + "s that the catalogs have",
		Long: `List asks the catalogs that images.catalogs in the configuration names, and checks their
signatures. One that is not reached is replaced by what was last seen of it. What is
listed, banger ` + thing + ` pull ` + pulled + ` makes. Of a name that several have the first counts.`,
		Example: `  banger ` + thing + ` catalog list
  banger ` + thing + ` catalog list --json`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			offers, err := list(c, cmd.Context())
			if err != nil {
				return err
			}
			return printOffers(a, offers, asJSON)
		},
	}
	jsonFlag(l, &asJSON)
	c.AddCommand(l)
	return groupOnly(c)
}

func printOffers(a *app, offers []*bangerv1.CatalogOffer, asJSON bool) error {
	if asJSON {
		return printJSON(a.out, views(offers, viewOffer))
	}
	rows := make([][]string, 0, len(offers))
	for _, o := range offers {
		catalog := o.GetCatalog()
		if catalog == "" {
			catalog = "(built in)"
		}
		rows = append(rows, []string{
			o.GetName(), humanBytes(o.GetSizeBytes()), humanBytes(o.GetUnpackedBytes()), o.GetKernel(), catalog, o.GetDescription(),
		})
	}
	return printTable(a.out, []string{"NAME", "SIZE", "UNPACKED", "KERNEL", "CATALOG", "DESCRIPTION"}, rows)
}
