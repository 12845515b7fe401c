package cli

import (
	"context"
	"fmt"
	"maps"
	"slices"
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
	var labels []string
	for _, key := range slices.Sorted(maps.Keys(i.GetLabels())) {
		labels = append(labels, key+"="+i.GetLabels()[key])
	}
	fields := [][2]string{
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
		{"Stop signal", i.GetStopSignal()},
		{"Ports", strings.Join(i.GetExposedPorts(), ", ")},
		{"Volumes", strings.Join(i.GetVolumes(), ", ")},
		{"Labels", strings.Join(labels, ", ")},
		{"Used by", strings.Join(i.GetUsedBy(), ", ")},
		{"Created", showTime(i.GetCreatedAt())},
	}
	for n, l := range i.GetLayers() {
		fields = append(fields, [2]string{fmt.Sprintf("Layer %d", n+1), l.GetDigest() + ", " + humanBytes(l.GetSizeBytes())})
	}
	return printFields(a.out, fields)
}
