package cli

import (
	"os"

	"github.com/spf13/cobra"

	"banger/internal/errdefs"
	"banger/internal/systemd"
)

func newSystemCmd(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:   "system",
		Short: "Install the daemon for all of this host, and what it uses",
		Long:  `Nothing needs installing to use banger: the daemon starts when a command needs it.`,
	}
	c.AddCommand(newSystemInstallCmd(a), newSystemUninstallCmd(a), newSystemFetchCmd(a))
	return groupOnly(c)
}

// needSystemd refuses a user who may not, and a host that cannot, have services.
func needSystemd(what string) error {
	if os.Geteuid() != 0 {
		return errdefs.Permission("%s: only root may", what).WithHint("run it with sudo")
	}
	if !systemd.Booted() {
		return errdefs.Unsupported("%s: systemd does not run on this host", what).
			WithHint("nothing needs installing: the daemon starts when a command needs it (banger daemon start)")
	}
	return nil
}
