package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"banger/internal/api"
	"banger/internal/api/bangerv1"
	"banger/internal/client"
	"banger/internal/errdefs"
	"banger/internal/guest"
	"banger/internal/guest/manifest"
	"banger/internal/workspace"
)

func newWorkspaceCmd(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "workspace", Aliases: []string{"ws"}, Short: "Put repositories and directories into VMs, and take changes out",
		Long: `A workspace is a directory in a VM that a repository or a directory of this host was
put into. What was sent is remembered: later only what has changed is sent, and what the
VM has changed can be looked at and taken out, commits included. The VM needs no git.`,
	}
	c.AddCommand(newWorkspacePrepareCmd(a), newWorkspaceExportCmd(a), newWorkspaceDiffCmd(a), newWorkspaceStatusCmd(a),
		newWorkspaceSyncCmd(a), newWorkspaceListCmd(a), newWorkspaceRmCmd(a))
	return groupOnly(c)
}

// findWorkspace finds the workspace of a VM that which names: by its path in the VM, by
// the start of its id, or, empty, the only one.
func findWorkspace(ctx context.Context, c *client.Client, vm, which string) (*bangerv1.Workspace, error) {
	all, err := c.ListWorkspaces(ctx, vm)
	if err != nil {
		return nil, err
	}
	var hits []*bangerv1.Workspace
	for _, w := range all {
		switch {
		case which == "", which == w.GetGuestPath(), strings.HasPrefix(w.GetId(), which):
			hits = append(hits, w)
		}
	}
	switch {
	case len(hits) == 1:
		return hits[0], nil
	case len(all) == 0:
		return nil, errdefs.NotFound("vm %q has no workspace", vm).WithHint("put a directory into it: banger vm workspace prepare %s DIR", vm)
	case len(hits) == 0:
		return nil, errdefs.NotFound("vm %q has no workspace %q", vm, which).WithHint("list them: banger vm workspace list %s", vm)
	}
	return nil, errdefs.Invalid("vm %q has several workspaces: %s", vm, pathsOf(hits)).WithHint("name one of them")
}

func pathsOf(all []*bangerv1.Workspace) string {
	names := make([]string, len(all))
	for i, w := range all {
		names[i] = w.GetGuestPath()
	}
	return strings.Join(names, ", ")
}

// workspaceArgs takes a VM and perhaps one of its workspaces.
func workspaceArgs(cmd *cobra.Command, args []string) error {
	if len(args) < 1 || len(args) > 2 {
		return usageErr(cmd, "%q needs a VM, and takes a workspace of it", cmd.CommandPath())
	}
	return nil
}

// second is an argument that need not be there.
func second(args []string) string {
	if len(args) > 1 {
		return args[1]
	}
	return ""
}

// completeWorkspace completes a VM, then the paths of its workspaces.
func (a *app) completeWorkspace(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	switch len(args) {
	case 0:
		return a.completeVMs()(cmd, args, word)
	case 1:
		return a.names(func(ctx context.Context, c *client.Client) (names []string, err error) {
			all, err := c.ListWorkspaces(ctx, args[0])
			for _, w := range all {
				names = append(names, w.GetGuestPath())
			}
			return names, err
		})(cmd, nil, word)
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}

// delivery brings one tree into a VM.
type delivery struct {
	app    *app
	client *client.Client
	vm     string // reference
	at     string // in the VM
	spec   *bangerv1.WorkspaceSpec
	force  bool
	was    string // the workspace's state
	must   bool   // something is to be said to the VM even if no file has changed
	label  string // of the stage on a terminal
}

// options are those of a workspace's tree.
func options(s *bangerv1.WorkspaceSpec) workspace.Options {
	return workspace.Options{
		Mode: s.GetMode(), TrackedOnly: s.GetTrackedOnly(), Include: s.GetInclude(), Depth: int(s.GetDepth()),
		From: s.GetFrom(), Branch: s.GetBranch(),
	}
}

// send brings the tree to the VM; sent, which may be nil, is what it has of it.
func (d *delivery) send(ctx context.Context, tree *workspace.Tree, sent *workspace.Sent) (*workspace.Change, error) {
	began := time.Now()
	if err := tree.Complete(ctx); err != nil {
		return nil, err
	}
	change, err := tree.Since(ctx, sent)
	if err != nil || change.Nothing() && sent != nil && !d.must {
		return change, err
	}
	d.spec.Git = tree.Git
	if top := tree.Top(); top != nil {
		d.spec.Base, d.spec.Head = top.Base, strings.TrimPrefix(top.Head, "refs/heads/")
	}
	w, err := d.client.BeginWorkspace(ctx, &bangerv1.BeginWorkspaceRequest{Ref: d.vm, GuestPath: d.at, HostPath: tree.Root, Spec: d.spec})
	if err != nil {
		return nil, err
	}
	conn, err := d.client.OpenStream(ctx, api.WorkspacePath(d.vm))
	if err != nil {
		return nil, err
	}
	req := guest.WorkspacePut{
		ID: w.GetId(), Dest: d.at, User: d.spec.GetUser(), Fresh: sent == nil, Force: d.force, ReadOnly: d.spec.GetReadOnly(),
	}
	conflicts, err := guest.PutWorkspace(ctx, conn, req, change.Plan, func(out io.Writer) error {
		return change.WriteTar(ctx, out, workspace.WriteOptions{Hash: true, Progress: func(done int64) {
			d.app.status.drawSometimes(func() string {
				return fmt.Sprintf("  %-12s %s", d.label, progressText(done, change.Bytes, "bytes"))
			})
		}, Changed: func(path string) { d.app.note("%s changed while it was read", path) }})
	})
	if err != nil {
		if len(conflicts) > 0 && d.was == stateReady {
			// The VM agreed to nothing: the workspace is what it was.
			_, undo := d.client.FinishWorkspace(context.WithoutCancel(ctx), &bangerv1.FinishWorkspaceRequest{Id: w.GetId(), Generation: w.GetGeneration(), Refused: true})
			if undo != nil {
				d.app.warn("the workspace has to be prepared again: %v", undo)
			}
		}
		return nil, conflictErr(w, conflicts, err)
	}
	list, err := tree.Encode()
	if err != nil {
		return nil, err
	}
	if _, err = d.client.FinishWorkspace(ctx, &bangerv1.FinishWorkspaceRequest{Id: w.GetId(), Generation: w.GetGeneration(), Manifest: list}); err != nil {
		return nil, err
	}
	d.app.stageDone(d.label, time.Since(began))
	return change, nil
}

// shownConflicts is how many names an error has room for.
const shownConflicts = 10

// conflictErr names what stands in the way of a sync.
func conflictErr(w *bangerv1.Workspace, conflicts []manifest.Entry, err error) error {
	if len(conflicts) == 0 || errdefs.ClassOf(err) != errdefs.ClassFailedPrecondition {
		return err
	}
	var names []string
	for i, e := range conflicts {
		if i == shownConflicts {
			names = append(names, fmt.Sprintf("and %d more", len(conflicts)-i))
			break
		}
		name := visible(e.Name)
		if e.Mode == 0 {
			name += " (removed)"
		}
		names = append(names, name)
	}
	return errdefs.Precondition("the VM has changed what would be overwritten, and nothing was sent: %s", strings.Join(names, ", ")).
		WithHint("take its changes out first (banger vm workspace export %s), or overwrite them with --force", w.GetVm())
}

// visible is a file's name that a guest chose, for a terminal.
func visible(name string) string {
	return strings.Trim(fmt.Sprintf("%q", name), `"`)
}

// known is what was sent into a workspace; nil: nothing, as far as anybody knows.
func known(ctx context.Context, c *client.Client, w *bangerv1.Workspace) (*workspace.Sent, error) {
	list, err := c.WorkspaceManifest(ctx, w.GetId())
	if err != nil {
		return nil, err
	}
	return workspace.Decode(list)
}

// stateReady is the state of a workspace that was sent as a whole.
const stateReady = "ready"

// take asks a VM what has become of a workspace.
func (a *app) take(ctx context.Context, c *client.Client, w *bangerv1.Workspace, want workspace.Want) (*workspace.Taken, *workspace.Sent, error) {
	sent, err := known(ctx, c, w)
	if err != nil {
		return nil, nil, err
	}
	if sent == nil || w.GetState() != stateReady {
		return nil, nil, errdefs.Precondition("workspace %s of vm %q was not sent as a whole: that was interrupted, or goes on now", w.GetGuestPath(), w.GetVm()).
			WithHint("prepare it again: banger vm workspace prepare %s %s --at %s", w.GetVm(), w.GetHostPath(), w.GetGuestPath())
	}
	conn, err := c.OpenStream(ctx, api.WorkspacePath(w.GetVmId()))
	if err != nil {
		return nil, nil, err
	}
	req := guest.WorkspaceChanges{
		ID: w.GetId(), Dest: w.GetGuestPath(), Content: want.Content, Git: want.Git && sent.Git,
		All: sent.Options.Mode == workspace.ModeFull, Plain: !sent.Git, Ignore: workspace.UserIgnore(ctx),
	}
	r, pipe := io.Pipe()
	type result struct {
		taken *workspace.Taken
		err   error
	}
	done := make(chan result, 1)
	go func() {
		taken, err := workspace.Take(ctx, r, sent)
		_ = r.CloseWithError(errUnwanted)
		done <- result{taken, err}
	}()
	err = guest.ReceiveChanges(ctx, conn, req, sent.Also(want), pipe)
	if err != nil && !errors.Is(err, errUnwanted) {
		_ = pipe.CloseWithError(err)
		if got := <-done; got.taken != nil {
			got.taken.Close()
		}
		return nil, nil, err
	}
	_ = pipe.Close()
	got := <-done
	return got.taken, sent, got.err
}

// guestPath checks where in a VM a workspace is to be.
func guestPath(cmd *cobra.Command, at string) (string, error) {
	if !path.IsAbs(at) {
		return "", usageErr(cmd, "--at %q is not absolute", at)
	}
	return path.Clean(at), nil
}
