package cli

import (
	"context"
	"fmt"
	"sync"

	"github.com/spf13/cobra"
)

func newWaitCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "wait VM...",
		Short: "Wait until VMs no longer run",
		Long:  "Wait returns when each VM has stopped, failed or been deleted, and prints its name and state then.",
		Example: `  banger vm wait calm-otter
  banger vm run -d --name job ./repo && banger vm wait job`,
		Args:              needVMs,
		ValidArgsFunction: a.completeVMs("running", "starting", "stopping"),
		RunE:              func(cmd *cobra.Command, args []string) error { return runWait(cmd.Context(), a, args) },
	}
}

func runWait(ctx context.Context, a *app, refs []string) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	ctx, stop := interruptible(ctx)
	defer stop()
	var ended sync.Map // ref -> line to print
	return interrupted(a.forEach(ctx, c, refs, func(ctx context.Context, ref string) error {
		v, err := c.WaitVM(ctx, ref)
		if err != nil {
			return err
		}
		state := v.GetState()
		if state == "deleting" {
			state = "deleted"
		}
		ended.Store(ref, v.GetName()+" "+state)
		return nil
	}, func(ref string) {
		line, _ := ended.Load(ref)
		fmt.Fprintln(a.out, line)
	}))
}
