package cli

import (
	"github.com/spf13/cobra"
)

func newImageCmd(a *app) *cobra.Command {
	c := &cobra.Command{Use: "image", Aliases: []string{"images"}, Short: "Manage images, the root filesystems of VMs"}
	c.AddCommand(
		newImageListCmd(a), newImageShowCmd(a), newImagePullCmd(a), newImageBuildCmd(a), newImageRegisterCmd(a), newImageTagCmd(a), newImageRmCmd(a),
		newImageSaveCmd(a), newImageLoadCmd(a), newImagePushCmd(a), newImagePromoteCmd(a),
		newImagePruneCmd(a), newImageCacheCmd(a), newImageCatalogCmd(a),
	)
	return groupOnly(c)
}

// needName asks for exactly one name of a thing.
func needName(thing string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != 1 || args[0] == "" {
			return usageErr(cmd, "%q needs the name of one %s", cmd.CommandPath(), thing)
		}
		return nil
	}
}

// needNames asks for at least one name.
func needNames(thing string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return usageErr(cmd, "%q needs the name of at least one %s", cmd.CommandPath(), thing)
		}
		return checkRefs(cmd, args)
	}
}

// needTwo asks for exactly two arguments.
func needTwo(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != 2 || args[0] == "" || args[1] == "" {
			return usageErr(cmd, "%q needs %s", cmd.CommandPath(), what)
		}
		return nil
	}
}
