package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"banger/internal/api/bangerv1"
	"banger/internal/client"
	"banger/internal/errdefs"
)

type createOpts struct {
	request *bangerv1.CreateRequest
	wait    string
}

func newCreateCmd(a *app) *cobra.Command {
	sh, opts, noStart := shape{}, createOpts{}, false
	c := &cobra.Command{
		Use:   "create",
		Short: "Make a VM and start it",
		Long: `Create makes a VM, starts it, and prints its name. When that fails, the wait of --wait
included, or Ctrl-C ends it, nothing of the VM is left.`,
		Example: `  banger vm create
  banger vm create --name build-box --cpus 4 --memory 4G --disk 32G
  banger vm create --no-start --image debian --net none`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if err := checkWait(opts.wait); err != nil {
				return err
			}
			if noStart && opts.wait != "" {
				return usageErr(cmd, "--no-start and --wait exclude each other")
			}
			if opts.request, err = sh.request(cmd); err != nil {
				return err
			}
			opts.request.NoStart = noStart
			return runCreate(cmd.Context(), a, opts)
		},
	}
	sh.register(c, a)
	c.Flags().BoolVar(&noStart, "no-start", false, "make it, but do not start it")
	waitFlag(c, &opts.wait)
	return c
}

func runCreate(ctx context.Context, a *app, opts createOpts) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	ctx, stop := interruptible(ctx)
	defer stop()
	made, err := a.create(ctx, c, opts.request)
	if err != nil {
		return interrupted(err)
	}
	if opts.wait == waitSystem {
		if err := a.awaitSystem(ctx, c, made); err != nil {
			// As with the creation itself: all of it, or nothing.
			return joinCleanup(interrupted(err), a.remove(ctx, c, made.id))
		}
	}
	fmt.Fprintln(a.out, made.name)
	return nil
}

// made is a VM this command has made.
type made struct{ id, name string }

// create makes a VM and shows how it goes. When ctx ends, nothing is left of it.
func (a *app) create(ctx context.Context, c *client.Client, req *bangerv1.CreateRequest) (made, error) {
	// The request is short; leaving it half way would lose the operation's id.
	op, err := c.CreateVM(context.WithoutCancel(ctx), req)
	if err != nil {
		return made{}, err
	}
	op, err = waitOrCancel(ctx, c, op, a.followCreate(ctx, c))
	m := made{id: op.GetResult(), name: op.GetSubject()}
	if err != nil && op.GetState() == "succeeded" {
		// It was ready just before the cancellation.
		return made{}, joinCleanup(err, a.remove(ctx, c, m.id))
	}
	if err == nil {
		a.tellPorts(ctx, c, m, req)
	}
	return m, err
}

// remove deletes a VM for good; one that is gone already is fine.
func (a *app) remove(ctx context.Context, c *client.Client, ref string) error {
	ctx = context.WithoutCancel(ctx)
	op, err := c.DeleteVM(ctx, ref, true)
	if err == nil {
		_, err = c.WaitOperation(ctx, op, nil)
	}
	if errdefs.ClassOf(err) == errdefs.ClassNotFound {
		return nil
	}
	return err
}

// joinCleanup keeps the failure of a clean-up beside the reason for it.
func joinCleanup(err, cleanup error) error {
	if cleanup == nil {
		return err
	}
	return manyErrors{err, cleanup}
}

// followCreate is follow with a line of sizes ahead of the stages, as soon as the
// daemon has settled them.
func (a *app) followCreate(ctx context.Context, c *client.Client) func(*bangerv1.Operation) {
	stages := a.follow()
	if stages == nil {
		return nil
	}
	described := false
	return func(op *bangerv1.Operation) {
		if !described && op.GetState() == "running" {
			if v, err := c.GetVM(ctx, op.GetSubject()); err == nil {
				described = true
				a.status.line(describe(v))
			} else if quiet(op) {
				return // the next change most likely brings it
			}
		}
		stages(op)
	}
}

// quiet reports whether an operation has nothing to tell yet that takes long.
func quiet(op *bangerv1.Operation) bool {
	for _, st := range op.GetStages() {
		if st.GetDetail() != "" || st.GetDone() > 0 {
			return false
		}
	}
	return true
}

// describe is the line of sizes of a VM.
func describe(v *bangerv1.VM) string {
	cpus := "cpus"
	if v.GetCpus() == 1 {
		cpus = "cpu"
	}
	return fmt.Sprintf("%s: %d %s, %s memory, %s disk, image %s", oneLine(v.GetName()), v.GetCpus(), cpus,
		humanBytes(v.GetMemoryMib()<<20), humanBytes(v.GetDiskBytes()), oneLine(v.GetImage()))
}
