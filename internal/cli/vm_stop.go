package cli

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"banger/internal/api/bangerv1"
	"banger/internal/client"
	"banger/internal/errdefs"
)

type stopOpts struct {
	refs    []string
	timeout time.Duration // 0: the configured one
}

func newStopCmd(a *app) *cobra.Command {
	opts := stopOpts{}
	c := &cobra.Command{
		Use:   "stop VM...",
		Short: "Stop VMs in order",
		Long: `Stop asks the guest to power off, and ends the VM firmly when that takes longer
than the timeout. Written files are flushed to the disk first in either case.`,
		Example: `  banger vm stop calm-otter
  banger vm stop --timeout 60s calm-otter brave-fox`,
		Args:              needVMs,
		ValidArgsFunction: a.completeVMs("running", "starting"),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.refs = args
			return runStop(cmd.Context(), a, opts)
		},
	}
	stopTimeoutFlag(c, &opts.timeout)
	return c
}

func stopTimeoutFlag(c *cobra.Command, value *time.Duration) {
	c.Flags().DurationVar(value, "timeout", 0, "how long an orderly stop may take, e.g. 60s (default: the configured `duration`)")
}

// stopRequest checks the timeout and makes the request.
func stopRequest(ref string, timeout time.Duration) (*bangerv1.StopRequest, error) {
	if timeout < 0 {
		return nil, errdefs.Invalid("--timeout %s is negative", timeout).WithHint("to end a VM at once: banger vm kill %s", ref)
	}
	return &bangerv1.StopRequest{Ref: ref, TimeoutMillis: timeout.Milliseconds()}, nil
}

func runStop(ctx context.Context, a *app, opts stopOpts) error {
	return verb{
		begin: func(ctx context.Context, c *client.Client, ref string) (*bangerv1.Operation, error) {
			req, err := stopRequest(ref, opts.timeout)
			if err != nil {
				return nil, err
			}
			return c.StopVM(ctx, req)
		},
	}.run(ctx, a, opts.refs)
}
