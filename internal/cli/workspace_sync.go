package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"banger/internal/api/bangerv1"
	"banger/internal/client"
	"banger/internal/errdefs"
	"banger/internal/workspace"
)

type syncOpts struct {
	vm, which    string
	force, watch bool
}

func newWorkspaceSyncCmd(a *app) *cobra.Command {
	opts := syncOpts{}
	c := &cobra.Command{
		Use:   "sync VM [WORKSPACE]",
		Short: "Bring later changes of the host into a workspace",
		Long: `Sync sends what has changed on the host since the workspace was sent: files, and commits
if there are any. What the VM has changed is not overwritten without --force: then
nothing is sent, and the error names it. What only the VM has changed stays.

With --watch it goes on doing so whenever something changes, until it is interrupted.`,
		Example: `  banger vm workspace sync calm-otter
  banger vm workspace sync calm-otter --watch`,
		Args:              workspaceArgs,
		ValidArgsFunction: a.completeWorkspace,
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.vm, opts.which = args[0], second(args)
			return runWorkspaceSync(cmd.Context(), a, opts)
		},
	}
	c.Flags().BoolVar(&opts.force, "force", false, "overwrite what the VM has changed")
	c.Flags().BoolVarP(&opts.watch, "watch", "w", false, "go on until interrupted")
	return c
}

func runWorkspaceSync(ctx context.Context, a *app, opts syncOpts) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	ctx, stop := interruptible(ctx)
	defer stop()
	w, err := findWorkspace(ctx, c, opts.vm, opts.which)
	if err != nil {
		return err
	}
	if from := w.GetSpec().GetFrom(); from != "" {
		return errdefs.Precondition("workspace %s has the files of commit %s, which do not change", w.GetGuestPath(), from).
			WithHint("prepare it again from another: banger vm workspace prepare %s %s --from REF", w.GetVm(), w.GetHostPath())
	}
	s := &syncing{app: a, client: c, opts: opts, w: w}
	if opts.watch {
		err = s.watch(ctx)
	} else {
		_, err = s.once(ctx, true)
	}
	a.status.clear()
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return interrupted(err)
}

// syncing is one workspace that is kept like the host's tree.
type syncing struct {
	app    *app
	client *client.Client
	opts   syncOpts
	w      *bangerv1.Workspace
}

// once sends what has changed, and returns the directories in which something may.
func (s *syncing) once(ctx context.Context, speak bool) (dirs []string, err error) {
	sent, err := known(ctx, s.client, s.w)
	if err != nil {
		return nil, err
	}
	tree, err := workspace.Prepare(ctx, s.w.GetHostPath(), options(s.w.GetSpec()), sent)
	if err != nil {
		return nil, err
	}
	defer tree.Close()
	for _, w := range tree.Warnings {
		s.app.warn("%s", w)
	}
	dirs = tree.Dirs()
	d := &delivery{
		was: s.w.GetState(), app: s.app, client: s.client, vm: s.w.GetVmId(), at: s.w.GetGuestPath(), spec: s.w.GetSpec(), force: s.opts.force, label: "workspace",
	}
	change, err := d.send(ctx, tree, sent)
	if err != nil {
		return dirs, err
	}
	s.w.State = stateReady
	if speak || !change.Nothing() {
		fmt.Fprintf(s.app.out, "%s: %s\n", s.w.GetGuestPath(), sentText(change))
	}
	return dirs, nil
}

// watch sends what changes until ctx ends. A conflict is told once, and does not end it.
func (s *syncing) watch(ctx context.Context) error {
	w, err := workspace.NewWatcher()
	if err != nil {
		return err
	}
	defer w.Close()
	told := ""
	for first := true; ; first = false {
		dirs, err := s.once(ctx, first)
		switch {
		case err == nil:
			told = ""
		case errdefs.ClassOf(err) != errdefs.ClassFailedPrecondition || first:
			return err
		case err.Error() != told:
			s.app.printError(err)
			told = err.Error()
		}
		if err := w.Add(dirs); err != nil {
			return err
		}
		if first {
			// What changed before it was watched would not be noticed.
			if _, err := s.once(ctx, false); err != nil {
				return err
			}
		}
		if err := w.Wait(ctx); err != nil {
			return err
		}
	}
}
