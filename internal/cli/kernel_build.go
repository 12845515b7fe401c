package cli

import (
	"context"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"banger/internal/api/bangerv1"
	"banger/internal/client"
	"banger/internal/errdefs"
	"banger/internal/model"
	"banger/kernels"
)

// kernelBuildOpts are the flags of kernel build.
type kernelBuildOpts struct {
	config, work string
	jobs         int
}

func newKernelBuildCmd(a *app) *cobra.Command {
	opts := kernelBuildOpts{}
	c := &cobra.Command{
		Use:   "build KERNEL",
		Short: "Build a small kernel from Debian's source",
		Long: `Build compiles a kernel for VMs from Debian's linux-source, with everything they need
built in and nothing else, and imports it. It runs on this host as you, without root. That
takes apt, a compiler, some 2 GB and a few minutes; what is missing is named. Source and objects
are kept for the next time.`,
		Example: `  banger kernel build small
  banger kernel build mine --config ./mine.config --jobs 8
  banger vm run --kernel small --rm -- uname -r`,
		Args:              needName("kernel"),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			if opts.jobs < 0 {
				return usageErr(cmd, "--jobs %d: needs to be 1 or more", opts.jobs)
			}
			return runKernelBuild(cmd.Context(), a, args[0], opts)
		},
	}
	c.Flags().StringVar(&opts.config, "config", "", "lay this fragment (`file`) of a configuration over an empty one")
	c.Flags().StringVar(&opts.work, "work", "", "`directory` for source and objects (default: one of your cache)")
	c.Flags().IntVar(&opts.jobs, "jobs", 0, "compile so many files at once (default: the number of processors)")
	return c
}

func runKernelBuild(ctx context.Context, a *app, name string, opts kernelBuildOpts) error {
	if err := model.CheckArtifactName("kernel", name); err != nil {
		return err
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	if _, err := c.ListKernels(ctx); err != nil {
		return err // better now than after minutes
	}
	build := kernels.Options{Config: opts.config, Work: opts.work, Jobs: opts.jobs, Log: a.err}
	if build.Config != "" {
		if build.Config, err = absolute(build.Config); err != nil {
			return err
		}
		info, err := os.Stat(build.Config)
		if err == nil && !info.Mode().IsRegular() {
			err = errdefs.Invalid("not a regular file").WithHint("give a file with lines of CONFIG_NAME=y")
		}
		if err != nil {
			return fileErr("build with", build.Config, err)
		}
	}
	if build.Work == "" {
		if build.Work, err = os.UserCacheDir(); err != nil {
			return errdefs.Invalid("%w", err).WithHint("say where to build: add --work DIR")
		}
		build.Work = filepath.Join(build.Work, "banger", "kernel-build")
	}
	if build.Work, err = absolute(build.Work); err != nil {
		return err
	}
	if strings.ContainsAny(build.Work, " :\t\n") {
		return errdefs.Invalid("build in %q: the kernel's makefiles refuse spaces and colons", build.Work).WithHint("build elsewhere: add --work DIR")
	}
	out := filepath.Join(build.Work, "out")
	if err := os.RemoveAll(out); err != nil {
		return err
	}
	building, stop := interruptible(ctx)
	err = kernels.Build(building, out, build)
	stop()
	if err != nil {
		return interrupted(errdefs.Precondition("build kernel %q: %w", name, err).WithHint("what it says above tells why; source and objects are in %s", build.Work))
	}
	return a.pull(ctx, func(ctx context.Context, c *client.Client) (*bangerv1.Operation, error) {
		return c.ImportKernel(ctx, &bangerv1.ImportKernelRequest{Name: name, Dir: out})
	})
}
