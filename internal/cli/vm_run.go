package cli

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"banger/internal/api/bangerv1"
	"banger/internal/client"
	"banger/internal/errdefs"
	"banger/internal/guest"
	"banger/internal/model"
	"banger/internal/workspace"
)

// workspaceDir is where PATH arrives in the guest.
const workspaceDir = "/workspace"

type runOpts struct {
	request *bangerv1.CreateRequest
	path    string // empty: no tree is sent
	command []string
	remove  bool
	detach  bool
	wait    string
	workdir string
	// entrypoint takes the place of the image's; nil: that counts.
	entrypoint *string
	session    sessionFlags
}

func newRunCmd(a *app) *cobra.Command {
	sh, opts, entrypoint := shape{}, runOpts{}, ""
	c := &cobra.Command{
		Use:   "run [PATH] [-- CMD [ARG...]]",
		Short: "Make a VM, put a directory in it, run a command",
		Long: `Run makes a VM, copies PATH to /workspace in it, runs the command there and ends
with the command's exit code. The VM stays unless --rm is given.

As with docker run, a command goes behind the entrypoint of the image, if it has one,
and without a command an image that --image names runs its entrypoint and its own
command. --entrypoint takes the place of both. Where nothing is named, or the default
image is used, it opens a shell, if there is a terminal. The image's user, directory and
environment hold unless flags say otherwise. The command is never process 1, and an init
that an image names as its command is not run as one. When the VM is stopped, the
command gets the image's stop signal first.

If PATH is in a git repository, the whole repository is sent: its tracked and its
untracked but not ignored files, and a .git of their own with the last 100 commits, so
that git works inside; the command runs in the directory that PATH is. Of any other
directory all is sent that its .gitignore and .bangerignore files do not leave out.
A .git that leads to a repository elsewhere is refused, unless that names PATH in
turn, as those of linked work trees and submodules do.
Everything belongs to the user that runs the command. What it changes can be taken out:
banger vm workspace diff, and export.

Ctrl-C while the VM is made undoes it; afterwards it goes to the command, and
three in a row give up on it. --timeout bounds the whole run.

Stdin is passed on when it is not a terminal, or with -i.`,
		Example: `  banger vm run ./repo -- make test
  banger vm run --rm -- uname -a
  banger vm run --rm --cpus 4 --memory 4G --env CI=1 . -- ./ci.sh
  banger vm run
  banger vm run --rm -P --image nginx
  banger vm run --rm --image nginx --entrypoint "" -- sh -c 'nginx -v'
  banger vm run -d --name build-box ./repo`,
		Args: func(cmd *cobra.Command, args []string) error {
			dash := cmd.ArgsLenAtDash()
			switch {
			case dash < 0 && len(args) > 1:
				return usageTry(fmt.Sprintf("%s %s -- %s ...", cmd.CommandPath(), args[0], args[1]), "a command goes after --, got %q", args[1])
			case dash > 1:
				return usageErr(cmd, "one PATH at most, got %d", dash)
			case dash >= 0 && dash == len(args):
				return usageErr(cmd, "there is no command after --")
			case (dash < 0 || dash == 1) && len(args) > 0 && args[0] == "":
				return usageErr(cmd, "PATH is empty")
			}
			return nil
		},
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 0 {
				return nil, cobra.ShellCompDirectiveFilterDirs
			}
			return nil, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if dash := cmd.ArgsLenAtDash(); dash >= 0 {
				args, opts.command = args[:dash], args[dash:]
			}
			if len(args) == 1 {
				opts.path = args[0]
			}
			if cmd.Flags().Changed("entrypoint") {
				opts.entrypoint = &entrypoint
			}
			if err := checkRun(cmd, a, &opts, sh.image == ""); err != nil {
				return err
			}
			if opts.request, err = sh.request(cmd); err != nil {
				return ownFailure(err)
			}
			opts.request.NeedsCommand = !opts.detach && len(opts.command) == 0 && opts.entrypoint == nil && !a.terminal()
			opts.workdir = sh.workdir
			return runRun(cmd.Context(), a, opts)
		},
	}
	sh.register(c, a)
	c.Flags().BoolVar(&opts.remove, "rm", false, "delete the VM when the command has ended, however it did")
	c.Flags().BoolVarP(&opts.detach, "detach", "d", false, "leave the VM running and print its name")
	c.Flags().StringVar(&entrypoint, "entrypoint", "", "`program` to run in place of the image's entrypoint and command; an empty one clears them")
	waitFlag(c, &opts.wait)
	opts.session.register(c)
	c.Flags().Lookup("timeout").Usage = "bound the whole run: after this `duration` the command gets SIGTERM, and SIGKILL 5s later"
	return c
}

// checkRun refuses combinations that make no sense, before anything is made. plain says
// that the default image is used, which is one to open shells in.
func checkRun(cmd *cobra.Command, a *app, opts *runOpts, plain bool) error {
	none := len(opts.command) == 0 && (opts.entrypoint == nil || *opts.entrypoint == "")
	switch {
	case opts.detach && opts.remove:
		return usageErr(cmd, "--detach and --rm exclude each other")
	case opts.detach && (len(opts.command) > 0 || opts.entrypoint != nil):
		return usageTry("banger vm run -d, then banger exec VM -- CMD", "--detach runs no command")
	case opts.detach && (opts.session.tty || opts.session.interactive):
		return usageErr(cmd, "--detach runs no command: --tty and --interactive have no meaning")
	case !opts.detach && none && (plain || opts.entrypoint != nil) && !a.terminal():
		return usageTry(cmd.CommandPath()+" ... -- CMD, or -d to leave the VM running", "there is no command and no terminal for a shell")
	}
	if none && plain && opts.entrypoint == nil {
		opts.entrypoint = new(string) // a shell, whatever the default image names
	}
	if err := checkWait(opts.wait); err != nil {
		return err
	}
	return opts.session.check(cmd, a, len(opts.command) == 0 && !opts.detach)
}

func runRun(ctx context.Context, a *app, opts runOpts) error {
	var tree *workspace.Tree
	if opts.path != "" {
		var err error
		if tree, err = workspace.Prepare(ctx, opts.path, workspace.Options{Mode: workspace.ModeDefault, Depth: workspace.DefaultDepth}, nil); err != nil {
			return ownFailure(err)
		}
		defer tree.Close()
		for _, n := range tree.Notices {
			a.note("%s", n)
		}
		for _, w := range tree.Warnings {
			a.warn("%s", w)
		}
	}
	c, err := a.client()
	if err != nil {
		return ownFailure(err)
	}
	opts.request.AutoRemove = opts.remove
	if tree != nil && opts.request.Workdir == "" {
		// Later commands begin there too, not only this one.
		opts.request.Workdir = path.Join(workspaceDir, tree.Subdir)
	}
	r := &runner{app: a, client: c, opts: opts, tree: tree}
	making, ready := r.begin(ctx)
	defer r.signals.release()
	defer ready()
	defer r.pack(making)()
	if r.vm, err = a.create(making, c, opts.request); err != nil {
		return ownFailure(interrupted(err))
	}
	if err := r.prepare(making); err != nil {
		// Nothing of the user's ran in it: it is of no use to anybody.
		return ownFailure(joinCleanup(interrupted(err), a.remove(ctx, c, r.vm.id)))
	}
	if opts.detach {
		a.remind(r.vm.name)
		fmt.Fprintln(a.out, r.vm.name)
		return nil
	}
	return r.command(ctx, making, ready)
}

// runner is one `vm run`.
type runner struct {
	image    model.ImageConfig // of the VM, once that was made
	app      *app
	client   *client.Client
	opts     runOpts
	tree     *workspace.Tree
	packed   chan struct{} // closed when the tree is complete, or packErr says why not
	packErr  error
	vm       made
	signals  *signals
	deadline time.Time // zero: none
}

// begin catches signals for the whole run and starts its clock. Either ends the
// context that the VM is made under. ready stops the clock for it, because from
// then on the command is told instead.
func (r *runner) begin(ctx context.Context) (making context.Context, ready func()) {
	making, cancel := context.WithCancelCause(ctx)
	r.signals = catch(func(sig syscall.Signal) {
		switch sig {
		case syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP:
			if making.Err() != nil {
				os.Exit(exitInterrupt) // asked twice: the daemon cleans up without us
			}
			cancel(errInterrupted)
		}
	}, forwarded...)
	timeout := r.opts.session.timeout
	if timeout == 0 {
		return making, func() {}
	}
	r.deadline = time.Now().Add(timeout)
	clock := time.AfterFunc(timeout, func() { cancel(errElapsed) })
	return making, func() { clock.Stop() }
}

// prepare brings a VM that has booted to where the command can run.
func (r *runner) prepare(ctx context.Context) error {
	v, err := r.client.GetVM(ctx, r.vm.id)
	if err != nil {
		return err
	}
	r.image = imageConfig(v)
	if r.tree != nil {
		if err := r.send(ctx); err != nil {
			return errdefs.Wrap(err, "copy %s into vm %q", r.opts.path, r.vm.name)
		}
	}
	if r.opts.wait == waitSystem {
		return r.app.awaitSystem(ctx, r.client, r.vm)
	}
	return nil
}

// pack completes the tree while the VM boots. The function that it returns waits for that.
func (r *runner) pack(ctx context.Context) (wait func()) {
	if r.tree == nil {
		return func() {}
	}
	r.packed = make(chan struct{})
	go func() {
		defer close(r.packed)
		r.packErr = r.tree.Complete(ctx)
	}()
	return func() { <-r.packed }
}

// send puts the tree into the workspace. Nobody has worked in the VM yet: what its image
// has in that place is overwritten.
func (r *runner) send(ctx context.Context) error {
	d := &delivery{
		app: r.app, client: r.client, vm: r.vm.id, at: workspaceDir, force: true, label: "workspace",
		spec: &bangerv1.WorkspaceSpec{Mode: workspace.ModeDefault, Depth: workspace.DefaultDepth, User: r.user()},
	}
	if <-r.packed; r.packErr != nil {
		return r.packErr
	}
	_, err := d.send(ctx, r.tree, nil)
	return err
}

// user is who the command runs as, and so who owns the workspace.
func (r *runner) user() string {
	return cmp.Or(r.opts.request.GetUser(), r.image.User, "root")
}

// defaultUser is the user of a VM's commands: the VM's, else its image's, else root.
func defaultUser(ctx context.Context, c *client.Client, ref string) (string, error) {
	v, err := c.GetVM(ctx, ref)
	if err != nil {
		return "", err
	}
	return cmp.Or(v.GetUser(), v.GetImageConfig().GetUser(), "root"), nil
}

// imageConfig is that of the image a VM was made from.
func imageConfig(v *bangerv1.VM) model.ImageConfig {
	c := v.GetImageConfig()
	return model.ImageConfig{
		User: c.GetUser(), Workdir: c.GetWorkdir(), Env: c.GetEnv(), Entrypoint: c.GetEntrypoint(), Cmd: c.GetCmd(),
		StopSignal: c.GetStopSignal(), ExposedPorts: c.GetExposedPorts(), Volumes: c.GetVolumes(), Labels: c.GetLabels(),
	}
}

// stopSignal is what ends the command when the VM is stopped; 0: the image says nothing.
func (r *runner) stopSignal() int {
	if r.image.StopSignal == "" {
		return 0
	}
	n, err := guest.ParseSignal(r.image.StopSignal)
	if err != nil {
		r.app.warn("the image's stop signal does not count: %v", err)
	}
	return n
}

// command runs the command, or a shell, and cleans up after it.
func (r *runner) command(ctx, making context.Context, ready func()) error {
	s := session{
		app: r.app, client: r.client, ref: r.vm.id, flags: r.opts.session,
		deadline: r.deadline, signals: r.signals, before: func() error {
			ready()
			if making.Err() != nil {
				return context.Cause(making)
			}
			return nil
		},
		request: guest.Request{
			Kind:      guest.KindExec,
			Ephemeral: r.opts.remove,
			Exec: &guest.Exec{
				Args: r.image.Command(r.opts.entrypoint, r.opts.command), Workdir: r.opts.workdir, StopSignal: r.stopSignal(),
			},
		},
	}
	code, err := s.run(ctx)
	ran := err == nil
	if ran {
		err = codeError(code)
	}
	// An interrupt that came before the command ran still undoes the VM.
	if !r.opts.remove && making.Err() == nil {
		if ran {
			r.app.remind(r.vm.name)
		}
		return err
	}
	asked := false
	r.signals.to(func(sig syscall.Signal) { // the daemon deletes it anyway; do not die of the first
		if asked && sig != syscall.SIGHUP {
			os.Exit(exitInterrupt)
		}
		asked = true
	})
	if cleanup := r.app.remove(ctx, r.client, r.vm.id); cleanup != nil {
		// The command's own result matters more.
		r.app.printError(errdefs.Wrap(cleanup, "delete vm %q", r.vm.name))
	}
	return err
}

// remind says how to reach and end a VM that stays.
func (a *app) remind(name string) {
	a.note("%s keeps running. banger shell %s opens a shell, banger vm stop %s stops it, banger vm delete -f %s deletes it",
		name, name, name, name)
}
