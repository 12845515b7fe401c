package cli

import (
	"context"
	"strings"

	"github.com/spf13/cobra"
)

func newImageShowCmd(a *app) *cobra.Command {
	asJSON := false
	c := &cobra.Command{
		Use:   "show IMAGE",
		Short: "Show everything about an image",
		Example: `  banger image show debian
  banger image show --json debian`,
		Args:              needName("image"),
		ValidArgsFunction: first(a.completeImages),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runImageShow(cmd.Context(), a, args[0], asJSON)
		},
	}
	jsonFlag(c, &asJSON)
	return c
}

func runImageShow(ctx context.Context, a *app, name string, asJSON bool) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	i, err := c.GetImage(ctx, name)
	if err != nil {
		return err
	}
	if asJSON {
		return printJSON(a.out, viewImage(i))
	}
	kind := "registered (the file is yours)"
	if i.GetManaged() {
		kind = "managed"
	}
	return printFields(a.out, [][2]string{
		{"Name", i.GetName()},
		{"ID", i.GetId()},
		{"Kind", kind},
		{"Path", i.GetPath()},
		{"Size", humanBytes(i.GetSizeBytes()) + ", " + humanBytes(i.GetUsedBytes()) + " on disk"},
		{"Kernel", i.GetKernel()},
		{"Digest", i.GetDigest()},
		{"Source", i.GetSource()},
		{"User", i.GetUser()},
		{"Workdir", i.GetWorkdir()},
		{"Env", strings.Join(i.GetEnv(), " ")},
		{"Entrypoint", strings.Join(i.GetEntrypoint(), " ")},
		{"Cmd", strings.Join(i.GetCmd(), " ")},
		{"Used by", strings.Join(i.GetUsedBy(), ", ")},
		{"Created", showTime(i.GetCreatedAt())},
	})
}
