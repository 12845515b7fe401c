package cli

import (
	"github.com/spf13/cobra"
)

func newShellCmd(a *app) *cobra.Command {
	opts := execOpts{}
	c := &cobra.Command{
		Use:   "shell VM",
		Short: "Open a shell in a running VM",
		Long: `Shell opens the user's login shell in a VM, on a terminal when we have one. Without
a terminal it reads commands from stdin. The VM runs on when the shell ends.

Three quick Ctrl-C after which nothing is shown leave a VM that is stuck.`,
		Example: `  banger shell calm-otter
  banger shell --user root calm-otter
  echo 'uname -a' | banger shell calm-otter`,
		Args:              needVM,
		ValidArgsFunction: first(a.completeVMs("running")),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.ref = args[0]
			if err := opts.session.check(cmd, a, true); err != nil {
				return err
			}
			return runExec(cmd.Context(), a, opts)
		},
	}
	commandFlags(c, &opts)
	return c
}
