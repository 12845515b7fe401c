package cli

import (
	"context"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"banger/internal/client"
	"banger/internal/model"
)

func newPortRmCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "rm VM PORT...",
		Aliases: []string{"remove"},
		Short:   "Stop forwarding ports to a VM",
		Long: `Rm stops forwarding ports of this host to a VM and cuts off connections through them. All
are removed, or none. PORT is HOSTPORT or ADDRESS:HOSTPORT, as banger port list shows
it; what was given to add will do as well, if it names a port of the host.`,
		Example:           `  banger port rm calm-otter 8080`,
		Args:              needVMAndPorts,
		ValidArgsFunction: a.completePorts,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runPortRm(cmd.Context(), a, args[0], args[1:])
		},
	}
}

func runPortRm(ctx context.Context, a *app, ref string, texts []string) error {
	ports, err := wirePorts(texts, model.ParseHostPort)
	if err != nil {
		return err
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	if err := c.RemovePorts(ctx, ref, ports); err != nil {
		return err
	}
	for _, p := range ports {
		fmt.Fprintln(a.out, oneLine(hostEnd(p)))
	}
	return nil
}

// completePorts completes a VM, then ports of the host that are forwarded to it.
func (a *app) completePorts(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return a.completeVMs()(cmd, args, word)
	}
	return a.names(func(ctx context.Context, c *client.Client) ([]string, error) {
		v, err := c.GetVM(ctx, args[0])
		var all []string
		for _, p := range v.GetPorts() {
			all = append(all, hostEnd(p))
		}
		return slices.Clip(all), err
	})(cmd, args, word)
}
