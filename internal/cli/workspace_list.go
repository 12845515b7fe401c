package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"banger/internal/api/bangerv1"
	"banger/internal/guest/manifest"
	"banger/internal/workspace"
)

func newWorkspaceListCmd(a *app) *cobra.Command {
	opts := listOpts{}
	c := &cobra.Command{
		Use:     "list [VM]",
		Aliases: []string{"ls"},
		Short:   "List workspaces",
		Long: `List shows the workspaces of a VM, or of all. One that is preparing, and that nobody
prepares, was interrupted: prepare it again.`,
		Example: `  banger vm workspace list
  banger vm workspace list calm-otter --json`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: first(a.completeVMs()),
		RunE: func(cmd *cobra.Command, args []string) error {
			vm := ""
			if len(args) > 0 {
				vm = args[0]
			}
			return runWorkspaceList(cmd.Context(), a, vm, opts)
		},
	}
	listFlags(c, &opts)
	c.Flags().Lookup("quiet").Usage = "print ids only"
	return c
}

func runWorkspaceList(ctx context.Context, a *app, vm string, opts listOpts) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	all, err := c.ListWorkspaces(ctx, vm)
	if err != nil {
		return err
	}
	switch {
	case opts.json:
		return printJSON(a.out, views(all, viewWorkspace))
	case opts.quiet:
		for _, w := range all {
			fmt.Fprintln(a.out, w.GetId())
		}
		return nil
	}
	rows := make([][]string, 0, len(all))
	for _, w := range all {
		head := w.GetSpec().GetHead()
		if len(head) >= 40 {
			head = head[:12]
		}
		rows = append(rows, []string{w.GetId(), w.GetVm(), w.GetGuestPath(), w.GetHostPath(), w.GetSpec().GetMode(), head, w.GetState(), showTime(w.GetUpdatedAt())})
	}
	return printTable(a.out, []string{"ID", "VM", "PATH", "FROM", "MODE", "ON", "STATE", "SENT"}, rows)
}

func newWorkspaceRmCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "rm VM [WORKSPACE]",
		Aliases:           []string{"delete"},
		Short:             "Forget a workspace; its files stay in the VM",
		Example:           `  banger vm workspace rm calm-otter /src`,
		Args:              workspaceArgs,
		ValidArgsFunction: a.completeWorkspace,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			w, err := findWorkspace(cmd.Context(), c, args[0], second(args))
			if err != nil {
				return err
			}
			if err := c.RemoveWorkspace(cmd.Context(), w.GetId()); err != nil {
				return err
			}
			fmt.Fprintln(a.out, w.GetGuestPath())
			return nil
		},
	}
}

func newWorkspaceStatusCmd(a *app) *cobra.Command {
	json := false
	c := &cobra.Command{
		Use:   "status VM [WORKSPACE]",
		Short: "Show what has changed on either side of a workspace",
		Long: `Status lists the files that the VM has changed since the workspace was sent, and those
that the host has: A is new, M changed, D gone. What stands under host only would be
sent by sync; what stands under both is what sync refuses to overwrite.`,
		Example:           `  banger vm workspace status calm-otter`,
		Args:              workspaceArgs,
		ValidArgsFunction: a.completeWorkspace,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runWorkspaceStatus(cmd.Context(), a, args[0], second(args), json)
		},
	}
	c.Flags().BoolVar(&json, "json", false, "print as JSON")
	return c
}

func runWorkspaceStatus(ctx context.Context, a *app, vm, which string, json bool) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	ctx, stop := interruptible(ctx)
	defer stop()
	w, err := findWorkspace(ctx, c, vm, which)
	if err != nil {
		return err
	}
	taken, sent, err := a.take(ctx, c, w, workspace.Want{})
	if err != nil {
		return interrupted(err)
	}
	defer taken.Close()
	view := workspaceStatusView{Workspace: viewWorkspace(w), VM: []fileChangeView{}, Host: []fileChangeView{}}
	for _, e := range taken.Changes {
		view.VM = append(view.VM, fileChangeView{letter(e), e.Name})
	}
	if w.GetSpec().GetFrom() == "" {
		tree, err := workspace.Prepare(ctx, w.GetHostPath(), options(w.GetSpec()), sent)
		if err != nil {
			return err
		}
		defer tree.Close()
		change, err := tree.Since(ctx, sent)
		if err != nil {
			return err
		}
		for _, e := range change.Entries() {
			if e.Mode&unix.S_IFMT != unix.S_IFDIR {
				view.Host = append(view.Host, fileChangeView{letter(e), e.Name})
			}
		}
	}
	if json {
		return printJSON(a.out, view)
	}
	rows := [][]string{}
	for _, f := range view.VM {
		rows = append(rows, []string{"vm", f.Change, visible(f.Name)})
	}
	for _, f := range view.Host {
		rows = append(rows, []string{"host", f.Change, visible(f.Name)})
	}
	if len(rows) == 0 {
		fmt.Fprintln(a.out, "nothing has changed")
		return nil
	}
	return printTable(a.out, []string{"SIDE", "CHANGE", "FILE"}, rows)
}

// letter is how git says what has become of a file.
func letter(e manifest.Entry) string {
	switch {
	case e.Flags&manifest.Gone != 0:
		return "D"
	case e.Flags&manifest.Added != 0:
		return "A"
	}
	return "M"
}

// workspaceView is a workspace.
type workspaceView struct {
	ID          string     `json:"id"`
	VM          string     `json:"vm"`
	Path        string     `json:"path"`
	HostPath    string     `json:"host_path"`
	State       string     `json:"state"`
	Mode        string     `json:"mode"`
	TrackedOnly bool       `json:"tracked_only"`
	Include     []string   `json:"include_ignored"`
	Depth       int32      `json:"depth"`
	From        string     `json:"from"`
	Branch      string     `json:"branch"`
	User        string     `json:"user"`
	Git         bool       `json:"git"`
	BaseCommit  string     `json:"base_commit"`
	Head        string     `json:"head"` // branch in the VM, or a commit
	CreatedAt   *time.Time `json:"created_at"`
	SentAt      *time.Time `json:"sent_at"`
}

func viewWorkspace(w *bangerv1.Workspace) workspaceView {
	s := w.GetSpec()
	return workspaceView{
		ID: w.GetId(), VM: w.GetVm(), Path: w.GetGuestPath(), HostPath: w.GetHostPath(), State: w.GetState(), Mode: s.GetMode(),
		TrackedOnly: s.GetTrackedOnly(), Include: list(s.GetInclude()), Depth: s.GetDepth(), From: s.GetFrom(), Branch: s.GetBranch(),
		User: s.GetUser(), Git: s.GetGit(), BaseCommit: s.GetBase(), Head: s.GetHead(), CreatedAt: viewTime(w.GetCreatedAt()), SentAt: viewTime(w.GetUpdatedAt()),
	}
}

// fileChangeView is what has become of a file: A, M or D.
type fileChangeView struct {
	Change string `json:"change"`
	Name   string `json:"name"`
}

// workspaceStatusView is a workspace with what has changed on either side.
type workspaceStatusView struct {
	Workspace workspaceView    `json:"workspace"`
	VM        []fileChangeView `json:"vm"`
	Host      []fileChangeView `json:"host"`
}
