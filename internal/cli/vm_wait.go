package cli

import (
	"context"
	"fmt"
	"sync"

	"github.com/spf13/cobra"
)

func newWaitCmd(a *app) *cobra.Command {
	asJSON := false
	c := &cobra.Command{
		Use:   "wait VM...",
		Short: "Wait until VMs no longer run",
		Long:  "Wait returns when each VM has stopped, failed or been deleted, and prints its name and state then.",
		Example: `  banger vm wait calm-otter
  banger vm run -d --name job ./repo && banger vm wait job
  banger vm wait --json calm-otter brave-fox`,
		Args:              needVMs,
		ValidArgsFunction: a.completeVMs("running", "starting", "stopping"),
		RunE:              func(cmd *cobra.Command, args []string) error { return runWait(cmd.Context(), a, args, asJSON) },
	}
	jsonFlag(c, &asJSON)
	return c
}

// waitView is what --json prints of a VM that was waited for; last_error says why
// it failed, if it did.
type waitView struct {
	ID        string `json:"id"`
	Name      string `json:"name"`
	State     string `json:"state"`
	LastError string `json:"last_error"`
}

func runWait(ctx context.Context, a *app, refs []string, asJSON bool) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	ctx, stop := interruptible(ctx)
	defer stop()
	var ended sync.Map // ref -> waitView
	all := []waitView{}
	err = interrupted(a.forEach(ctx, c, refs, func(ctx context.Context, ref string) error {
		v, err := c.WaitVM(ctx, ref)
		if err != nil {
			return err
		}
		view := waitView{ID: v.GetId(), Name: v.GetName(), State: v.GetState(), LastError: v.GetLastError()}
		if view.State == "deleting" {
			view.State = "deleted"
		}
		ended.Store(ref, view)
		return nil
	}, func(ref string) {
		got, _ := ended.Load(ref)
		view := got.(waitView)
		if asJSON {
			all = append(all, view)
		} else {
			fmt.Fprintln(a.out, view.Name+" "+view.State)
		}
	}))
	if asJSON {
		if perr := printJSON(a.out, all); perr != nil {
			return perr
		}
	}
	return err
}
