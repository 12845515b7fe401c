package cli

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"banger/internal/guest"
)

type execOpts struct {
	ref           string
	command       []string
	env, envFiles []string
	user, workdir string
	session       sessionFlags
}

func newExecCmd(a *app) *cobra.Command {
	opts := execOpts{}
	c := &cobra.Command{
		Use:   "exec VM [--] CMD [ARG...]",
		Short: "Run a command in a running VM",
		Long: `Exec runs a command in a VM with our stdin, stdout and stderr, and ends with the
command's exit code. Signals are passed on; three quick Ctrl-C give up on it, with
--tty only when nothing is shown in between.

Stdin is passed on when it is not a terminal, or with -i.`,
		Example: `  banger exec calm-otter -- make test
  banger exec -it calm-otter -- bash
  tar c . | banger exec calm-otter -- tar x -C /tmp
  banger exec --user root --workdir / calm-otter -- apt-get update`,
		Args: func(cmd *cobra.Command, args []string) error {
			command, dashed := execCommand(args)
			switch {
			case len(command) == 0 || cmd.ArgsLenAtDash() == 0:
				return usageErr(cmd, "%q needs one VM and a command", cmd.CommandPath())
			case !dashed && strings.HasPrefix(command[0], "-"):
				return usageTry(cmd.CommandPath()+" "+command[0]+" ... "+args[0]+" -- CMD",
					"flags go before the VM, got %q after it", command[0])
			}
			return checkRefs(cmd, args[:1])
		},
		ValidArgsFunction: first(a.completeVMs("running")),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.ref = args[0]
			opts.command, _ = execCommand(args)
			if err := opts.session.check(cmd, a, false); err != nil {
				return err
			}
			return runExec(cmd.Context(), a, opts)
		},
	}
	commandFlags(c, &opts)
	opts.session.register(c)
	// Behind the VM everything is the command's, its flags too.
	c.Flags().SetInterspersed(false)
	return c
}

// execCommand is the command in what follows the flags: VM, perhaps "--", and it.
func execCommand(args []string) (command []string, dashed bool) {
	if len(args) < 2 {
		return nil, false
	}
	if args[1] == "--" {
		return args[2:], true
	}
	return args[1:], false
}

// commandFlags are the flags of exec and shell.
func commandFlags(c *cobra.Command, opts *execOpts) {
	f := c.Flags()
	f.StringArrayVarP(&opts.env, "env", "e", nil, "set `KEY=VALUE`; KEY alone takes the value from here")
	f.StringArrayVar(&opts.envFiles, "env-file", nil, "read KEY=VALUE lines from `file`")
	f.StringVarP(&opts.user, "user", "u", "", "`user` that runs the command (default: the VM's)")
	f.StringVarP(&opts.workdir, "workdir", "w", "", "`directory` to run it in (default: the VM's)")
}

func runExec(ctx context.Context, a *app, opts execOpts) error {
	env, err := readEnv(opts.env, opts.envFiles)
	if err != nil {
		return ownFailure(err)
	}
	c, err := a.client()
	if err != nil {
		return ownFailure(err)
	}
	s := session{
		app: a, client: c, ref: opts.ref, flags: opts.session,
		request: guest.Request{Kind: guest.KindExec, Exec: &guest.Exec{
			Args: opts.command, Env: env, User: opts.user, Workdir: opts.workdir,
		}},
	}
	if opts.session.timeout > 0 {
		s.deadline = time.Now().Add(opts.session.timeout)
	}
	code, err := s.run(ctx)
	if err != nil {
		return err
	}
	return codeError(code)
}
