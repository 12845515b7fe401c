package cli

import (
	"context"

	"github.com/spf13/cobra"

	"banger/internal/api/bangerv1"
	"banger/internal/client"
)

func newSetCmd(a *app) *cobra.Command {
	sh := shape{}
	c := &cobra.Command{
		Use:   "set VM...",
		Short: "Change the CPUs, the memory or the disk of VMs",
		Long: `Set changes the shape of stopped VMs: their CPUs, their memory, and the size of the
disk, which can only grow. The guest's file system grows with it when the VM starts next.

The disk of a running VM grows too, and its file system at once, on QEMU with any disk
but one by dmsnap.`,
		Example: `  banger vm set --disk 32G calm-otter
  banger vm set --cpus 4 --memory 8G calm-otter`,
		Args:              needVMs,
		ValidArgsFunction: a.completeVMs(),
		RunE: func(cmd *cobra.Command, args []string) error {
			given := cmd.Flags().Changed
			if !given("cpus") && !given("memory") && !given("disk") {
				return usageErr(cmd, "%q needs --cpus, --memory or --disk", cmd.CommandPath())
			}
			req, err := sh.request(cmd)
			if err != nil {
				return err
			}
			return runSet(cmd.Context(), a, args, req)
		},
	}
	sh.registerSize(c, "as it is")
	return c
}

func runSet(ctx context.Context, a *app, refs []string, shape *bangerv1.CreateRequest) error {
	return verb{
		begin: func(ctx context.Context, c *client.Client, ref string) (*bangerv1.Operation, error) {
			return c.SetVM(ctx, &bangerv1.SetRequest{
				Ref: ref, Cpus: shape.Cpus, MemoryMib: shape.MemoryMib, DiskBytes: shape.DiskBytes,
			})
		},
	}.run(ctx, a, refs)
}
