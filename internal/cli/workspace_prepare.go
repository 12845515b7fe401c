package cli

import (
	"context"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"banger/internal/api/bangerv1"
	"banger/internal/client"
	"banger/internal/errdefs"
	"banger/internal/workspace"
)

type prepareOpts struct {
	vm, path string
	at       string
	spec     bangerv1.WorkspaceSpec
	depth    int
	force    bool
	json     bool
}

func newWorkspacePrepareCmd(a *app) *cobra.Command {
	opts := prepareOpts{}
	c := &cobra.Command{
		Use:   "prepare VM [PATH]",
		Short: "Put a repository or a directory into a VM",
		Long: `Prepare puts PATH, the current directory by default, into a running VM. Of a git
repository it sends what git would show: tracked files, and untracked ones that are not
ignored, as they are in the work tree, and a repository of their own with the branch that
is checked out, its upstream, the main branch, and as many commits of each as --depth
says. Name and address of who commits go along; credentials and hooks' samples do not.
Of any other directory it sends what its .gitignore and .bangerignore files do not leave
out.

  --mode full      everything, ignored files and all of .git too
  --mode metadata  the repository without files

With --from the files are those of a commit, not of the work tree; --branch makes a
branch in the VM, there alone.

Done again, it sends what has changed. What the VM has changed is not overwritten: then
nothing is sent, and the error names it. With --force all is sent again, and overwrites
what is there.

--read-only keeps everybody in the VM from writing to it by a mount, which whoever is root
there can take away.`,
		Example: `  banger vm workspace prepare calm-otter
  banger vm workspace prepare calm-otter ./repo --at /src --depth 0
  banger vm workspace prepare calm-otter . --from v1.2 --branch fix-12
  banger vm workspace prepare calm-otter . --include-ignored 'dist/**'`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) < 1 || len(args) > 2 {
				return usageErr(cmd, "%q needs a VM, and takes a PATH", cmd.CommandPath())
			}
			return nil
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 0 {
				return a.completeVMs("running")(cmd, args, word)
			}
			return nil, cobra.ShellCompDirectiveFilterDirs
		},
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			opts.vm, opts.path = args[0], second(args)
			if opts.path == "" {
				opts.path = "."
			}
			if opts.at, err = guestPath(cmd, opts.at); err != nil {
				return err
			}
			if opts.depth < 0 {
				return usageErr(cmd, "--depth %d is negative", opts.depth)
			}
			if m := opts.spec.GetMode(); !slices.Contains(modes, m) {
				return usageErr(cmd, "--mode %q: there are default, full, metadata", m)
			}
			opts.spec.Depth = int32(opts.depth)
			return runWorkspacePrepare(cmd.Context(), a, &opts)
		},
	}
	f := c.Flags()
	f.StringVar(&opts.at, "at", workspaceDir, "`directory` in the VM")
	f.StringVar(&opts.spec.Mode, "mode", workspace.ModeDefault, "what is sent: `default`, full or metadata")
	f.BoolVar(&opts.spec.TrackedOnly, "tracked-only", false, "leave out files that git does not track")
	f.StringArrayVar(&opts.spec.Include, "include-ignored", nil, "send ignored files that match this `glob` too (repeatable)")
	f.IntVar(&opts.depth, "depth", workspace.DefaultDepth, "how many `commits` of history are sent; 0: all")
	f.StringVar(&opts.spec.From, "from", "", "send the files of this `commit` instead of the work tree")
	f.StringVar(&opts.spec.Branch, "branch", "", "`name` of a branch to be on in the VM")
	f.StringVarP(&opts.spec.User, "user", "u", "", "`user` who owns the files (default: the VM's)")
	f.BoolVar(&opts.spec.ReadOnly, "read-only", false, "let nobody in the VM write to it")
	f.BoolVar(&opts.force, "force", false, "send all again, and overwrite what the VM has changed")
	f.BoolVar(&opts.json, "json", false, "print the workspace as JSON")
	complete(c, "mode", fixed(modes...))
	return c
}

var modes = []string{workspace.ModeDefault, workspace.ModeFull, workspace.ModeMetadata}

func runWorkspacePrepare(ctx context.Context, a *app, opts *prepareOpts) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	ctx, stop := interruptible(ctx)
	defer stop()
	if opts.spec.User == "" {
		if opts.spec.User, err = defaultUser(ctx, c, opts.vm); err != nil {
			return err
		}
	}
	before, sent, err := there(ctx, c, opts.vm, opts.at)
	if err != nil {
		return err
	}
	if opts.force {
		sent = sent.Doubted()
	}
	tree, err := workspace.Prepare(ctx, opts.path, options(&opts.spec), sent)
	if err != nil {
		return err
	}
	defer tree.Close()
	if before != nil && before.GetHostPath() != tree.Root {
		return errdefs.Precondition("%s in vm %q is the workspace of %s", opts.at, opts.vm, before.GetHostPath()).
			WithHint("give another directory with --at, or forget that one: banger vm workspace rm %s %s", opts.vm, opts.at)
	}
	for _, n := range tree.Notices {
		a.note("%s", n)
	}
	for _, w := range tree.Warnings {
		a.warn("%s", w)
	}
	d := &delivery{app: a, client: c, vm: opts.vm, at: opts.at, spec: &opts.spec, force: opts.force, label: "workspace"}
	d.was = before.GetState()
	d.must = before != nil && before.GetSpec().GetReadOnly() != opts.spec.GetReadOnly()
	change, err := d.send(ctx, tree, sent)
	if err != nil {
		a.status.clear()
		return interrupted(err)
	}
	if opts.json {
		w, err := findWorkspace(ctx, c, opts.vm, opts.at)
		if err != nil {
			return err
		}
		return printJSON(a.out, viewWorkspace(w))
	}
	fmt.Fprintf(a.out, "%s: %s\n", opts.at, sentText(change))
	return nil
}

// there is the workspace at a path of a VM, and what it was sent; nil: nothing.
func there(ctx context.Context, c *client.Client, vm, at string) (*bangerv1.Workspace, *workspace.Sent, error) {
	all, err := c.ListWorkspaces(ctx, vm)
	if err != nil {
		return nil, nil, err
	}
	for _, w := range all {
		if w.GetGuestPath() == at {
			sent, err := known(ctx, c, w)
			return w, sent, err
		}
	}
	return nil, nil, nil
}

// sentText says what was sent.
func sentText(c *workspace.Change) string {
	if c.Nothing() {
		return "nothing has changed"
	}
	text := fmt.Sprintf("%d files sent, %s", c.Files, humanBytes(c.Bytes))
	if c.Gone > 0 {
		text += fmt.Sprintf(", %d removed", c.Gone)
	}
	return text
}
