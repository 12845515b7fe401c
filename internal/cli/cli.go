// Package cli is the command line of banger: one file per command. A command
// parses its flags into options and hands them to a run function; talking to the
// daemon is the business of package client, reading host trees that of package
// workspace, and errors become words and exit codes in one place (errors.go).
package cli

import (
	"context"
	"os"

	"github.com/spf13/cobra"

	"banger/internal/paths"
	"banger/internal/version"
)

// Main runs banger with the arguments after the program name and returns its
// exit code.
func Main(args []string, stdin, stdout, stderr *os.File) int {
	a := newApp(stdin, stdout, stderr)
	defer a.close()
	root := newRootCmd(a)
	root.SetArgs(args)
	return a.report(root.ExecuteContext(context.Background()))
}

const rootLong = `banger gives a disposable Linux machine in one command:

  banger vm run ./repo -- make test

boots a microVM, puts the repository in it, runs the command and brings its exit
code back.

A VM is referred to by its name, its id, or an unambiguous prefix of its id.

Exit codes:
  0        success
  1        the command failed
  2        wrong usage
  124      run, exec: --timeout elapsed
  125      run, exec, shell: banger itself failed
  126      run, exec: the command cannot be executed in the VM
  127      run, exec: there is no such command in the VM
  130      interrupted
  any      run, exec, shell: otherwise the command's own, 128+n when signal n ended it

Environment:
  BANGER_STATE_DIR  state directory of your daemon, and so its socket
  BANGER_SOCKET     socket of the daemon to talk to, like --socket
  BANGER_CONFIG     config file of the daemon
  NO_COLOR          no colours`

// newRootCmd builds the whole command tree.
func newRootCmd(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:               "banger",
		Short:             "Disposable Linux machines in one command",
		Long:              rootLong,
		Version:           version.String(),
		SilenceErrors:     true,
		SilenceUsage:      true,
		DisableAutoGenTag: true,
	}
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.SetIn(a.in)
	root.SetVersionTemplate("banger {{.Version}}\n")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usageErr(cmd, "%w", err) })
	root.PersistentFlags().StringVar(&a.socket, "socket", os.Getenv(paths.EnvSocket), "`path` of the daemon's socket")
	root.PersistentFlags().Lookup("socket").DefValue = ""
	root.AddGroup(
		&cobra.Group{ID: groupMain, Title: "Virtual machines:"},
		&cobra.Group{ID: groupManage, Title: "Images, kernels, networks, daemon:"},
	)
	inGroup := func(group string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	inGroup(groupMain,
		newVMCmd(a), newRunCmd(a), newExecCmd(a), newShellCmd(a), newCpCmd(a), newLogsCmd(a), newPsCmd(a), newPortCmd(a))
	inGroup(groupManage,
		newImageCmd(a), newKernelCmd(a), newNetworkCmd(a), newDaemonCmd(a), newSystemCmd(a), newDoctorCmd(a), newConfigCmd(a),
		newSSHConfigCmd(a))
	root.AddCommand(newVersionCmd(a))
	groupOnly(root)
	return root
}

// The groups of the root help.
const (
	groupMain   = "main"
	groupManage = "manage"
)

// groupOnly makes a command that only holds others print its help, and refuse a
// word that is none of them.
func groupOnly(c *cobra.Command) *cobra.Command {
	c.Args, c.SuggestionsMinimumDistance = cobra.ArbitraryArgs, 2
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return cmd.Help()
		}
		if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
			return usageTry(cmd.CommandPath()+" "+near[0], "unknown command %q for %q", args[0], cmd.CommandPath())
		}
		return usageErr(cmd, "unknown command %q for %q", args[0], cmd.CommandPath())
	}
	return c
}

// newVMCmd groups the commands that manage VMs.
func newVMCmd(a *app) *cobra.Command {
	c := &cobra.Command{Use: "vm", Short: "Run and manage VMs"}
	c.AddCommand(
		newRunCmd(a), newCreateCmd(a), newStartCmd(a), newStopCmd(a), newRestartCmd(a), newKillCmd(a),
		newDeleteCmd(a), newListCmd(a), newShowCmd(a), newStatsCmd(a), newLogsCmd(a), newExecCmd(a), newShellCmd(a),
		newCpCmd(a), newMountCmd(a), newWaitCmd(a), newRenameCmd(a), newSetCmd(a), newWorkspaceCmd(a), newSSHCmd(a), newSSHProxyCmd(a), newCodeCmd(a),
	)
	return groupOnly(c)
}
