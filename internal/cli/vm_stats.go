package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"banger/internal/api/bangerv1"
	"banger/internal/client"
)

func newStatsCmd(a *app) *cobra.Command {
	opts := showOpts{}
	c := &cobra.Command{
		Use:   "stats VM...",
		Short: "Show what running VMs use",
		Long: `Stats prints what VMs use now, and what they have used since they were started: one
sample. With --json one object per VM, one after another.

CPU time and memory are those of the process that runs the VM. How a guest uses its
memory is what the guest says, not older than a minute. What is not known is left out
(null with --json): QEMU does not count packets, and has no word of the guest's memory.`,
		Example: `  banger vm stats calm-otter
  banger vm stats --json calm-otter | jq .disk.write_bytes`,
		Args:              needVMs,
		ValidArgsFunction: a.completeVMs("running"),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.refs = args
			return runStats(cmd.Context(), a, opts)
		},
	}
	jsonFlag(c, &opts.json)
	return c
}

func runStats(ctx context.Context, a *app, opts showOpts) error {
	return describeEach(ctx, a, opts, (*client.Client).VMStats, func(s *bangerv1.VMStats) (any, [][2]string) { return viewStats(s), statsFields(s) })
}

func statsFields(s *bangerv1.VMStats) [][2]string {
	guest := ""
	if s.GuestTotalBytes != nil {
		guest = fmt.Sprintf("%s, %s free, %s available", humanBytes(s.GetGuestTotalBytes()), humanBytes(s.GetGuestFreeBytes()), humanBytes(s.GetGuestAvailableBytes()))
	}
	moved := func(t *bangerv1.VMTransfer, read, write string) string {
		if t == nil {
			return ""
		}
		return fmt.Sprintf("%s %s (%d), %s %s (%d)", humanBytes(t.GetReadBytes()), read, t.GetReads(), humanBytes(t.GetWriteBytes()), write, t.GetWrites())
	}
	return [][2]string{
		{"Name", s.GetName()},
		{"Running for", s.GetAt().AsTime().Sub(s.GetStartedAt().AsTime()).Round(time.Second).String()},
		{"CPU time", time.Duration(s.GetCpuNanos()).String()},
		{"Memory", humanBytes(s.GetMemoryBytes())},
		{"In the guest", guest},
		{"Disk", moved(s.GetDisk(), "read", "written")},
		{"Network", moved(s.GetNet(), "received", "sent")},
	}
}
