package cli

import (
	"context"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"banger/internal/api/bangerv1"
	"banger/internal/model"
)

func newPortAddCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "add VM PORT...",
		Short: "Forward more ports to a VM",
		Long: `Add forwards ports of this host to a VM, from now on if it runs, and prints them. All are
added, or none. They stay until they are removed or the VM is deleted.

PORT is HOSTPORT:GUESTPORT, GUESTPORT (a free port of the host is chosen), or
ADDRESS:HOSTPORT:GUESTPORT, with an IPv6 address in brackets. 0.0.0.0 lets other
machines in.`,
		Example: `  banger port add calm-otter 8080:80
  banger port add calm-otter 5432 [::]:2222:22`,
		Args:              needVMAndPorts,
		ValidArgsFunction: first(a.completeVMs()),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runPortAdd(cmd.Context(), a, args[0], args[1:])
		},
	}
}

func runPortAdd(ctx context.Context, a *app, ref string, texts []string) error {
	ports, err := wirePorts(texts, model.ParsePort)
	if err != nil {
		return err
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	v, err := c.GetVM(ctx, ref)
	if err != nil {
		return err
	}
	all, err := c.AddPorts(ctx, ref, ports)
	if err != nil {
		return err
	}
	for _, p := range all {
		had := slices.ContainsFunc(v.GetPorts(), func(o *bangerv1.Port) bool { return hostEnd(o) == hostEnd(p) })
		if !had {
			fmt.Fprintf(a.out, "%s:%d\n", oneLine(hostEnd(p)), p.GetGuestPort())
		}
	}
	return nil
}
