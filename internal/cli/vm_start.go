package cli

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"banger/internal/api"
	"banger/internal/api/bangerv1"
	"banger/internal/client"
	"banger/internal/errdefs"
	"banger/internal/guest"
)

type startOpts struct {
	refs []string
	wait string
}

func newStartCmd(a *app) *cobra.Command {
	opts := startOpts{}
	c := &cobra.Command{
		Use:   "start VM...",
		Short: "Start stopped VMs",
		Example: `  banger vm start calm-otter
  banger vm start --wait system calm-otter brave-fox`,
		Args:              needVMs,
		ValidArgsFunction: a.completeVMs("stopped"),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.refs = args
			return runStart(cmd.Context(), a, opts)
		},
	}
	waitFlag(c, &opts.wait)
	return c
}

func runStart(ctx context.Context, a *app, opts startOpts) error {
	if err := checkWait(opts.wait); err != nil {
		return err
	}
	v := verb{
		cancel: true,
		begin: func(ctx context.Context, c *client.Client, ref string) (*bangerv1.Operation, error) {
			return c.StartVM(ctx, ref)
		},
	}
	if opts.wait == waitSystem {
		v.after = a.waitSystem
	}
	return v.run(ctx, a, opts.refs)
}

// needVMs asks for at least one reference.
func needVMs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return usageErr(cmd, "%q needs the name of a VM", cmd.CommandPath())
	}
	return checkRefs(cmd, args)
}

// needVM asks for exactly one reference.
func needVM(cmd *cobra.Command, args []string) error {
	if len(args) != 1 {
		return usageErr(cmd, "%q needs the name of one VM", cmd.CommandPath())
	}
	return checkRefs(cmd, args)
}

func checkRefs(cmd *cobra.Command, refs []string) error {
	for _, ref := range refs {
		if ref == "" {
			return usageErr(cmd, "the name of a VM is empty")
		}
	}
	return nil
}

// waitSystem is the value of --wait that waits for the init system.
const waitSystem = "system"

func waitFlag(c *cobra.Command, value *string) {
	c.Flags().StringVar(value, "wait", "", "wait for `what`: system (the init system has started everything)")
	complete(c, "wait", fixed(waitSystem))
}

func checkWait(value string) error {
	if value != "" && value != waitSystem {
		return usageTry("--wait system", "--wait %q is not known", value)
	}
	return nil
}

// awaitSystem is waitSystem as a stage of making a VM.
func (a *app) awaitSystem(ctx context.Context, c *client.Client, m made) error {
	began := time.Now()
	a.status.draw("  system")
	if err := a.waitSystem(ctx, c, m.name); err != nil {
		return err
	}
	a.status.clear()
	a.stageDone("system", time.Since(began))
	return nil
}

// waitSystem returns when the VM's init system has settled.
func (a *app) waitSystem(ctx context.Context, c *client.Client, ref string) error {
	conn, err := c.OpenStream(ctx, api.StreamPath(ref))
	if err != nil {
		return err
	}
	done, err := guest.Call(ctx, conn, guest.Request{Kind: guest.KindWaitSystem})
	if err != nil {
		return errdefs.Wrap(err, "wait for the init system of vm %q", ref)
	}
	if done.State == "degraded" {
		a.note("vm %q: some units failed to start (systemctl --failed shows which)", ref)
	}
	return nil
}
