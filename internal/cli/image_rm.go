package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"banger/internal/client"
)

func newImageRmCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "rm IMAGE...",
		Aliases:           []string{"delete"},
		Short:             "Remove images that no VM uses",
		Long:              "Rm removes images. Of a registered one the file stays.",
		Example:           `  banger image rm debian`,
		Args:              needNames("image"),
		ValidArgsFunction: a.completeImages,
		RunE: func(cmd *cobra.Command, args []string) error {
			return removeEach(cmd.Context(), a, args, (*client.Client).RemoveImage)
		},
	}
}

// removeEach removes several things one after another and prints their names.
func removeEach(ctx context.Context, a *app, names []string, remove func(*client.Client, context.Context, string) error) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	var failures manyErrors
	seen := make(map[string]bool, len(names))
	for _, name := range names {
		if seen[name] {
			continue
		}
		seen[name] = true
		if err := remove(c, ctx, name); err != nil {
			failures = append(failures, err)
			continue
		}
		fmt.Fprintln(a.out, name)
	}
	if len(failures) > 0 {
		return failures
	}
	return nil
}
