package cli

import (
	"github.com/spf13/cobra"
)

func newDaemonCmd(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:   "daemon",
		Short: "Manage the daemon",
		Long: `The daemon starts by itself when a command needs it. When banger was upgraded, the
first command that finds the daemon idle restarts it; open commands, shells and copies
keep it, and until they end the old one serves. VMs run on without a daemon and are
found again.`,
	}
	c.AddCommand(newDaemonStartCmd(a), newDaemonStopCmd(a), newDaemonStatusCmd(a), newDaemonLogsCmd(a))
	return groupOnly(c)
}
