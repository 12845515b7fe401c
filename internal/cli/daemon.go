package cli

import (
	"github.com/spf13/cobra"
)

func newDaemonCmd(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:   "daemon",
		Short: "Manage the daemon",
		Long: `The daemon starts by itself when a command needs it, and is restarted when banger
was upgraded. VMs run on without it and are found again.`,
	}
	c.AddCommand(newDaemonStartCmd(a), newDaemonStopCmd(a), newDaemonStatusCmd(a), newDaemonLogsCmd(a))
	return groupOnly(c)
}
