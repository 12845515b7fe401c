package cli

import (
	"context"
	"path"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"banger/internal/errdefs"
	"banger/internal/sshconf"
	"banger/internal/sysexec"
)

// editors are programs that open a directory of another host by ssh in this one way.
var editors = []string{"code", "code-insiders", "cursor", "windsurf", "codium"}

type codeOpts struct {
	ref, path, editor string
}

func newCodeCmd(a *app) *cobra.Command {
	opts := codeOpts{}
	c := &cobra.Command{
		Use:   "code VM [PATH]",
		Short: "Open a directory of a running VM in an editor of this host",
		Long: `Code opens PATH, or the VM's working directory, in Visual Studio Code or one of its kin,
whichever is installed: ` + strings.Join(editors, ", ") + `.
The editor connects by ssh, so ~/.ssh/config must include what banger ssh-config writes.`,
		Example: `  banger ssh-config --install
  banger vm code calm-otter
  banger vm code --editor cursor calm-otter /srv/app`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) < 1 || len(args) > 2 {
				return usageErr(cmd, "%q needs a VM, and takes one path", cmd.CommandPath())
			}
			if len(args) == 2 && !path.IsAbs(args[1]) {
				return usageErr(cmd, "the path %q is not absolute", args[1])
			}
			return checkRefs(cmd, args[:1])
		},
		ValidArgsFunction: first(a.completeVMs("running")),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.ref = vmOfHost(args[0])
			if len(args) == 2 {
				opts.path = args[1]
			}
			if opts.editor != "" && !slices.Contains(editors, path.Base(opts.editor)) {
				return usageTry("one of "+strings.Join(editors, ", "), "--editor %q is not known to open what is elsewhere", opts.editor)
			}
			return runCode(cmd.Context(), a, opts)
		},
	}
	c.Flags().StringVar(&opts.editor, "editor", "", "`program` to open it with")
	complete(c, "editor", fixed(editors...))
	return c
}

func runCode(ctx context.Context, a *app, opts codeOpts) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	v, err := c.GetVM(ctx, opts.ref)
	if err != nil {
		return err
	}
	if v.GetState() != stateRunning {
		return errdefs.Precondition("vm %q is %s", v.GetName(), v.GetState()).WithHint("banger vm start %s", v.GetName())
	}
	dir, err := sshconf.Open()
	if err != nil {
		return err
	}
	config, err := sshconf.UserConfig()
	if err != nil {
		return err
	}
	if !dir.Installed(config) {
		return errdefs.Precondition("an editor cannot find VMs: %s does not include the configuration for them", config).
			WithHint("banger ssh-config --install")
	}
	place := opts.path
	if place == "" {
		place = guestDirOf(v.GetWorkdir(), v.GetImageConfig().GetWorkdir())
	}
	args := []string{"--remote", "ssh-remote+" + v.GetName() + sshconf.Domain, place}
	if opts.editor != "" {
		return sysexec.Replace(opts.editor, args)
	}
	for _, editor := range editors {
		if _, err := sysexec.Look(editor); err == nil {
			return sysexec.Replace(editor, args)
		}
	}
	return errdefs.Unsupported("none of these editors is installed: %s", strings.Join(editors, ", ")).
		WithHint("where one is: code %s\nin other programs the host is called %s%s", strings.Join(args, " "), v.GetName(), sshconf.Domain)
}

// guestDirOf is the first directory that is given, as an absolute path.
func guestDirOf(dirs ...string) string {
	for _, d := range dirs {
		if d != "" {
			return path.Join("/", d)
		}
	}
	return "/"
}
