package cli

import (
	"github.com/spf13/cobra"
)

func newNetworkCmd(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "network", Aliases: []string{"networks"}, Short: "Manage networks, whose VMs see each other",
		Long: `VMs on one network reach each other, at any port, and find each other by NAME and
NAME.vm. They see no other VMs, and are not seen by any. Networks are of the bridge, and
so for a daemon that is root.`,
	}
	c.AddCommand(newNetworkListCmd(a), newNetworkShowCmd(a), newNetworkCreateCmd(a), newNetworkRmCmd(a))
	return groupOnly(c)
}
