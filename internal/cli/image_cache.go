package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"banger/internal/api/bangerv1"
	"banger/internal/config"
	"banger/internal/errdefs"
)

func newImageCacheCmd(a *app) *cobra.Command {
	c := &cobra.Command{Use: "cache", Short: "Manage what was fetched of images"}
	c.AddCommand(newImageCacheListCmd(a), newImageCachePruneCmd(a))
	return groupOnly(c)
}

func newImageCacheListCmd(a *app) *cobra.Command {
	asJSON := false
	c := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List what was fetched of images and is kept",
		Long: `List shows the layers of images, and what describes these, the longest unused first. No
VM needs any of it: it is kept for images that share it, and for pulls that were
interrupted. How much is kept, images.cache in the configuration says.`,
		Example: `  banger image cache list
  banger image cache list --json`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runImageCacheList(cmd.Context(), a, asJSON)
		},
	}
	jsonFlag(c, &asJSON)
	return c
}

func runImageCacheList(ctx context.Context, a *app, asJSON bool) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	cache, err := c.ImageCache(ctx)
	if err != nil {
		return err
	}
	return printCache(a, cache, asJSON)
}

func printCache(a *app, cache *bangerv1.ImageCache, asJSON bool) error {
	if asJSON {
		return printJSON(a.out, viewCache(cache))
	}
	now := time.Now()
	rows := make([][]string, 0, len(cache.GetBlobs()))
	for _, b := range cache.GetBlobs() {
		used := humanAge(b.GetUsedAt().AsTime(), now)
		if b.GetInUse() {
			used = "in use"
		}
		rows = append(rows, []string{shortDigest(b.GetDigest()), humanBytes(b.GetSizeBytes()), used, strings.Join(b.GetReferences(), ", ")})
	}
	return printTable(a.out, []string{"DIGEST", "SIZE", "USED", "IMAGES"}, rows)
}

// shortDigest is enough of a digest to tell it from others.
func shortDigest(d string) string {
	_, hex, _ := strings.Cut(d, ":")
	return hex[:min(12, len(hex))]
}

type cachePruneOpts struct {
	request bangerv1.PruneCacheRequest
	keep    string
	json    bool
}

func newImageCachePruneCmd(a *app) *cobra.Command {
	opts := cachePruneOpts{}
	c := &cobra.Command{
		Use:   "prune",
		Short: "Remove what was fetched of images",
		Long: `Prune removes what nobody has used for a week from the cache of images, downloads that
nobody has gone on with for so long included. What a pull is using stays, and so do
images: of theirs nothing is here.`,
		Example: `  banger image cache prune
  banger image cache prune --keep 5G
  banger image cache prune --all --dry-run`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("keep") {
				if opts.request.All {
					return usageErr(cmd, "--all and --keep exclude each other")
				}
				n, err := config.ParseSize(opts.keep)
				if err != nil {
					return errdefs.Invalid("--keep: %w", err).WithHint("write a number with M, G or T, e.g. --keep 5G")
				}
				bytes := n.Bytes()
				opts.request.KeepBytes = &bytes
			}
			return runImageCachePrune(cmd.Context(), a, &opts)
		},
	}
	c.Flags().BoolVar(&opts.request.All, "all", false, "remove everything that no pull is using")
	c.Flags().StringVar(&opts.keep, "keep", "", "remove the longest unused, until no more than this `size` is left")
	c.Flags().BoolVar(&opts.request.DryRun, "dry-run", false, "show what would go, and remove nothing")
	jsonFlag(c, &opts.json)
	return c
}

func runImageCachePrune(ctx context.Context, a *app, opts *cachePruneOpts) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	gone, err := c.PruneImageCache(ctx, &opts.request)
	if err != nil {
		return err
	}
	if opts.json {
		return printCache(a, gone, true)
	}
	if len(gone.GetBlobs()) > 0 {
		if err := printCache(a, gone, false); err != nil {
			return err
		}
	}
	total := gone.GetUnfinishedBytes()
	for _, b := range gone.GetBlobs() {
		total += b.GetSizeBytes()
	}
	did := "freed"
	if opts.request.DryRun {
		did = "would free"
	}
	fmt.Fprintf(a.out, "%s %s\n", did, humanBytes(total))
	return nil
}
