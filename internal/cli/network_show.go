package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"banger/internal/api/bangerv1"
)

func newNetworkShowCmd(a *app) *cobra.Command {
	asJSON := false
	c := &cobra.Command{
		Use:     "show NETWORK",
		Aliases: []string{"inspect"},
		Short:   "Show the VMs on a network, with their addresses and ports",
		Long: `Show prints the VMs on a network, running or not, each with the name and the addresses
at which the others reach it, and with the ports of this host that lead to it.`,
		Example: `  banger network show lab
  banger network show --json lab | jq -r '.members[].addresses[0]'`,
		Args:              needName("network"),
		ValidArgsFunction: first(a.completeNetworks),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runNetworkShow(cmd.Context(), a, args[0], asJSON)
		},
	}
	jsonFlag(c, &asJSON)
	return c
}

func runNetworkShow(ctx context.Context, a *app, name string, asJSON bool) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	n, err := c.GetNetwork(ctx, name)
	if err != nil {
		return err
	}
	vms, err := c.ListVMs(ctx)
	if err != nil {
		return err
	}
	if asJSON {
		return printJSON(a.out, viewMembers(n, vms))
	}
	var rows [][]string
	for _, v := range membersOf(n, vms) {
		rows = append(rows, []string{v.GetName(), v.GetState(), v.GetDnsName(), strings.Join(v.GetAddresses(), ", "), portList(v.GetPorts())})
	}
	if err := printFields(a.out, [][2]string{{"Name", n.GetName()}, {"VMs", fmt.Sprint(len(rows))}}); err != nil || len(rows) == 0 {
		return err
	}
	fmt.Fprintln(a.out)
	return printTable(a.out, []string{"NAME", "STATE", "DNS NAME", "ADDRESSES", "PORTS"}, rows)
}

// membersOf are the VMs on a network, as they are listed.
func membersOf(n *bangerv1.Network, vms []*bangerv1.VM) (on []*bangerv1.VM) {
	for _, v := range vms {
		if v.GetNetwork() == n.GetName() {
			on = append(on, v)
		}
	}
	return on
}
