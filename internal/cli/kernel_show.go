package cli

import (
	"context"
	"strings"

	"github.com/spf13/cobra"
)

func newKernelShowCmd(a *app) *cobra.Command {
	asJSON := false
	c := &cobra.Command{
		Use:   "show KERNEL",
		Short: "Show everything about a kernel",
		Example: `  banger kernel show debian
  banger kernel show --json debian`,
		Args:              needName("kernel"),
		ValidArgsFunction: first(a.completeKernels),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runKernelShow(cmd.Context(), a, args[0], asJSON)
		},
	}
	jsonFlag(c, &asJSON)
	return c
}

func runKernelShow(ctx context.Context, a *app, name string, asJSON bool) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	k, err := c.GetKernel(ctx, name)
	if err != nil {
		return err
	}
	if asJSON {
		return printJSON(a.out, viewKernel(k))
	}
	return printFields(a.out, [][2]string{
		{"Name", k.GetName()},
		{"ID", k.GetId()},
		{"Release", k.GetRelease()},
		{"Vmlinux", k.GetVmlinux()},
		{"bzImage", k.GetBzimage()},
		{"Modules", k.GetModules()},
		{"Source", k.GetSource()},
		{"On disk", humanBytes(k.GetUsedBytes())},
		{"Used by", strings.Join(k.GetUsedBy(), ", ")},
		{"Created", showTime(k.GetCreatedAt())},
	})
}
