package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"banger/internal/errdefs"
	"banger/internal/workspace"
)

type exportOpts struct {
	vm, which  string
	format     string
	output     string
	branch     string
	apply      bool
	baseCommit bool
}

// The formats of an export.
const (
	formatPatch  = "patch"
	formatBundle = "bundle"
)

func newWorkspaceExportCmd(a *app) *cobra.Command {
	opts := exportOpts{}
	c := &cobra.Command{
		Use:   "export VM [WORKSPACE]",
		Short: "Take out what a VM has changed in a workspace",
		Long: `Export writes what the VM has changed since the workspace was sent, whether it was
committed there or not, as a patch that git apply takes, binary files included. Ignored
files stay where they are.

  --to-branch NAME  makes a branch of the host's repository of it: the commits of the
                    VM, and one more of what it has not committed. Neither the checkout
                    nor the index of the host is touched.
  --apply           changes the files of the work tree in the same way, all or none
  --format bundle   a git bundle of the same commits as with --to-branch

Changes that were in the host's work tree when it was sent, and not committed, are no
part of the patch, unless --base-commit says that it is to be against the commit; of a
branch or a bundle they are.

What comes from the VM is taken in by git in a directory of its own, and checked there,
before the host's repository sees it.`,
		Example: `  banger vm workspace export calm-otter > changes.patch
  banger vm workspace export calm-otter --to-branch from-otter
  banger vm workspace export calm-otter /src --apply`,
		Args:              workspaceArgs,
		ValidArgsFunction: a.completeWorkspace,
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.vm, opts.which = args[0], second(args)
			switch {
			case opts.format != formatPatch && opts.format != formatBundle:
				return usageErr(cmd, "--format %q: there are patch and bundle", opts.format)
			case opts.apply && (opts.branch != "" || opts.output != "" || opts.format == formatBundle):
				return usageErr(cmd, "--apply excludes --to-branch, --output and --format bundle")
			case opts.branch != "" && opts.output != "" && opts.format == formatPatch:
				return usageErr(cmd, "--to-branch writes no file: leave --output away, or add --format bundle")
			case opts.baseCommit && (opts.apply || opts.branch != "" || opts.format == formatBundle):
				return usageErr(cmd, "--base-commit is about patches: what is made of commits is against it anyway, and --apply cannot be")
			case opts.format == formatBundle && opts.output == "" && a.outTTY:
				return usageTry(cmd.CommandPath()+" ... --output FILE", "a bundle is nothing for a terminal")
			}
			return runWorkspaceExport(cmd.Context(), a, opts)
		},
	}
	f := c.Flags()
	f.StringVar(&opts.format, "format", formatPatch, "`patch` or bundle")
	f.StringVarP(&opts.output, "output", "o", "", "`file` to write to (default: stdout)")
	f.StringVar(&opts.branch, "to-branch", "", "make this `branch` in the host's repository")
	f.BoolVar(&opts.apply, "apply", false, "change the files of the host's work tree")
	f.BoolVar(&opts.baseCommit, "base-commit", false, "make the patch against the commit that was checked out")
	complete(c, "format", fixed(formatPatch, formatBundle))
	return c
}

func runWorkspaceExport(ctx context.Context, a *app, opts exportOpts) error {
	commits := opts.branch != "" || opts.format == formatBundle
	return a.withExport(ctx, opts.vm, opts.which, workspace.Want{
		Content: true, Git: commits, Dirty: commits || opts.baseCommit,
	}, func(ctx context.Context, x *workspace.Export, changed int) error {
		switch {
		case x.Nothing() && !opts.baseCommit:
			a.warn("nothing was changed in the VM")
			return nil
		case opts.format == formatBundle:
			name := opts.branch
			if name == "" {
				name = x.Branch()
			}
			if name == "" {
				name = opts.vm
			}
			return a.writeTo(opts.output, func(w io.Writer) error { return x.Bundle(ctx, w, name) })
		case opts.branch != "":
			commit, err := x.ToBranch(ctx, opts.branch)
			if err == nil {
				fmt.Fprintf(a.out, "%s %s\n", opts.branch, commit)
			}
			return err
		case opts.apply:
			err := x.Apply(ctx)
			if err == nil {
				fmt.Fprintf(a.out, "%d files changed\n", changed)
			}
			return err
		}
		return a.writeTo(opts.output, func(w io.Writer) error { return x.Patch(ctx, w, opts.baseCommit) })
	})
}

// withExport takes out what is wanted of a workspace, and hands it to use with how many
// files have changed.
func (a *app) withExport(ctx context.Context, vm, which string, want workspace.Want, use func(context.Context, *workspace.Export, int) error) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	ctx, stop := interruptible(ctx)
	defer stop()
	err = func() error {
		w, err := findWorkspace(ctx, c, vm, which)
		if err != nil {
			return err
		}
		taken, _, err := a.take(ctx, c, w, want)
		if err != nil {
			return err
		}
		defer taken.Close()
		for _, name := range taken.Nested {
			a.warn("%s was made in the VM and is a repository of its own: it stays there", visible(name))
		}
		x, err := taken.Export(ctx, w.GetVm())
		if err != nil {
			return err
		}
		return use(ctx, x, len(taken.Changes))
	}()
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return interrupted(err)
}

// writeTo writes to a file that is there as a whole or not at all, or to stdout.
func (a *app) writeTo(file string, write func(io.Writer) error) error {
	if file == "" || file == "-" {
		return write(a.out)
	}
	if st, err := os.Stat(file); err == nil && !st.Mode().IsRegular() { // a pipe, a device
		f, err := os.OpenFile(file, os.O_WRONLY, 0)
		if err != nil {
			return fileErr("write", file, err)
		}
		err = write(f)
		if closeErr := f.Close(); err == nil && closeErr != nil {
			err = fileErr("write", file, closeErr)
		}
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(file), ".banger-export-*")
	if err != nil {
		return fileErr("write", file, err)
	}
	err = write(f)
	if closeErr := f.Close(); err == nil && closeErr != nil {
		err = errdefs.Wrap(closeErr, "write %s", file)
	}
	if err == nil {
		if err = os.Chmod(f.Name(), 0o644); err == nil {
			err = os.Rename(f.Name(), file)
		}
		if err != nil {
			err = fileErr("write", file, err)
		}
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

func newWorkspaceDiffCmd(a *app) *cobra.Command {
	base := false
	c := &cobra.Command{
		Use:   "diff VM [WORKSPACE]",
		Short: "Show what a VM has changed in a workspace",
		Example: `  banger vm workspace diff calm-otter
  banger vm workspace diff calm-otter | git apply --stat`,
		Args:              workspaceArgs,
		ValidArgsFunction: a.completeWorkspace,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withExport(cmd.Context(), args[0], second(args), workspace.Want{Content: true, Dirty: base},
				func(ctx context.Context, x *workspace.Export, _ int) error { return x.Patch(ctx, a.out, base) })
		},
	}
	c.Flags().BoolVar(&base, "base-commit", false, "against the commit that was checked out: what was sent and not committed is shown too")
	return c
}
